"""Recipes for those who build themselves: the APKBUILD and the OpenWrt feed, each with its scripts as they are shipped."""

import alpine
import archive
import openwrt
import scripts
from archive import Node
from contents import ALPINE


def _script(path, data):
    return Node(path, "file", 0o755, data=data)


def build(release):
    """Yields (file name, bytes)."""
    hooks = ("pre-install", "post-install", "post-upgrade", "pre-deinstall")
    recipe = [Node("ctrl-exec/APKBUILD", "file", 0o644, data=release.text("dist/alpine/APKBUILD"))]
    recipe += [_script(f"ctrl-exec/ctrl-exec.{h}", scripts.expand(release, "alpine", f"ctrl-exec.{h}", ALPINE, alpine.PARTS)) for h in hooks]
    yield f"ctrl-exec-alpine-{release.version.plain}.tar.gz", _pack(release, recipe)

    feed = [Node("ctrl-exec/Makefile", "file", 0o644, data=release.text("dist/openwrt/Makefile"))]
    for package in openwrt.PACKAGES:
        for name in ("postinst", "prerm"):
            feed.append(_script(f"ctrl-exec/files/{package.name}.{name}", openwrt.script(release, package, name)))
    yield f"ctrl-exec-openwrt-feed-{release.version.plain}.tar.gz", _pack(release, feed)


def _pack(release, nodes):
    return archive.gz(archive.tar(archive.with_parents(nodes), release.epoch, prefix=""))
