"""What is being released: version, time, sources, and which architecture is called what by whom."""

import hashlib
import os
import pathlib
import re
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAINTAINER = "ctrl-exec maintainers <maintainers@ctrl-exec.invalid>"
SUMMARY = "allowlisted scripts on remote hosts over mutual TLS"


class Refused(Exception):
    """Says whose fault it is and what to do; printed without a trace."""


class Arch:
    """One machine type. `name` is the suffix of the binary in target/dist; None where a distribution does not have it."""

    def __init__(self, name, triple, machine, deb=None, alpine=None, oci=None, openwrt=()):
        self.name = name
        self.triple = triple
        # e_machine and the class byte of the ELF header: a binary of another machine never gets into a package.
        self.machine = machine
        self.deb = deb
        self.alpine = alpine
        self.oci = oci
        self.openwrt = openwrt


# OpenWrt names its package architectures by CPU, and refuses packages for another name even if they would run: the same static binary is
# packed once for each of the common ones.
ARCHES = (
    Arch("x86_64", "x86_64-unknown-linux-musl", (2, 62), "amd64", "x86_64", {"architecture": "amd64"}, ("x86_64",)),
    Arch("aarch64", "aarch64-unknown-linux-musl", (2, 183), "arm64", "aarch64", {"architecture": "arm64", "variant": "v8"},
         ("aarch64_generic", "aarch64_cortex-a53", "aarch64_cortex-a72")),
    Arch("armv7", "armv7-unknown-linux-musleabihf", (1, 40), "armhf", "armv7", {"architecture": "arm", "variant": "v7"},
         ("arm_cortex-a7_neon-vfpv4", "arm_cortex-a9_vfpv3-d16", "arm_cortex-a15_neon-vfpv4")),
    Arch("mipsel", "mipsel-unknown-linux-musl", (1, 8), openwrt=("mipsel_24kc",)),
)


# What a release consists of. A router build for x86_64 and a full one for mipsel are packed too where they are there.
OFFERED = ("x86_64", "aarch64", "aarch64-router", "armv7", "armv7-router", "mipsel-router")


class Version:
    """One version in the notation of each format. `-dev` and the like sort before the release everywhere."""

    def __init__(self, text):
        match = re.fullmatch(r"(\d+\.\d+\.\d+)(?:-(dev|alpha|beta|rc)\.?(\d*))?", text)
        if not match:
            raise Refused(f"version '{text}' of Cargo.toml has no notation in packages: use N.N.N, N.N.N-dev, N.N.N-rc.N")
        number, word, count = match.groups()
        self.plain = text
        self.deb = number + (f"~{word}{count}" if word else "") + "-1"
        # apk knows a fixed set of suffixes.
        suffix = {"dev": "pre"}.get(word, word)
        self.apk = number + (f"_{suffix}{count}" if word else "") + "-r0"
        self.ipk = number + (f"~{word}{count}" if word else "") + "-r1"
        self.apk_openwrt = number + (f"_{suffix}{count}" if word else "") + "-r1"


class Binary:
    """A built executable. `profile` is `full` or `router` (agent and executor only)."""

    def __init__(self, arch, profile, path):
        self.arch = arch
        self.profile = profile
        self.path = path
        self.data = path.read_bytes()
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        head = self.data[:20]
        little = head[:4] == b"\x7fELF" and head[5] == 1
        found = (head[4], int.from_bytes(head[18:20], "little")) if little else None
        if found != arch.machine:
            raise Refused(f"{path} is no {arch.name} executable: build it again")


class Release:
    """Everything that the packages are made of, and nothing that depends on where or when they are made."""

    def __init__(self, binaries, root=ROOT, epoch=None):
        self.root = root
        manifest = tomllib.loads((root / "Cargo.toml").read_text())["package"]
        self.version = Version(manifest["version"])
        self.licence = manifest.get("license")
        self.homepage = manifest.get("homepage") or manifest.get("repository")
        self.epoch = epoch if epoch is not None else source_date(root)
        self.binaries = find_binaries(binaries)
        self.missing = [f"ctrl-exec-{name}" for name in OFFERED if (name.removesuffix("-router"), "router" if name.endswith("-router") else "full") not in self.binaries]

    def binary(self, arch, profile="full"):
        return self.binaries.get((arch.name, profile))

    def text(self, path):
        return (self.root / path).read_bytes()


def find_binaries(folder):
    found = {}
    for arch in ARCHES:
        for profile, suffix in (("full", ""), ("router", "-router")):
            path = folder / f"ctrl-exec-{arch.name}{suffix}"
            if path.is_file():
                found[arch.name, profile] = Binary(arch, profile, path)
    return found


def source_date(root):
    """SOURCE_DATE_EPOCH, else the time of the last commit."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        try:
            text = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            raise Refused(f"set SOURCE_DATE_EPOCH: the time of the last commit cannot be found out ({error})") from error
    if not re.fullmatch(r"\d{1,11}", text):
        raise Refused(f"SOURCE_DATE_EPOCH must be seconds since 1970, not '{text}'")
    return int(text)
