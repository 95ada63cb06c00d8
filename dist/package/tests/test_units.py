"""The builder's own decisions: versions, paths, the parser of `cargo tree`, refusals."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest
import unittest.mock
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import adb
import alpine
import archive
import main
import readers
import release
import sbom
import texts


class Versions(unittest.TestCase):
    def test_every_notation(self):
        for text, deb, apk, ipk in (
            ("1.0.0", "1.0.0-1", "1.0.0-r0", "1.0.0-r1"),
            ("1.0.0-dev", "1.0.0~dev-1", "1.0.0_pre-r0", "1.0.0~dev-r1"),
            ("1.2.3-rc.2", "1.2.3~rc2-1", "1.2.3_rc2-r0", "1.2.3~rc2-r1"),
        ):
            version = release.Version(text)
            self.assertEqual((version.deb, version.apk, version.ipk), (deb, apk, ipk))

    def test_what_has_no_notation_is_refused(self):
        for text in ("1.0", "1.0.0+git", "v1.0.0", "1.0.0-snapshot"):
            with self.assertRaises(release.Refused):
                release.Version(text)


class Archives(unittest.TestCase):
    def test_parents_come_first_and_once(self):
        nodes = archive.with_parents([archive.Node("b/c/d", "file", 0o644, data=b"x"), archive.Node("b", "dir", 0o750)])
        self.assertEqual([(n.path, n.kind, n.mode) for n in nodes], [("b", "dir", 0o750), ("b/c", "dir", 0o755), ("b/c/d", "file", 0o644)])

    def test_clashes_are_refused(self):
        file = archive.Node("a", "file", 0o644)
        for nodes in ([file, file], [file, archive.Node("a/b", "file", 0o644)]):
            with self.assertRaises(ValueError):
                archive.with_parents(nodes)
        for path in ("/a", "a/../b", "a//b", "a/"):
            with self.assertRaises(ValueError):
                archive.Node(path, "file", 0o644)

    def test_same_bytes_twice(self):
        nodes = archive.with_parents([archive.Node("a/b", "file", 0o644, data=b"x")])
        self.assertEqual(archive.gz(archive.tar(nodes, 1)), archive.gz(archive.tar(nodes, 1)))


class Binaries(unittest.TestCase):
    def test_a_binary_of_another_machine_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "ctrl-exec-aarch64"
            # An x86_64 header.
            path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + (62).to_bytes(2, "little") + bytes(44))
            with self.assertRaises(release.Refused):
                release.find_binaries(pathlib.Path(folder))


class Licence(unittest.TestCase):
    def test_that_there_is_none_is_told(self):
        def told(licence):
            out = io.StringIO()
            made = types.SimpleNamespace(licence=licence, missing=[])
            with contextlib.redirect_stdout(out):
                main.table([("x", 1)], types.SimpleNamespace(throwaway=False), types.SimpleNamespace(absent=set()), made)
            return out.getvalue()

        self.assertIn("NO LICENCE: Cargo.toml has no 'license'", told(None))
        self.assertNotIn("LICENCE", told("MIT"))
        self.assertIn(b"Ask the authors before you pass it on.", texts.debian_copyright(types.SimpleNamespace(licence=None, epoch=0)))


class Trees(unittest.TestCase):
    SUMS = {("a", "1.0.0"): "aa", ("b", "2.0.0"): "bb", ("ctrl-exec", "1.0.0"): None}

    def test_edges(self):
        text = "0 ctrl-exec v1.0.0 (/somewhere)|\n1 a v1.0.0|MIT\n2 b v2.0.0|MIT/Apache-2.0\n1 b v2.0.0|MIT/Apache-2.0 (*)\n"
        crates, roots = sbom.parse(text, self.SUMS)
        self.assertEqual([(c.name, c.licence, sorted(c.needs)) for c in crates], [("a", "MIT", ["pkg:cargo/b@2.0.0"]), ("b", "MIT/Apache-2.0", [])])
        self.assertEqual(roots, ["pkg:cargo/a@1.0.0", "pkg:cargo/b@2.0.0"])

    def test_what_is_not_in_the_lock_file_is_refused(self):
        with self.assertRaises(release.Refused):
            sbom.parse("0 ctrl-exec v1.0.0 (/x)|\n1 c v1.0.0|MIT\n", self.SUMS)


class ApkTwo(unittest.TestCase):
    def test_the_signature_is_over_the_second_stream(self):
        with tempfile.TemporaryDirectory() as folder:
            key, public = pathlib.Path(folder) / "builder-1.rsa", pathlib.Path(folder) / "public.pem"
            subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
            subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
            with unittest.mock.patch.dict(os.environ, {alpine.KEY: str(key)}):
                first = alpine.signature(types.SimpleNamespace(epoch=1), b"the second stream")
            ((_, plain),) = readers.gzip_streams(first)
            # No closing blocks: the next stream goes on with the same tar.
            self.assertEqual(len(plain), 1024)
            ((name, entry),) = readers.tar_entries(plain + bytes(1024)).items()
            self.assertEqual(name, ".SIGN.RSA256.builder-1.rsa.pub")
            (pathlib.Path(folder) / "signature").write_bytes(entry[4])
            run = subprocess.run(["openssl", "dgst", "-sha256", "-verify", public, "-signature", pathlib.Path(folder) / "signature"],
                                 input=b"the second stream", capture_output=True)
            self.assertEqual(run.returncode, 0, run.stderr)

    def test_without_a_key_there_is_no_stream(self):
        with unittest.mock.patch.dict(os.environ):
            os.environ.pop(alpine.KEY, None)
            self.assertEqual(alpine.signature(types.SimpleNamespace(epoch=1), b""), b"")


class ApkThree(unittest.TestCase):
    def test_large_and_empty_values(self):
        nodes = archive.with_parents([archive.Node("a/empty", "file", 0o600), archive.Node("a/big", "file", 0o644, data=bytes(70000))])
        package = readers.Adb(adb.package({"name": "n", "version": "1-r0", "arch": "x", "build-time": 1 << 31, "description": "d" * 70000},
                                          {"post-install": b"#!/bin/sh\n" + b"#" * 300}, nodes, 1))
        root = package.slots(package.root)
        info = package.slots(root[1])
        self.assertEqual(package.number(info[11]), 1 << 31)
        self.assertEqual(len(package.blob(info[4])), 70000)
        self.assertEqual(len(package.blob(package.slots(root[3])[3])), 310)
        # An empty file has no block of its own.
        self.assertEqual([len(v) for v in package.files.values()], [70000])

    def test_what_is_squeezed_says_the_same(self):
        nodes = archive.with_parents([archive.Node("a/text", "file", 0o644, data=pathlib.Path(__file__).read_bytes())])
        info = {"name": "n", "version": "1-r0", "arch": "x", "build-time": 1}
        plain, squeezed = (adb.package(info, {}, nodes, 1, squeeze) for squeeze in (None, archive.squeeze))
        self.assertNotEqual(plain, squeezed)
        self.assertEqual(zlib.decompress(plain[4:], -15), zlib.decompress(squeezed[4:], -15))


class Squeezing(unittest.TestCase):
    def test_gzip(self):
        data = pathlib.Path(__file__).read_bytes()
        squeezed = archive.gz_squeezed(data)
        self.assertLessEqual(len(squeezed), len(archive.gz(data)))
        self.assertEqual(subprocess.run(["gzip", "-dc"], input=squeezed, check=True, capture_output=True).stdout, data)


if __name__ == "__main__":
    unittest.main()
