#!/usr/bin/env python3
"""Makes every package from the binaries in target/dist, with checksums, bills of material and signatures, and prints what it has made.

    main.py [--binaries DIR] [--out DIR] [--partial]

--partial takes the architectures that are there; without it a missing one ends the build.
"""

import argparse
import collections
import pathlib
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import alpine
import deb
import oci
import openwrt
import recipes
import sbom
import sign
from contents import Contents
from release import ARCHES, ROOT, Refused, Release


class Artefact:
    """One file that is handed out, and the executables that are in it."""

    def __init__(self, folder, name, data, binaries):
        self.folder = folder
        self.name = name
        self.data = data
        self.binaries = binaries


class Libraries:
    """What cargo resolves, once for each architecture and profile."""

    def __init__(self, release):
        self.release = release
        self.known = {}

    def of(self, binary):
        key = (binary.arch.name, binary.profile)
        if key not in self.known:
            self.known[key] = sbom.resolve(self.release.root, binary.arch.triple, binary.profile)
        return self.known[key]

    def bill(self, artefact):
        return sbom.bill(self.release, artefact.name, artefact.data, artefact.binaries, [self.of(b) for b in artefact.binaries])


def artefacts(release, contents, libraries):
    """Every artefact, one after the other: never more than one package in memory."""
    for arch in ARCHES:
        for profile in ("full", "router"):
            binary = release.binary(arch, profile)
            if binary:
                suffix = "-router" if profile == "router" else ""
                yield Artefact("binaries", f"ctrl-exec-{release.version.plain}-linux-{arch.name}{suffix}", binary.data, [binary])
        full = release.binary(arch)
        inner = full and sbom.bill(release, "ctrl-exec", full.data, [full], [libraries.of(full)])
        if full and arch.deb:
            for name, data in deb.build(release, contents, full, libraries.of(full)[0], inner):
                yield Artefact("debian", name, data, [full] if "-runtime_" in name else [])
        if full and arch.alpine:
            for name, data, whole in alpine.build(release, contents, full, inner):
                yield Artefact(f"alpine/{arch.alpine}", name, data, [full] if whole else [])
        for package in openwrt.PACKAGES:
            binary = release.binary(arch, package.profile)
            for cpu in arch.openwrt if binary else ():
                for name, data in openwrt.build(release, contents, binary, package, cpu):
                    yield Artefact(f"openwrt/{cpu}", name, data, [binary])
    images = [release.binary(a) for a in ARCHES if a.oci and release.binary(a)]
    if images:
        yield Artefact("oci", f"ctrl-exec-{release.version.plain}.oci.tar", oci.build(release, contents, images), images)
    for name, data in recipes.build(release):
        yield Artefact("recipes", name, data, [])


def write(out, artefact, libraries, signer):
    folder = out / artefact.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / artefact.name
    path.write_bytes(artefact.data)
    path.chmod(0o755 if artefact.folder == "binaries" else 0o644)
    bill = path.with_name(path.name + ".cdx.json")
    bill.write_bytes(libraries.bill(artefact))
    for file in (path, bill):
        sign.checksum(file)
        signer.sign(file)
    return len(artefact.data)


def table(rows, signer, contents, release):
    width = max(len(name) for name, _ in rows)
    print(f"{'artefact':<{width}}  {'KiB':>7}")
    for name, size in rows:
        print(f"{name:<{width}}  {(size + 1023) // 1024:>7}")
    how = "signed with a throwaway key" if signer.throwaway else "signed"
    print(f"{len(rows)} artefacts, each with .sha256, .cdx.json (CycloneDX 1.6) and .minisig ({how}; public key: minisign.pub)")
    if not release.licence:
        print("NO LICENCE: Cargo.toml has no 'license', so the packages say that none is stated, and nobody who gets them may pass them on")
    if release.missing:
        print(f"Not there, so without packages: {', '.join(release.missing)}")
    if contents.absent:
        folders = collections.Counter(path.rpartition("/")[0] for path in contents.absent)
        print(f"Not there, so not packaged: {', '.join(f'{n} of {folder}' for folder, n in sorted(folders.items()))}")


def main():
    parser = argparse.ArgumentParser(description="Makes every package of ctrl-exec.")
    parser.add_argument("--binaries", type=pathlib.Path, default=ROOT / "target/dist", help="where ctrl-exec-ARCH[-router] lie")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/dist/packages", help="replaced as a whole")
    parser.add_argument("--partial", action="store_true", help="take what architectures are there")
    options = parser.parse_args()
    try:
        release = Release(options.binaries)
        if not release.binaries:
            raise Refused(f"there is no ctrl-exec-ARCH in {options.binaries}: run 'make static'")
        if release.missing and not options.partial:
            raise Refused(f"missing in {options.binaries}: {', '.join(release.missing)} (--partial makes packages of what is there)")
        signer = sign.Signer(ROOT / "target/dist-key", release.epoch)
        contents, libraries = Contents(release), Libraries(release)
        fresh = options.out.with_name(options.out.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        rows = [(f"{a.folder}/{a.name}", write(fresh, a, libraries, signer)) for a in artefacts(release, contents, libraries)]
        signer.public_key(fresh / "minisign.pub")
        shutil.rmtree(options.out, ignore_errors=True)
        fresh.rename(options.out)
        table(rows, signer, contents, release)
    except Refused as refused:
        print(f"make dist: {refused}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
