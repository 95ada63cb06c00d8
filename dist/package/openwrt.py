"""OpenWrt: .ipk for opkg (24.10) and .apk for apk-tools 3 (25.12 and later), from the same packages.

`ctrl-exec-agent` is small: agent and executor only (the router profile). `ctrl-exec` is everything, for a router that is a dispatcher; a host has one of
the two.
"""

import hashlib

import adb
import archive
import scripts
import texts
from archive import Node
from contents import OPENWRT
from release import MAINTAINER


class Package:
    def __init__(self, name, profile, parts, about, accounts, services, other):
        self.name = name
        self.profile = profile
        self.parts = parts
        self.about = about
        self.accounts = accounts
        # In the order in which they start.
        self.services = services
        # The package that cannot be there at the same time.
        self.other = other


PACKAGES = (
    Package("ctrl-exec-agent", "router", ("base", "agent"), texts.AGENT, ("ctrl-exec-agent",), ("ctrl-exec-exec", "ctrl-exec-agent"), "ctrl-exec"),
    Package("ctrl-exec", "full", ("base", "agent", "dispatcher"), texts.WHOLE, ("ctrl-exec-agent", "ctrl-exec"),
            ("ctrl-exec-exec", "ctrl-exec-agent", "ctrl-exec-maintenance"), "ctrl-exec-agent"),
)


def conffiles(package):
    """Kept by a firmware upgrade, and by the package manager when the user has changed them. Directories are allowed."""
    lines = ["/etc/ctrl-exec-agent/"]
    if "dispatcher" in package.parts:
        lines.append("/etc/ctrl-exec/")
    return lines


def script(release, package, name):
    values = {
        "PACKAGE": package.name,
        "ACCOUNTS": " ".join(package.accounts),
        "SERVICES": " ".join(package.services),
        "STOPPED": " ".join((*reversed(package.services), *(("ctrl-exec-api",) if "dispatcher" in package.parts else ()))),
    }
    return scripts.expand(release, "openwrt", name, OPENWRT, package.parts, values)


def build(release, contents, binary, package, cpu):
    """Yields (file name, bytes): the .ipk, then the .apk, for one CPU name."""
    nodes = contents.nodes(OPENWRT, package.parts, binary, documents=False)
    configs = conffiles(package) + [f"/{n.path}" for n in nodes if n.path.startswith("etc/config/")]
    yield f"{package.name}_{release.version.ipk}_{cpu}.ipk", ipk(release, package, nodes, configs, cpu)
    yield f"{package.name}-{release.version.apk_openwrt}_{cpu}.apk", apk(release, package, nodes, configs, cpu)


def ipk(release, package, nodes, configs, cpu):
    files = archive.with_parents(nodes)
    size = sum(len(n.data) for n in files)
    title, body = package.about
    fields = [
        f"Package: {package.name}",
        f"Version: {release.version.ipk}",
        "Depends: ",
        f"Conflicts: {package.other}",
        "Source: ctrl-exec",
        f"License: {release.licence or 'not stated'}",
        "Section: net",
        f"SourceDateEpoch: {release.epoch}",
        f"Maintainer: {MAINTAINER}",
        f"Require-User: {' '.join(f'{a}:{a}' for a in package.accounts)}",
        f"Architecture: {cpu}",
        f"Installed-Size: {size}",
        f"Description: {title}",
        *(f" {line}" for line in body.splitlines()),
    ]
    control = [
        Node("control", "file", 0o644, data=("\n".join(f for f in fields if f != "Depends: ") + "\n").encode()),
        Node("conffiles", "file", 0o644, data="".join(f"{c}\n" for c in configs).encode()),
        Node("postinst", "file", 0o755, data=script(release, package, "postinst")),
        Node("prerm", "file", 0o755, data=script(release, package, "prerm")),
    ]
    packed = archive.gz_squeezed if package.profile == "router" else archive.gz
    # opkg reads a gzipped tar of three members, in this order.
    members = [
        Node("debian-binary", "file", 0o644, data=b"2.0\n"),
        Node("data.tar.gz", "file", 0o644, data=packed(archive.tar(files, release.epoch, root=True))),
        Node("control.tar.gz", "file", 0o644, data=archive.gz(archive.tar(control, release.epoch, root=True))),
    ]
    return archive.gz(archive.tar(members, release.epoch))


def apk(release, package, nodes, configs, cpu):
    # What opkg has in its control archive, OpenWrt's functions look for here under apk.
    folder = f"lib/apk/packages/{package.name}"
    nodes = [*nodes, Node(f"{folder}.conffiles", "file", 0o644, data="".join(f"{c}\n" for c in configs).encode())]
    static = [n for n in nodes if f"/{n.path}" in configs]
    if static:
        text = "".join(f"/{n.path} {hashlib.sha256(n.data).hexdigest()}\n" for n in static)
        nodes.append(Node(f"{folder}.conffiles_static", "file", 0o644, data=text.encode()))
    nodes.append(Node(f"{folder}.rusers", "file", 0o644, data=" ".join(f"{a}:{a}" for a in package.accounts).encode() + b"\n"))
    nodes.append(Node(f"{folder}.list", "file", 0o644, data="".join(f"/{p}\n" for p in sorted(n.path for n in nodes)).encode()))
    postinst = script(release, package, "postinst")
    title, _ = package.about
    info = {
        "name": package.name,
        "version": release.version.apk_openwrt,
        "description": title,
        "arch": cpu,
        "license": release.licence or "not stated",
        "origin": "ctrl-exec",
        "maintainer": MAINTAINER,
        "url": release.homepage or "",
        "build-time": release.epoch,
        "depends": [("!", package.other)],
    }
    shell, rest = postinst.split(b"\n", 1)
    hooks = {
        "post-install": postinst,
        "post-upgrade": shell + b"\nexport PKG_UPGRADE=1\n" + rest,
        "pre-deinstall": script(release, package, "prerm"),
    }
    return adb.package(info, hooks, archive.with_parents(nodes), release.epoch, archive.squeeze if package.profile == "router" else None)
