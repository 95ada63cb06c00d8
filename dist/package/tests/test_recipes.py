"""The recipes make what the packages have, and the texts that a host begins with are valid."""

import hashlib
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import unittest

import readers
from test_packages import BINARIES, ROOT, artefacts

# What the buildroot of OpenWrt brings, as far as the recipe uses it.
RULES = """INSTALL_DIR:=install -d -m0755
INSTALL_BIN:=install -m0755
INSTALL_DATA:=install -m0644
LN:=ln -sf
"""
PACKAGE_MK = """define BuildPackage
.PHONY: $(1)
$(1):
\t$$(call Package/$(1)/install,$(DEST)/$(1))
export postinst_$(1):=$$(Package/$(1)/postinst)
export prerm_$(1):=$$(Package/$(1)/prerm)
.PHONY: $(1).postinst $(1).prerm
$(1).postinst $(1).prerm:
\t@printenv $$(subst .,,$$(suffix $$@))_$(1)
endef
"""


class Recipes(unittest.TestCase):
    def listing(self, folder):
        found = {}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_symlink():
                found[name] = ("link", os.readlink(path))
            elif path.is_file():
                found[name] = (stat.S_IMODE(path.stat().st_mode), hashlib.sha256(path.read_bytes()).hexdigest())
        return found

    def entries(self, data, without):
        return {
            n: ("link", e[4].decode()) if e[0] == "link" else (e[1], hashlib.sha256(e[4]).hexdigest())
            for n, e in data.items()
            if e[0] != "dir" and not n.startswith(without)
        }

    def test_the_feed_makes_what_the_package_has(self):
        """The recipe in a stand-in for the buildroot: same files, modes, links and scripts as the .ipk."""
        path = artefacts("openwrt/*/ctrl-exec_*.ipk")[0]
        control, data = readers.ipk(path.read_bytes())
        with tempfile.TemporaryDirectory() as folder:
            top = pathlib.Path(folder)
            for name, text in (("top/rules.mk", RULES), ("inc/package.mk", PACKAGE_MK), ("feed/lang/rust/rust-package.mk", "")):
                (top / name).parent.mkdir(parents=True, exist_ok=True)
                (top / name).write_text(text)
            with tarfile.open(artefacts("recipes/*feed*.tar.gz")[0]) as archive:
                archive.extractall(top / "feed/utils")
            source, installed = top / "source", top / "installed/bin"
            source.symlink_to(ROOT)
            installed.mkdir(parents=True)
            (installed / "ctrl-exec").write_bytes(data["usr/bin/ctrl-exec"][4])

            def make(target):
                run = subprocess.run(["make", "-s", f"TOPDIR={top}/top", f"INCLUDE_DIR={top}/inc", f"DEST={top}/dest", f"PKG_BUILD_DIR={source}",
                                      f"PKG_INSTALL_DIR={top}/installed", target], cwd=top / "feed/utils/ctrl-exec", capture_output=True, timeout=60)
                self.assertEqual(run.returncode, 0, run.stderr)
                return run.stdout

            make("ctrl-exec")
            self.assertEqual(self.listing(top / "dest/ctrl-exec"), self.entries(data, ("lib/apk/",)))
            for script in ("postinst", "prerm"):
                self.assertEqual(make(f"ctrl-exec.{script}"), control[script][4])
            # The small one has its own services and names, no others.
            make("ctrl-exec-agent")
            small = set(self.listing(top / "dest/ctrl-exec-agent"))
            self.assertLess(small, set(self.entries(data, ())))
            self.assertIn("etc/init.d/ctrl-exec-exec", small)
            self.assertFalse(small & {"usr/bin/ced", "etc/init.d/ctrl-exec-api", "usr/share/ctrl-exec/examples/ctrl-exec.toml"})

    def test_the_apkbuild_makes_what_the_packages_have(self):
        """package() in a source tree: same files, modes and links as the three packages, but for what only this build has."""
        data = {}
        for path in artefacts(f"alpine/{os.uname().machine}/*.apk"):
            data.update(readers.tar_entries(readers.gzip_streams(path.read_bytes())[-1][1]))
        with tempfile.TemporaryDirectory() as folder:
            top = pathlib.Path(folder)
            with tarfile.open(artefacts("recipes/*alpine*.tar.gz")[0]) as archive:
                archive.extractall(top)
            tree = top / "tree"
            tree.mkdir()
            for name in ("dist", "openrc", "docs", "src", "CHANGELOG.md"):
                (tree / name).symlink_to(ROOT / name)
            (tree / "target/release").mkdir(parents=True)
            (tree / "target/release/ctrl-exec").write_bytes(data["usr/bin/ctrl-exec"][4])
            run = subprocess.run(["sh", "-euc", ". ../ctrl-exec/APKBUILD; pkgdir=../made; package"], cwd=tree, env={"PATH": os.environ["PATH"], "srcdir": "/nonexistent"},
                                 capture_output=True, text=True, timeout=60)
            self.assertEqual(run.returncode, 0, run.stderr)
            extra = ("usr/share/ctrl-exec/sbom.json", "usr/share/man/", "usr/share/bash-completion/", "usr/share/zsh/", "usr/share/fish/")
            self.assertEqual(self.listing(top / "made"), self.entries(data, extra))
            recipe = (top / "ctrl-exec/APKBUILD").read_text()
            for hook in re.search(r'^install="(.*)"$', recipe, re.M)[1].replace("$pkgname", "ctrl-exec").split():
                self.assertTrue((top / "ctrl-exec" / hook).read_text().startswith("#!/bin/sh\n"), hook)

    def test_seeds_are_valid(self):
        with tempfile.TemporaryDirectory() as root:
            binary = pathlib.Path(root) / "ctrl-exec"
            shutil.copy(BINARIES / f"ctrl-exec-{os.uname().machine}", binary)
            seeds = (("ctrl-exec-agent/agent.toml", "agent"), ("ctrl-exec-agent/scripts.toml", "scripts"), ("ctrl-exec/ctrl-exec.toml", "dispatcher"))
            for target, _ in seeds:
                path = pathlib.Path(root) / "etc" / target
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / "src/applets/toolbox/install/seeds" / path.name, path)
            for target, which in seeds:
                run = subprocess.run([binary, "--root", root, "config", "check", which], capture_output=True, text=True)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            # And a mistake is found: the check can fail.
            with open(pathlib.Path(root) / "etc/ctrl-exec-agent/agent.toml", "a") as file:
                file.write("no_such_key = 1\n")
            run = subprocess.run([binary, "--root", root, "config", "check", "agent"], capture_output=True, text=True)
            self.assertEqual(run.returncode, 78, run.stdout + run.stderr)

    def test_lists_of_directories_agree(self):
        """tmpfiles.d and the package scripts make the same directories, but for two that are not to be changed at every boot."""
        sys.path.insert(0, str(ROOT / "dist/package"))
        import contents

        for part, file in (("agent", "ctrl-exec-agent.conf"), ("dispatcher", "ctrl-exec.conf")):
            lines = (ROOT / "init/tmpfiles" / file).read_text().splitlines()
            found = {tuple(line.split()[1:5]) for line in lines if line.startswith("d ")}
            wanted = {(f"/{d.path}", f"{d.mode:04o}", d.user, d.group) for d in contents.directories(contents.DEBIAN, (part,))}
            once = {row for row in wanted if row[0] in ("/opt/ctrl-exec-scripts", "/var/lib/ctrl-exec/pairing")}
            self.assertEqual(len(once), 1)
            self.assertEqual(found, wanted - once)


if __name__ == "__main__":
    unittest.main()
