"""What is in the packages that were made: CTRL_EXEC_PACKAGES names their folder, CTRL_EXEC_BINARIES that of the binaries."""

import hashlib
import json
import os
import pathlib
import re
import stat
import subprocess
import tomllib
import unittest

import readers

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUT = pathlib.Path(os.environ.get("CTRL_EXEC_PACKAGES", ROOT / "target/dist/packages"))
BINARIES = pathlib.Path(os.environ.get("CTRL_EXEC_BINARIES", ROOT / "target/dist"))

NAMES = {
    "agent": {"usr/bin/cea": "ctrl-exec", "usr/bin/ctrl-exec-agent": "ctrl-exec", "usr/sbin/ctrl-exec-exec": "../bin/ctrl-exec"},
    "dispatcher": {f"usr/bin/{n}": "ctrl-exec" for n in ("ced", "ctrl-exec-dispatcher", "ced-api", "ctrl-exec-api")},
}
OFTEN = re.compile(r"(\.sha256|\.minisig|\.cdx\.json)$")


def artefacts(pattern="**/*"):
    found = [p for p in sorted(OUT.glob(pattern)) if p.is_file() and not OFTEN.search(p.name) and p.name != "minisign.pub"]
    assert found, f"nothing matches {pattern} in {OUT}"
    return found


def built(suffix=""):
    """Architectures whose binary is there."""
    return [a for a in ("x86_64", "aarch64", "armv7", "mipsel") if (BINARIES / f"ctrl-exec-{a}{suffix}").is_file()]


def entry(kind, body):
    return (kind, 0o777 if kind == "link" else None, body)


