"""The image layout: every digest, and the executable started in what the layers make. Needs root."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import unittest

import readers
from test_packages import BINARIES, artefacts

HERE = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}[os.uname().machine]


class Layout:
    def __init__(self):
        self.files = {name: entry for name, entry in readers.tar_entries(artefacts("oci/*.oci.tar")[0].read_bytes()).items() if entry[0] == "file"}
        assert json.loads(self.files["oci-layout"][4]) == {"imageLayoutVersion": "1.0.0"}
        self.used = set()

    def blob(self, descriptor):
        kind, value = descriptor["digest"].split(":")
        data = self.files[f"blobs/{kind}/{value}"][4]
        assert hashlib.sha256(data).hexdigest() == value and len(data) == descriptor["size"]
        self.used.add(f"blobs/{kind}/{value}")
        return data

    def images(self):
        """(role, platform, manifest, configuration, layers as plain tars)"""
        for entry in json.loads(self.files["index.json"][4])["manifests"]:
            role = entry["annotations"]["org.opencontainers.image.ref.name"]
            for described in json.loads(self.blob(entry))["manifests"]:
                manifest = json.loads(self.blob(described))
                config = json.loads(self.blob(manifest["config"]))
                layers = [gzip.decompress(self.blob(layer)) for layer in manifest["layers"]]
                yield role, described["platform"], manifest, config, layers


class Images(unittest.TestCase):
    def test_everything_is_there_and_nothing_else(self):
        layout, seen = Layout(), []
        for role, platform, manifest, config, layers in layout.images():
            seen.append((role, platform["architecture"]))
            self.assertEqual({k: config[k] for k in platform}, platform)
            self.assertEqual(config["rootfs"]["diff_ids"], [f"sha256:{hashlib.sha256(plain).hexdigest()}" for plain in layers])
            self.assertEqual(len(config["history"]), len(layers))
            for described in manifest["layers"]:
                self.assertEqual(described["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip")
            run = config["config"]
            self.assertEqual(run["Entrypoint"], ["/usr/bin/ctrl-exec", "container", role])
            self.assertEqual(run["Healthcheck"]["Test"], ["CMD", "/usr/bin/ctrl-exec", "container", "healthcheck"])
            # The trust map and the registry are lost with the container if they lie on no volume.
            state = {"agent": ["/etc/ctrl-exec-agent", "/var/lib/ctrl-exec-agent"], "dispatcher": ["/etc/ctrl-exec", "/var/lib/ctrl-exec"]}[role]
            self.assertEqual(sorted(run["Volumes"]), state)
            self.assertEqual(sorted(run["ExposedPorts"]), {"agent": ["7443/tcp"], "dispatcher": ["7444/tcp", "7445/tcp"]}[role])
        machines = [m for a, m in (("x86_64", "amd64"), ("aarch64", "arm64"), ("armv7", "arm")) if (BINARIES / f"ctrl-exec-{a}").is_file()]
        self.assertEqual(sorted(seen), sorted((r, m) for r in ("agent", "dispatcher") for m in machines))
        self.assertEqual(layout.used | {"oci-layout", "index.json"}, set(layout.files))

    def test_the_executable_lies_in_one_layer_of_both(self):
        layout, lowest = Layout(), {}
        for role, platform, manifest, _, _ in layout.images():
            lowest.setdefault(platform["architecture"], set()).add(manifest["layers"][0]["digest"])
        for digests in lowest.values():
            self.assertEqual(len(digests), 1)

    def test_started_in_its_own_layers(self):
        self.assertEqual(os.geteuid(), 0, "needs root")
        for role, platform, _, config, layers in Layout().images():
            if platform["architecture"] != HERE:
                continue
            root = pathlib.Path(tempfile.mkdtemp())
            self.addCleanup(shutil.rmtree, root)
            for plain in layers:
                with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
                    archive.extractall(root, numeric_owner=True)
            account = {"agent": "ctrl-exec-agent", "dispatcher": "ctrl-exec"}[role]
            passwd = {line.split(":")[0]: int(line.split(":")[2]) for line in (root / "etc/passwd").read_text().splitlines()}
            state = (root / f"var/lib/{account}").stat()
            self.assertEqual((state.st_uid, state.st_mode & 0o7777), (passwd[account], 0o750) if role == "agent" else (0, 0o2770))
            self.assertEqual(state.st_gid, passwd[account])
            self.assertEqual(sorted(p.name for p in root.iterdir()), ["dev", "etc", "opt", "proc", "run", "sys", "tmp", "usr", "var"][: 9] if role == "agent" else ["dev", "etc", "proc", "run", "sys", "tmp", "usr", "var"])

            def started(*words):
                return subprocess.run(["unshare", "--pid", "--fork", "--mount", "--net", "--kill-child", "chroot", str(root), *words],
                                      env=dict(pair.split("=", 1) for pair in config["config"]["Env"]), capture_output=True, text=True, timeout=60)

            for name in ("ctrl-exec", "ced", "cea", "ced-api"):
                run = started(f"/usr/bin/{name}", "--help")
                self.assertEqual(run.returncode, 0, (name, run.stderr))
            # Names of accounts are known without a C library's help.
            self.assertEqual(started("/usr/bin/ctrl-exec", "--version").returncode, 0)
            entry = started(*config["config"]["Entrypoint"][:2], "--help")
            if "is not a program or verb" in entry.stderr + entry.stdout:
                self.assertNotIn(b"healthcheck", (root / "usr/bin/ctrl-exec").read_bytes(), "the executable has the entry point and does not know it")
            else:
                self.assertEqual(entry.returncode, 0, entry.stderr)


if __name__ == "__main__":
    unittest.main()
