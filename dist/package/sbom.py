"""CycloneDX 1.6: what is inside an artefact, down to each library that is linked, with version, licence and checksum.

The libraries are those that cargo resolves for the target and the features of the profile, without procedural macros and without what only tests use:
they are what the linker gets. Checksums are those of Cargo.lock. Nothing in it is random: the serial number is a hash of the rest.
"""

import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
import uuid

from release import Refused


class Crate:
    def __init__(self, name, version, licence, checksum):
        self.name = name
        self.version = version
        self.licence = licence
        self.checksum = checksum
        self.needs = set()

    @property
    def purl(self):
        return f"pkg:cargo/{self.name}@{self.version}"


PROFILES = {"full": (), "router": ("--no-default-features",)}


def cargo():
    """rustup's cargo where there is one, else the distribution's."""
    return os.environ.get("CARGO") or shutil.which("cargo") or "/usr/bin/cargo"


def resolve(root, triple, profile):
    """The crates that are linked for a target, sorted, each with the ones it needs; and those that the program itself needs."""
    command = [
        cargo(), "tree", "--locked", "--edges", "normal,no-proc-macro", "--target", triple, *PROFILES[profile],
        "--prefix", "depth", "--format", " {p}|{l}", "--charset", "ascii",
    ]
    try:
        run = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Refused("cargo is needed to list the libraries: run 'make deps'") from error
    except subprocess.CalledProcessError as error:
        raise Refused(f"cargo cannot resolve the libraries for {triple}: {error.stderr.strip()}") from error
    return parse(run.stdout, checksums(root))


def checksums(root):
    lock = tomllib.loads((root / "Cargo.lock").read_text())
    return {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}


_LINE = re.compile(r"(\d+) (\S+) v(\S+)(?: \(.*?\))*\|(.*?)(?: \(\*\))?$")


def parse(text, sums):
    known, path, roots = {}, [], set()
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            raise Refused(f"cannot read this line of 'cargo tree': {line}")
        depth, name, version, licence = int(match[1]), match[2], match[3], match[4].removesuffix(" (*)").strip()
        del path[depth:]
        if depth == 0:
            path.append(None)
            continue
        if (name, version) not in sums:
            raise Refused(f"{name} {version} is not in Cargo.lock")
        crate = known.setdefault((name, version), Crate(name, version, licence, sums[name, version]))
        (roots if path[-1] is None else path[-1].needs).add(crate.purl)
        path.append(crate)
    if not known:
        raise Refused("cargo lists no library at all")
    return [known[key] for key in sorted(known)], sorted(roots)


def bill(release, name, artefact, binaries, resolved):
    """One document as bytes. `artefact` is the bytes it describes; `binaries` lists what executables are in it."""
    timestamp = datetime.datetime.fromtimestamp(release.epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    crates = {c.purl: c for found, _ in resolved for c in found}
    roots = sorted({purl for _, needed in resolved for purl in needed})
    version = release.version.plain
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": timestamp,
            "tools": {"components": [{"type": "application", "name": "ctrl-exec dist/package", "version": version}]},
            "component": {
                "type": "application",
                "bom-ref": "artefact",
                "name": name,
                "version": version,
                "purl": f"pkg:generic/ctrl-exec@{version}",
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(artefact).hexdigest()}],
            },
        },
        "components": [
            *(
                {
                    "type": "file",
                    "bom-ref": f"binary-{b.arch.name}-{b.profile}",
                    "name": f"ctrl-exec ({b.arch.name}, {b.profile})",
                    "version": version,
                    "hashes": [{"alg": "SHA-256", "content": b.sha256}],
                }
                for b in binaries
            ),
            *(component(crates[purl]) for purl in sorted(crates)),
        ],
        "dependencies": [
            {"ref": "artefact", "dependsOn": [f"binary-{b.arch.name}-{b.profile}" for b in binaries]},
            *({"ref": f"binary-{b.arch.name}-{b.profile}", "dependsOn": roots} for b in binaries),
            *({"ref": purl, "dependsOn": sorted(crates[purl].needs)} for purl in sorted(crates)),
        ],
    }
    if release.licence:
        document["metadata"]["component"]["licenses"] = [{"expression": release.licence}]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    document["serialNumber"] = uuid.UUID(bytes=digest[:16], version=5).urn
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def component(crate):
    entry = {
        "type": "library",
        "bom-ref": crate.purl,
        "name": crate.name,
        "version": crate.version,
        "purl": crate.purl,
    }
    if crate.licence:
        # Old manifests write "MIT/Apache-2.0" for OR.
        entry["licenses"] = [{"expression": crate.licence.replace("/", " OR ")}]
    if crate.checksum:
        entry["hashes"] = [{"alg": "SHA-256", "content": crate.checksum}]
    return entry