class Everything(unittest.TestCase):
    def test_what_each_architecture_must_have(self):
        names = [str(p.relative_to(OUT)) for p in artefacts()]
        for arch, deb in (("x86_64", "amd64"), ("aarch64", "arm64"), ("armv7", "armhf")):
            if arch in built():
                for name in ("runtime", "agent", "dispatcher"):
                    self.assertTrue(any(re.fullmatch(rf"debian/ctrl-exec-{name}_.*_{deb}\.deb", n) for n in names), (name, deb))
                self.assertTrue(any(re.match(rf"alpine/{arch}/ctrl-exec-\d.*\.apk", n) for n in names), arch)
        cpus = {"x86_64": ["x86_64"], "aarch64": ["aarch64_generic", "aarch64_cortex-a53", "aarch64_cortex-a72"],
                "armv7": ["arm_cortex-a7_neon-vfpv4", "arm_cortex-a9_vfpv3-d16", "arm_cortex-a15_neon-vfpv4"], "mipsel": ["mipsel_24kc"]}
        for suffix, package in (("", "ctrl-exec"), ("-router", "ctrl-exec-agent")):
            for arch in built(suffix):
                for cpu in cpus[arch]:
                    for form in (rf"openwrt/{cpu}/{package}_.*_{cpu}\.ipk", rf"openwrt/{cpu}/{package}-\d.*_{cpu}\.apk"):
                        self.assertTrue(any(re.fullmatch(form, n) for n in names), form)

    def test_no_host_name_and_no_path_of_this_machine(self):
        words = [w.encode() for w in (os.uname().nodename, str(ROOT), str(OUT)) if len(w) > 4]
        for path in artefacts("debian/*.deb"):
            for part in readers.deb(path.read_bytes()):
                for name, (_, _, _, _, body, _, _) in part.items():
                    if name != "usr/bin/ctrl-exec":
                        for word in words:
                            self.assertNotIn(word, body, (path.name, name))

    def test_checksums(self):
        for path in (*artefacts(), *sorted(OUT.glob("**/*.cdx.json"))):
            text = path.with_name(path.name + ".sha256").read_text()
            self.assertEqual(text, f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        run = subprocess.run(["sha256sum", "-c", *[p.name + ".sha256" for p in artefacts("debian/*")]], cwd=OUT / "debian", capture_output=True)
        self.assertEqual(run.returncode, 0, run.stdout)

    def test_signatures(self):
        key = OUT / "minisign.pub"
        for path in (*artefacts(), *sorted(OUT.glob("**/*.cdx.json"))):
            run = subprocess.run(["minisign", "-V", "-p", str(key), "-m", str(path)], capture_output=True, text=True)
            self.assertEqual(run.returncode, 0, run.stderr)
        # And a changed file is refused.
        path = artefacts("debian/*agent*")[0]
        forged = path.with_name("forged")
        try:
            forged.write_bytes(path.read_bytes() + b"!")
            run = subprocess.run(["minisign", "-V", "-p", str(key), "-m", str(forged), "-x", str(path) + ".minisig"], capture_output=True)
            self.assertNotEqual(run.returncode, 0)
        finally:
            forged.unlink()


class Debian(unittest.TestCase):
    def package(self, name, arch="amd64"):
        return readers.deb(artefacts(f"debian/ctrl-exec-{name}_*_{arch}.deb")[0].read_bytes())

    def test_owners_modes_and_times(self):
        epoch = None
        for path in artefacts("debian/*.deb"):
            for part in readers.deb(path.read_bytes()):
                self.assertEqual([n for n in part], sorted(part, key=lambda n: [] if n == "." else n.split("/")))
                for name, (kind, mode, owner, group, body, mtime, _) in part.items():
                    self.assertEqual((owner, group), ("root", "root"), name)
                    epoch = epoch or mtime
                    self.assertEqual(mtime, epoch, name)
                    if kind == "dir":
                        self.assertEqual(mode, 0o755, name)
                    elif kind == "file":
                        program = name.startswith(("usr/bin/", "usr/sbin/")) or name in ("postinst", "prerm", "postrm") or (body.startswith(b"#!") and not name.endswith(".example"))
                        self.assertEqual(mode, 0o755 if program else 0o644, name)

    def test_the_executable_is_the_binary(self):
        for arch, deb in (("x86_64", "amd64"), ("aarch64", "arm64"), ("armv7", "armhf")):
            if arch in built():
                _, data = self.package("runtime", deb)
                self.assertEqual(data["usr/bin/ctrl-exec"][4], (BINARIES / f"ctrl-exec-{arch}").read_bytes())

    def test_names_are_links(self):
        for part, links in NAMES.items():
            _, data = self.package(part)
            for path, target in links.items():
                self.assertEqual((data[path][0], data[path][4]), ("link", target.encode()), path)

    def test_nothing_is_a_conffile_and_nothing_lies_in_etc_or_var(self):
        for path in artefacts("debian/*.deb"):
            control, data = readers.deb(path.read_bytes())
            self.assertNotIn("conffiles", control)
            self.assertEqual([n for n in data if n.split("/")[0] in ("etc", "var", "opt", "run") or n.startswith("usr/local")], [])

    def test_relations(self):
        runtime, agent, dispatcher = (readers.fields(self.package(n)[0]["control"][4]) for n in ("runtime", "agent", "dispatcher"))
        version = runtime["Version"]
        for name in ("Conflicts", "Replaces"):
            self.assertEqual(runtime[name], "ctrl-exec-common")
        for package in (agent, dispatcher):
            self.assertIn(f"ctrl-exec-runtime (= {version})", package["Depends"])
        self.assertEqual(dispatcher["Provides"], f"ctrl-exec (= {version})")
        self.assertEqual(dispatcher["Replaces"], "ctrl-exec (<< 0.8.11~)")
        self.assertEqual(subprocess.run(["dpkg", "--compare-versions", version, "gt", "0.12.3-1"]).returncode, 0)

    def test_dpkg_reads_them(self):
        for path in artefacts("debian/*.deb"):
            for option in ("-I", "-c"):
                run = subprocess.run(["dpkg-deb", option, str(path)], capture_output=True, text=True)
                self.assertEqual(run.returncode, 0, run.stderr)

    def test_checksums_of_the_files(self):
        for path in artefacts("debian/*.deb"):
            control, data = readers.deb(path.read_bytes())
            sums = dict(reversed(line.split("  ")) for line in control["md5sums"][4].decode().splitlines())
            self.assertEqual(sums, {n: hashlib.md5(e[4]).hexdigest() for n, e in data.items() if e[0] == "file"})

    def test_scripts_have_no_marker_left(self):
        for path in artefacts("debian/*.deb"):
            control, _ = readers.deb(path.read_bytes())
            for name in ("postinst", "prerm", "postrm"):
                if name in control:
                    self.assertNotRegex(control[name][4].decode(), r"(?m)^#(INCLUDE|DIRECTORIES|SEEDS)|@[A-Z]+@")
        control, _ = self.package("dispatcher")
        self.assertIn("directory 02770 root ctrl-exec /var/lib/ctrl-exec/agents\n", control["postinst"][4].decode())


class OpenWrt(unittest.TestCase):
    def test_ipk(self):
        for path in artefacts("openwrt/*/*.ipk"):
            control, data = readers.ipk(path.read_bytes())
            found = readers.fields(control["control"][4])
            name, version, cpu = path.name.removesuffix(".ipk").split("_", 2)
            self.assertEqual((found["Package"], found["Version"], found["Architecture"]), (name, version, cpu))
            self.assertEqual(cpu, path.parent.name)
            self.assertIn("ctrl-exec-agent:ctrl-exec-agent", found["Require-User"])
            self.assertEqual(int(found["Installed-Size"]), sum(len(e[4]) for e in data.values() if e[0] == "file"))
            self.assertIn(b"/etc/ctrl-exec-agent/\n", control["conffiles"][4])
            self.assertEqual({control[s][1] for s in ("postinst", "prerm")}, {0o755})
            # A firmware upgrade keeps what pairing has made.
            self.assertIn(b"/etc/ctrl-exec-agent/\n", data["lib/upgrade/keep.d/ctrl-exec"][4])
            self.check_files(data, name)

    def check_files(self, data, name):
        parts = ("agent",) if name == "ctrl-exec-agent" else ("agent", "dispatcher")
        for part in NAMES:
            for link, target in NAMES[part].items():
                self.assertEqual(link in data, part in parts, link)
                if part in parts:
                    self.assertEqual(data[link][4], target.encode())
        services = ["ctrl-exec-agent", "ctrl-exec-exec"] + (["ctrl-exec-api", "ctrl-exec-maintenance"] if "dispatcher" in parts else [])
        self.assertEqual(sorted(n.removeprefix("etc/init.d/") for n in data if n.startswith("etc/init.d/")), sorted(services))
        for service in services:
            self.assertEqual(data[f"etc/init.d/{service}"][1], 0o755)
        # The toml would hide the files of an older installation: never in the package.
        self.assertEqual([n for n in data if n.startswith(("etc/ctrl-exec", "var/"))], [])
        suffix = "-router" if name == "ctrl-exec-agent" else ""
        self.assertIn(hashlib.sha256(data["usr/bin/ctrl-exec"][4]).hexdigest(),
                      [hashlib.sha256((BINARIES / f"ctrl-exec-{a}{suffix}").read_bytes()).hexdigest() for a in built(suffix)])

    def test_the_router_package_is_small(self):
        """Flash is what such hosts have least of: 1 MiB. docs/architectures.md says which builds do not keep that yet."""
        found = [p for p in artefacts("openwrt/*/*") if p.name.startswith(("ctrl-exec-agent_", "ctrl-exec-agent-")) and p.parent.name.startswith(("arm_", "mipsel_"))]
        self.assertEqual(bool(found), "armv7" in built("-router") or "mipsel" in built("-router"))
        for path in found:
            self.assertLessEqual(path.stat().st_size, 1024 * 1024, path.name)

    def test_apk_of_the_third_version(self):
        for path in artefacts("openwrt/*/*.apk"):
            adb = readers.Adb(path.read_bytes())
            package = adb.slots(adb.root)
            info = adb.slots(package[1])
            name, version, arch = (adb.blob(info[i]).decode() for i in (1, 2, 5))
            self.assertEqual(path.name, f"{name}-{version}_{arch}.apk")
            self.assertEqual(arch, path.parent.name)
            self.assertRegex(version, r"^\d+\.\d+\.\d+(_(pre|alpha|beta|rc)\d*)?-r\d+$")
            other = adb.slots(adb.slots(info[15])[1])
            self.assertEqual((adb.blob(other[1]), adb.number(other[3]) & 16), (b"ctrl-exec" if name == "ctrl-exec-agent" else b"ctrl-exec-agent", 16))
            # The name of the package is a hash of the tree with zeros in its place.
            identity = adb.blob(info[3])
            self.assertEqual(len(identity), 20)
            zeros = adb.tree.replace(identity, bytes(20))
            self.assertEqual(hashlib.sha256(zeros).digest()[:20], identity)
            scripts = adb.slots(package[3])
            for slot in (3, 4, 7):
                self.assertTrue(adb.blob(scripts[slot]).startswith(b"#!/bin/sh\n"))
            self.assertIn(b"export PKG_UPGRADE=1\n", adb.blob(scripts[7]))
            data, size = self.walk(adb, package[2])
            self.assertEqual(adb.number(info[12]), size)
            self.check_files(data, name)
            listed = data[f"lib/apk/packages/{name}.list"][4].decode().split()
            files = [f"/{n}" for n, e in data.items() if e[0] != "dir"]
            self.assertEqual(sorted(listed), sorted(f for f in files if not f.endswith(f"{name}.list")))

    def walk(self, adb, value):
        data, size, seen = {}, 0, []
        for i, place in enumerate(adb.slots(value)[1:], 1):
            directory = adb.slots(place)
            folder = adb.blob(directory[1]).decode()
            seen.append(folder.encode())
            data[folder] = ("dir", adb.number(adb.slots(directory[2])[1]), None, None, b"")
            files = []
            for j, item in enumerate(adb.slots(directory[3])[1:] if len(directory) > 3 else [], 1):
                file = adb.slots(item)
                name = adb.blob(file[1]).decode()
                files.append(name.encode())
                acl = adb.slots(file[2])
                self.assertEqual((adb.blob(acl[2]), adb.blob(acl[3])), (b"root", b"root"))
                if len(file) > 6:
                    target = adb.blob(file[6])
                    self.assertEqual(target[:2], stat.S_IFLNK.to_bytes(2, "little"))
                    data[f"{folder}/{name}"] = ("link", None, None, None, target[2:])
                    self.assertNotIn((i, j), adb.files)
                else:
                    body = adb.files[i, j]
                    self.assertEqual(adb.number(file[3]), len(body))
                    self.assertEqual(adb.blob(file[5]), hashlib.sha256(body).digest())
                    size += len(body)
                    data[f"{folder}/{name}"] = ("file", adb.number(acl[1]), None, None, body)
            self.assertEqual(files, sorted(files))
        self.assertEqual(seen, sorted(seen))
        self.assertEqual(len(adb.files), sum(e[0] == "file" for e in data.values()))
        return data, size


class Alpine(unittest.TestCase):
    def test_apk_of_the_second_version(self):
        for path in artefacts("alpine/*/*.apk"):
            streams = readers.gzip_streams(path.read_bytes())
            self.assertIn(len(streams), (2, 3))
            # Read as one, it is a single tar.
            whole = readers.tar_entries(b"".join(plain for _, plain in streams))
            info = [line.split(" = ", 1) for line in whole[".PKGINFO"][4].decode().splitlines() if not line.startswith("#")]
            self.assertTrue(all(len(pair) == 2 for pair in info), info)
            single = dict(info)
            self.assertEqual(path.name, f"{single['pkgname']}-{single['pkgver']}.apk")
            self.assertEqual(single["datahash"], hashlib.sha256(streams[-1][0]).hexdigest())
            self.assertIn(single["arch"], (path.parent.name, "noarch"))
            for name, (kind, mode, _, _, body, _, headers) in readers.tar_entries(streams[-1][1]).items():
                if kind != "dir":
                    self.assertEqual(headers["APK-TOOLS.checksum.SHA1"], hashlib.sha1(body).hexdigest(), name)
            size = sum(len(e[4]) for e in readers.tar_entries(streams[-1][1]).values() if e[0] == "file")
            self.assertEqual(int(single["size"]), size)

    def test_where_the_services_are(self):
        for path in artefacts("alpine/*/ctrl-exec-openrc-*.apk"):
            data = readers.tar_entries(readers.gzip_streams(path.read_bytes())[-1][1])
            for name in ("agent", "exec", "api", "maintenance"):
                kind, mode, _, _, body, _, _ = data[f"etc/init.d/ctrl-exec-{name}"]
                self.assertEqual((kind, mode), ("file", 0o755))
                self.assertTrue(body.startswith(b"#!/sbin/openrc-run\n"))
        for path in artefacts("alpine/*/ctrl-exec-[0-9]*.apk"):
            control, data = (readers.tar_entries(plain + bytes(1024)) for _, plain in readers.gzip_streams(path.read_bytes())[-2:])
            self.assertEqual(sorted(n for n in control if n != ".PKGINFO"), [".post-install", ".post-upgrade", ".pre-deinstall", ".pre-install"])
            self.assertFalse([n for n in data if n.startswith("etc/")])

    def test_the_recipe_agrees(self):
        text = (ROOT / "dist/alpine/APKBUILD").read_text()
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        self.assertIn(f"_version={version}\n", text)
        path = artefacts("alpine/*/ctrl-exec-[0-9]*.apk")[0]
        self.assertIn(f"pkgver={path.name.removeprefix('ctrl-exec-').split('-r')[0]}\n", text)


class Bills(unittest.TestCase):
    def test_structure(self):
        serials = {}
        for path in artefacts():
            bill = json.loads(path.with_name(path.name + ".cdx.json").read_text())
            self.assertEqual((bill["bomFormat"], bill["specVersion"], bill["version"]), ("CycloneDX", "1.6", 1))
            self.assertRegex(bill["serialNumber"], r"^urn:uuid:[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$")
            # Files for every architecture lie in the folder of each: the same file has the same bill.
            self.assertEqual(serials.setdefault(bill["serialNumber"], path.read_bytes()), path.read_bytes())
            subject = bill["metadata"]["component"]
            self.assertEqual(subject["hashes"], [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}])
            references = [c["bom-ref"] for c in bill["components"]] + [subject["bom-ref"]]
            self.assertEqual(len(references), len(set(references)))
            for edge in bill["dependencies"]:
                self.assertIn(edge["ref"], references)
                self.assertLessEqual(set(edge["dependsOn"]), set(references))
            # Everything can be reached from the artefact.
            edges, reached, left = {e["ref"]: e["dependsOn"] for e in bill["dependencies"]}, set(), [subject["bom-ref"]]
            while left:
                reference = left.pop()
                if reference not in reached:
                    reached.add(reference)
                    left += edges[reference]
            self.assertEqual(reached, set(references))
            for part in bill["components"]:
                self.assertIn(part["type"], ("library", "file"))
                self.assertTrue(part["version"] and part["version"] != "unknown")
                if part["type"] == "library":
                    self.assertEqual(part["purl"], f"pkg:cargo/{part['name']}@{part['version']}")
                    self.assertRegex(part["licenses"][0]["expression"], r"^[A-Za-z0-9 .+()-]+$", part["name"])
                    self.assertRegex(part["hashes"][0]["content"], r"^[0-9a-f]{64}$")

    def test_what_is_linked_and_what_is_not(self):
        bill = json.loads(artefacts("binaries/*x86_64")[0].with_name(artefacts("binaries/*x86_64")[0].name + ".cdx.json").read_text())
        names = {c["name"] for c in bill["components"] if c["type"] == "library"}
        for name in ("ring", "rustls", "tokio", "serde", "libc"):
            self.assertIn(name, names)
        # Procedural macros run in the compiler; these two are only in tests.
        for name in ("serde_derive", "syn", "proptest", "tempfile"):
            self.assertNotIn(name, names)

    def test_the_package_without_an_executable_has_no_libraries(self):
        bill = json.loads(next(OUT.glob("debian/ctrl-exec-agent_*.cdx.json")).read_text())
        self.assertEqual(bill["components"], [])



if __name__ == "__main__":
    unittest.main()
