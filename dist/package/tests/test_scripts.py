"""The package scripts of OpenWrt and Alpine, run by BusyBox in a root of their own. Needs root and a static busybox."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import readers
from test_packages import artefacts

BUSYBOX = shutil.which("busybox")

# Records what it is asked to do; everything runs.
INIT = '#!/bin/sh\necho "$(basename "$0") $1" >>/log\nexit 0\n'


ADDUSER = """#!/bin/sh
for name; do :; done
gid=$(sed -n "s/^$name:x:\\([0-9]*\\):.*/\\1/p" /etc/group)
[ -n "$gid" ] && echo "$name:x:10$(wc -l </etc/passwd):$gid::/:/sbin/nologin" >>/etc/passwd
"""


class Root:
    """A directory with BusyBox in it and the files of a package."""

    def __init__(self, data, skip=("etc/init.d/",)):
        self.path = pathlib.Path(tempfile.mkdtemp())
        for folder in ("bin", "etc/init.d", "tmp", "var/lib", "dev"):
            (self.path / folder).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.path / "bin/busybox")
        self.run("/bin/busybox", "--install", "-s", "/bin")
        self.write("etc/passwd", "root:x:0:0:root:/root:/bin/ash\nnobody:*:65534:65534:nobody:/var:/bin/false\nother:x:9443:9443:taken:/:/bin/false\n")
        self.write("etc/group", "root:x:0:\nnogroup:x:65534:\n")
        self.write("etc/shadow", "root::0:0:99999:7:::\n")
        self.unpack(data, skip)

    def unpack(self, data, skip=("etc/init.d/",)):
        for name, (kind, mode, _, _, body, *_) in data.items():
            target = self.path / name
            if kind == "dir":
                target.mkdir(exist_ok=True, parents=True)
            elif kind == "link":
                target.unlink(missing_ok=True)
                target.symlink_to(body.decode())
            else:
                self.write(name, INIT if name.startswith(skip) else body, mode)

    def write(self, name, text, mode=0o644):
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        target.chmod(mode)

    def run(self, *words, **environment):
        return subprocess.run(["chroot", str(self.path), *words], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment}, capture_output=True, text=True, timeout=60)

    def script(self, text, **environment):
        self.write("tmp/script", text, 0o755)
        return self.run("/bin/sh", "/tmp/script", **environment)

    def log(self):
        path = self.path / "log"
        text = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return text

    def owner(self, name):
        info = (self.path / name).stat()
        users = {int(line.split(":")[2]): line.split(":")[0] for line in (self.path / "etc/passwd").read_text().splitlines()}
        groups = {int(line.split(":")[2]): line.split(":")[0] for line in (self.path / "etc/group").read_text().splitlines()}
        return users[info.st_uid], groups[info.st_gid], info.st_mode & 0o7777

    def close(self):
        shutil.rmtree(self.path)


class Debian(unittest.TestCase):
    def test_a_restart_that_fails_says_why(self):
        common = pathlib.Path(__file__).parents[1] / "scripts/deb/common.sh"
        with tempfile.TemporaryDirectory() as folder:
            stub = pathlib.Path(folder) / "deb-systemd-invoke"
            stub.write_text('#!/bin/sh\necho "Job for $2 failed." >&2\necho "Active: failed (exit-code)"\nexit "$CODE"\n')
            stub.chmod(0o755)

            def restart(code):
                script = f'set -e\n. "{common}"\nrestart_unit ctrl-exec-agent\necho on\n'
                return subprocess.run(["sh", "-c", script], env={"PATH": f"{folder}:/usr/bin:/bin", "CODE": str(code)}, capture_output=True, text=True, timeout=60)

            bad = restart(1)
            self.assertEqual((bad.returncode, bad.stdout), (1, ""))
            self.assertIn("ctrl-exec: ctrl-exec-agent did NOT restart:\n    Job for ctrl-exec-agent.service failed.\n    Active: failed", bad.stderr)
            self.assertIn("journalctl -u ctrl-exec-agent", bad.stderr)
            self.assertEqual(restart(0).stdout, "ctrl-exec: restarted ctrl-exec-agent to apply the upgrade.\non\n")


class OpenWrt(unittest.TestCase):
    def setUp(self):
        self.assertEqual(os.geteuid(), 0, "needs root")
        # The package of this machine's architecture that has both roles.
        self.control, self.data = readers.ipk(artefacts(f"openwrt/{os.uname().machine}*/ctrl-exec_*.ipk")[0].read_bytes())
        self.root = Root(self.data)
        self.addCleanup(self.root.close)

    def test_install_twice_upgrade_and_remove(self):
        root, postinst, prerm = self.root, self.control["postinst"][4], self.control["prerm"][4]
        for attempt in range(2):
            run = root.script(postinst)
            self.assertEqual((run.returncode, run.stderr), (0, ""), run.stdout)
            passwd = (root.path / "etc/passwd").read_text()
            for name in ("ctrl-exec", "ctrl-exec-agent"):
                self.assertEqual(passwd.count(f"\n{name}:"), 1)
                self.assertEqual((root.path / "etc/shadow").read_text().count(f"{name}:x:"), 1)
            numbers = [line.split(":")[2] for line in passwd.splitlines()]
            self.assertEqual(len(numbers), len(set(numbers)), "two accounts with one number")
        self.assertEqual(root.owner("etc/ctrl-exec-agent"), ("root", "ctrl-exec-agent", 0o750))
        self.assertEqual(root.owner("etc/ctrl-exec-agent/state"), ("ctrl-exec-agent", "ctrl-exec-agent", 0o750))
        self.assertEqual(root.owner("etc/ctrl-exec-agent/agent.toml"), ("root", "ctrl-exec-agent", 0o640))
        self.assertEqual(root.owner("etc/ctrl-exec/state/agents"), ("root", "ctrl-exec", 0o2770))
        self.assertEqual(root.owner("etc/ctrl-exec/state/pairing"), ("root", "root", 0o700))
        self.assertFalse((root.path / "var/lib/ctrl-exec-agent").exists())
        log = root.log()
        for name in ("ctrl-exec-exec", "ctrl-exec-agent", "ctrl-exec-maintenance"):
            self.assertIn(f"{name} enable", log)
            self.assertIn(f"{name} start", log)
        self.assertNotIn("ctrl-exec-api enable", log)
        self.assertLess(log.index("ctrl-exec-exec start"), log.index("ctrl-exec-agent start"))

        # Not paired, so `self-check` finds a fault: what runs is not touched.
        run = root.script(postinst, PKG_UPGRADE="1")
        self.assertEqual(run.returncode, 0)
        self.assertIn("NOT restarted", run.stdout)
        self.assertEqual(root.log(), [])
        # An upgrade leaves the services alone before, too.
        root.script(prerm, PKG_UPGRADE="1")
        self.assertEqual(root.log(), [])
        # Checks that pass: what runs is restarted.
        for name in ("usr/bin/ctrl-exec-agent", "usr/sbin/ctrl-exec-exec"):
            (root.path / name).unlink()
            root.write(name, "#!/bin/sh\nexit 0\n", 0o755)
        root.script(postinst, PKG_UPGRADE="1")
        self.assertIn("ctrl-exec-agent restart", root.log())

        self.assertEqual(root.script(prerm).returncode, 0)
        self.assertIn("ctrl-exec-agent stop", root.log())
        self.assertTrue((root.path / "etc/ctrl-exec-agent/agent.toml").exists())

    def test_the_map_of_an_older_installation_moves_to_where_it_survives(self):
        self.root.write("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers", "0a main\n")
        self.root.write("etc/ctrl-exec-agent/agent.conf", "# older\n")
        self.root.script(self.control["postinst"][4])
        self.assertEqual((self.root.path / "etc/ctrl-exec-agent/state/ctrl-exec-dispatchers").read_text(), "0a main\n")
        self.assertEqual(self.root.owner("etc/ctrl-exec-agent/state/ctrl-exec-dispatchers"), ("ctrl-exec-agent", "ctrl-exec-agent", 0o644))
        self.assertFalse((self.root.path / "etc/ctrl-exec-agent/agent.toml").exists(), "it would hide agent.conf")

    def test_functions_of_openwrt_make_the_accounts_where_they_are_there(self):
        self.root.write("lib/functions.sh", 'add_group_and_user() { echo "users $1" >>/log; echo "ctrl-exec-agent:x:7:7::/:/bin/false" >>/etc/passwd; echo "ctrl-exec-agent:x:7:" >>/etc/group; }\n')
        self.root.script(self.control["postinst"][4])
        self.assertIn("users ctrl-exec", self.root.log())
        self.assertEqual(self.root.owner("etc/ctrl-exec-agent"), ("root", "ctrl-exec-agent", 0o750))

    def test_into_an_image(self):
        """Where an image is built nothing is started, and the root is a directory."""
        image = Root(self.data)
        self.addCleanup(image.close)
        image.write("etc/rc.common", '#!/bin/sh\necho "$(basename "$1") $2" >>"$IPKG_INSTROOT/log"\n')
        inner = image.path.rename(self.root.path / "image")
        image.path = inner
        run = self.root.script(self.control["postinst"][4], IPKG_INSTROOT="/image")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(sorted(image.log()), ["ctrl-exec-agent enable", "ctrl-exec-exec enable", "ctrl-exec-maintenance enable"])
        self.assertEqual(image.owner("etc/ctrl-exec-agent"), ("root", "ctrl-exec-agent", 0o750))
        self.assertFalse((self.root.path / "etc/ctrl-exec-agent").exists())


class Alpine(unittest.TestCase):
    def setUp(self):
        self.assertEqual(os.geteuid(), 0, "needs root")
        streams = readers.gzip_streams(artefacts(f"alpine/{os.uname().machine}/ctrl-exec-[0-9]*.apk")[0].read_bytes())
        self.control, data = (readers.tar_entries(plain + bytes(1024)) for _, plain in streams[-2:])
        self.root = Root(data)
        self.addCleanup(self.root.close)
        # Debian's BusyBox comes without these two.
        self.root.write("sbin/addgroup", '#!/bin/sh\n[ "$1 $#" = "-S 2" ] || exit 9\necho "$2:x:10$(wc -l </etc/group):" >>/etc/group\n', 0o755)
        self.root.write("sbin/adduser", ADDUSER, 0o755)

    def hook(self, name):
        return self.control[f".{name}"][4]

    def test_install_upgrade_and_remove(self):
        root = self.root
        for attempt in range(2):
            self.assertEqual(root.script(self.hook("pre-install")).returncode, 0)
            run = root.script(self.hook("post-install"))
            self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(root.owner("var/lib/ctrl-exec-agent"), ("ctrl-exec-agent", "ctrl-exec-agent", 0o750))
        self.assertEqual(root.owner("var/lib/ctrl-exec/runs"), ("root", "ctrl-exec", 0o2770))
        self.assertEqual(root.owner("etc/ctrl-exec/ctrl-exec.toml"), ("root", "ctrl-exec", 0o640))
        # OpenRC that says that everything runs.
        root.write("sbin/rc-service", '#!/bin/sh\ncase "$*" in *status*) exit 0 ;; esac\necho "$*" >>/log\n', 0o755)
        root.write("sbin/rc-update", '#!/bin/sh\necho "rc-update $*" >>/log\n', 0o755)
        run = root.script(self.hook("post-upgrade"))
        self.assertEqual(run.returncode, 0)
        log = root.log()
        # The seeds are valid for the dispatcher; the agent is not paired.
        self.assertIn("--quiet --ifstarted ctrl-exec-api restart", log)
        self.assertIn("ctrl-exec-agent NOT restarted", run.stdout)
        self.assertNotIn("--quiet --ifstarted ctrl-exec-agent restart", log)
        self.assertEqual(root.script(self.hook("pre-deinstall")).returncode, 0)
        self.assertIn("--quiet --ifstarted ctrl-exec-agent stop", root.log())
        self.assertTrue((root.path / "etc/ctrl-exec/ctrl-exec.toml").exists())


if __name__ == "__main__":
    unittest.main()
