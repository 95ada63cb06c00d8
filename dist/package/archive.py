"""Deterministic containers: tar, gzip, xz, ar.

Everything that could tell where or when a package was built is a parameter or left out: entries come in the order given, times are the one
epoch, owners are names with fixed numbers, gzip carries neither name nor time. One writer for all formats, so that a format cannot forget.
"""

import ctypes
import functools
import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import zlib


class Node:
    """One entry of an archive: a directory, a regular file or a symbolic link, with its owner by name."""

    def __init__(self, path, kind, mode, data=b"", target="", user="root", group="root", uid=0, gid=0):
        if path.startswith("/") or path.endswith("/") or "//" in path or ".." in path.split("/"):
            raise ValueError(f"'{path}' is not a plain relative path")
        self.path = path
        self.kind = kind
        self.mode = mode
        self.data = data
        self.target = target
        self.user = user
        self.group = group
        self.uid = uid
        self.gid = gid


def with_parents(nodes):
    """The nodes sorted by path, each directory that nobody named put in as 0755 root:root before what lies in it."""
    known = {}
    for node in nodes:
        if node.path in known:
            raise ValueError(f"'{node.path}' is there twice")
        known[node.path] = node
    for node in list(nodes):
        parts = node.path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            found = known.setdefault(parent, Node(parent, "dir", 0o755))
            if found.kind != "dir":
                raise ValueError(f"'{parent}' is a {found.kind}, but '{node.path}' lies in it")
    return [known[path] for path in sorted(known, key=lambda p: p.split("/"))]


def tar(nodes, epoch, *, prefix="./", root=False, sha1=False, end=True, names=True):
    """A tar archive as bytes.

    `prefix` stands before every path; `root` adds an entry for the top itself; `sha1` adds the checksum that apk reads from the extended
    header of regular files and links; without `end` the two closing blocks are missing (apk joins several archives into one stream);
    without `names` only the numbers of the owners are written.
    """
    out = io.BytesIO()
    archive = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT if sha1 else tarfile.GNU_FORMAT)
    if root:
        top = tarfile.TarInfo("./")
        top.type, top.mode, top.mtime = tarfile.DIRTYPE, 0o755, epoch
        if names:
            top.uname = top.gname = "root"
        archive.addfile(top)
    for node in nodes:
        info = tarfile.TarInfo(prefix + node.path)
        info.mode, info.mtime, info.uid, info.gid = node.mode, epoch, node.uid, node.gid
        if names:
            info.uname, info.gname = node.user, node.group
        if node.kind == "dir":
            info.type = tarfile.DIRTYPE
            info.name += "/"
            archive.addfile(info)
        elif node.kind == "link":
            info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, node.target
            if sha1:
                info.pax_headers = {"APK-TOOLS.checksum.SHA1": hashlib.sha1(node.target.encode()).hexdigest()}
            archive.addfile(info)
        else:
            info.size = len(node.data)
            if sha1:
                info.pax_headers = {"APK-TOOLS.checksum.SHA1": hashlib.sha1(node.data).hexdigest()}
            archive.addfile(info, io.BytesIO(node.data))
    if end:
        archive.close()
        return out.getvalue()
    return out.getvalue()


def gz(data):
    """gzip without name and time."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=9, mtime=0) as stream:
        stream.write(data)
    return out.getvalue()


ZOPFLI_FORMAT_DEFLATE = 2


class ZopfliOptions(ctypes.Structure):
    """As zopfli.h has it."""

    _fields_ = [(name, ctypes.c_int) for name in ("verbose", "verbose_more", "numiterations", "blocksplitting", "blocksplittinglast", "blocksplittingmax")]


@functools.lru_cache(maxsize=8)
def squeeze(data):
    """Raw deflate by Zopfli: some 2.5 % less than zlib's best, for a hundred times its time. Remembered, because one binary goes into several packages.

    The library, because its program makes 15 blocks of a MB at most: as many as pay are worth 4 KB of an agent for routers."""
    zopfli = ctypes.CDLL("libzopfli.so.1")
    options = ZopfliOptions()
    zopfli.ZopfliInitOptions(ctypes.byref(options))
    options.blocksplittingmax = 0
    out, size = ctypes.POINTER(ctypes.c_ubyte)(), ctypes.c_size_t()
    zopfli.ZopfliCompress(ctypes.byref(options), ZOPFLI_FORMAT_DEFLATE, data, ctypes.c_size_t(len(data)), ctypes.byref(out), ctypes.byref(size))
    try:
        return ctypes.string_at(out, size.value)
    finally:
        free = ctypes.CDLL(None).free
        free.argtypes = [ctypes.c_void_p]
        free(out)


def gz_squeezed(data):
    """gzip as `gz` makes it, by `squeeze`."""
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + squeeze(data) + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def xz(data):
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME)


def ar(members, epoch):
    """A Unix archive of (name, bytes), as dpkg wants it: owner 0, mode 100644."""
    out = [b"!<arch>\n"]
    for name, data in members:
        header = f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        if len(header) != 60:
            raise ValueError(f"'{name}' does not fit into an ar header")
        out.append(header.encode())
        out.append(data + (b"\n" if len(data) % 2 else b""))
    return b"".join(out)
