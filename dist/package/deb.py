"""Debian packages, in place of those of 0.12.3.

`ctrl-exec-runtime` has the executable; `ctrl-exec-agent` and `ctrl-exec-dispatcher` have names, units and scripts, and need exactly its version. It takes the
place of `ctrl-exec-common`, the Perl library of 0.12.3, whose users are replaced in the same run. It is not called `ctrl-exec`, because that name has meant
the dispatcher since before 0.8.11, and still does (Provides).
"""

import hashlib

import archive
import scripts
import texts
from archive import Node
from contents import DEBIAN
from release import MAINTAINER


class Package:
    def __init__(self, name, parts, about, relations, maintained):
        self.name = name
        self.parts = parts
        self.about = about
        self.relations = relations
        # Name of its scripts; without there are none.
        self.maintained = maintained


def packages(version):
    same = f"ctrl-exec-runtime (= {version})"
    return (
        Package("ctrl-exec-runtime", ("base",), texts.RUNTIME, (
            ("Provides", f"ctrl-exec-common (= {version})"),
            ("Conflicts", "ctrl-exec-common"),
            ("Replaces", "ctrl-exec-common"),
            ("Breaks", "ctrl-exec-agent (<< 1.0.0~), ctrl-exec-dispatcher (<< 1.0.0~)"),
        ), None),
        Package("ctrl-exec-agent", ("agent",), texts.AGENT, (("Depends", f"{same}, adduser"),), "agent"),
        Package("ctrl-exec-dispatcher", ("dispatcher",), texts.DISPATCHER, (
            ("Depends", f"{same}, adduser"),
            ("Provides", f"ctrl-exec (= {version})"),
            ("Conflicts", "ctrl-exec (<< 0.8.11~)"),
            ("Replaces", "ctrl-exec (<< 0.8.11~)"),
        ), "dispatcher"),
    )


def build(release, contents, binary, crates, sbom):
    """Yields (file name, bytes) of the packages for one architecture. `sbom` describes the executable."""
    for package in packages(release.version.deb):
        nodes = contents.nodes(DEBIAN, package.parts, binary)
        doc = f"usr/share/doc/{package.name}"
        runtime = "base" in package.parts
        nodes.append(Node(f"{doc}/changelog.Debian.gz", "file", 0o644, data=archive.gz(texts.debian_changelog(release, "ctrl-exec"))))
        nodes.append(Node(f"{doc}/copyright", "file", 0o644, data=texts.debian_copyright(release, crates if runtime else ())))
        if runtime:
            nodes.append(Node("usr/share/ctrl-exec/sbom.json", "file", 0o644, data=sbom))
        overrides = release.root / "dist/package/files/lintian" / package.name
        if overrides.is_file():
            nodes.append(Node(f"usr/share/lintian/overrides/{package.name}", "file", 0o644, data=overrides.read_bytes()))
        yield f"{package.name}_{release.version.deb}_{binary.arch.deb}.deb", assemble(release, package, binary, nodes)


def assemble(release, package, binary, nodes):
    files = archive.with_parents(nodes)
    data = archive.tar(files, release.epoch, root=True)
    control = [Node("control", "file", 0o644, data=control_file(release, package, binary, files))]
    sums = "".join(f"{hashlib.md5(n.data, usedforsecurity=False).hexdigest()}  {n.path}\n" for n in files if n.kind == "file")
    control.append(Node("md5sums", "file", 0o644, data=sums.encode()))
    if package.maintained:
        for kind in ("postinst", "postrm", "prerm"):
            text = scripts.expand(release, "deb", f"{package.maintained}.{kind}", DEBIAN, package.parts)
            control.append(Node(kind, "file", 0o755, data=text))
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", archive.xz(archive.tar(control, release.epoch, root=True))),
        ("data.tar.xz", archive.xz(data)),
    ]
    return archive.ar(members, release.epoch)


def control_file(release, package, binary, files):
    kib = sum((len(n.data) + 1023) // 1024 if n.kind == "file" else 1 for n in files)
    title, body = package.about
    lines = [
        f"Package: {package.name}",
        "Source: ctrl-exec",
        f"Version: {release.version.deb}",
        f"Architecture: {binary.arch.deb}",
        f"Maintainer: {MAINTAINER}",
        f"Installed-Size: {kib}",
        *(f"{field}: {value}" for field, value in package.relations),
        "Section: admin",
        "Priority: optional",
        *([f"Homepage: {release.homepage}"] if release.homepage else []),
        f"Description: {title}",
        *(f" {line}" for line in body.splitlines()),
    ]
    return ("\n".join(lines) + "\n").encode()
