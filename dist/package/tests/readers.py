"""Readers for the formats, for the tests alone. Nothing here comes from the writers: they would agree about the same mistake."""

import gzip
import io
import lzma
import struct
import tarfile
import zlib


def tar_entries(data):
    """name -> (kind, mode, owner, group, bytes or target); the order is kept."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for info in archive:
            name = info.name.removeprefix("./").rstrip("/") or "."
            kind = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "link", tarfile.REGTYPE: "file"}[info.type]
            body = archive.extractfile(info).read() if kind == "file" else info.linkname.encode()
            found[name] = (kind, info.mode, info.uname or info.uid, info.gname or info.gid, body, info.mtime, info.pax_headers)
    return found


def ar_members(data):
    assert data[:8] == b"!<arch>\n"
    place, found = 8, {}
    while place < len(data):
        header = data[place : place + 60]
        assert header[58:] == b"`\n"
        size = int(header[48:58])
        found[header[:16].decode().strip()] = data[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    return found


def deb(data):
    members = ar_members(data)
    assert list(members) == ["debian-binary", "control.tar.xz", "data.tar.xz"]
    return tar_entries(lzma.decompress(members["control.tar.xz"])), tar_entries(lzma.decompress(members["data.tar.xz"]))


def fields(text):
    """A control file as a dictionary."""
    found, last = {}, None
    for line in text.decode().splitlines():
        if line.startswith(" "):
            found[last] += "\n" + line[1:]
        else:
            last, _, value = line.partition(": ")
            assert last and last not in found, line
            found[last] = value
    return found


def ipk(data):
    outer = tar_entries(gzip.decompress(data))
    assert list(outer) == ["debian-binary", "data.tar.gz", "control.tar.gz"]
    assert outer["debian-binary"][4] == b"2.0\n"
    return tar_entries(gzip.decompress(outer["control.tar.gz"][4])), tar_entries(gzip.decompress(outer["data.tar.gz"][4]))


def gzip_streams(data):
    """The gzip members of a file, each as (compressed, plain)."""
    found = []
    while data:
        engine = zlib.decompressobj(16 + zlib.MAX_WBITS)
        plain = engine.decompress(data) + engine.flush()
        assert engine.eof
        found.append((data[: len(data) - len(engine.unused_data)], plain))
        data = engine.unused_data
    return found


class Adb:
    """Walks the tree of an apk-tools 3 package, checking every offset."""

    def __init__(self, data):
        assert data[:4] == b"ADBd"
        plain = zlib.decompress(data[4:], -15)
        assert plain[:4] == b"ADB." and plain[4:8] == b"pckg"
        place, self.files, self.tree = 8, {}, None
        while place < len(plain):
            word = int.from_bytes(plain[place : place + 4], "little")
            kind, size = word >> 30, word & 0x3FFFFFFF
            body = plain[place + 4 : place + size]
            end = place + (size + 7) // 8 * 8
            assert end <= len(plain) and not any(plain[place + size : end])
            if kind == 0:
                assert self.tree is None and place == 8
                self.tree = body
            else:
                assert kind == 2 and self.tree
                key = struct.unpack("<II", body[:8])
                assert not self.files or key > max(self.files)
                self.files[key] = body[8:]
            place = end
        assert self.tree[0] == 0
        self.root = struct.unpack("<I", self.tree[4:8])[0]

    def slots(self, value):
        """Of an object or array; index 0 is its length."""
        if value == 0:
            return [1]
        assert value >> 28 in (13, 14), hex(value)
        offset = value & 0xFFFFFFF
        assert offset % 4 == 0
        count = struct.unpack_from("<I", self.tree, offset)[0]
        assert count > 1
        return list(struct.unpack_from(f"<{count}I", self.tree, offset))

    def blob(self, value):
        if value == 0:
            return b""
        width = {8: 1, 9: 2, 10: 4}[value >> 28]
        offset = value & 0xFFFFFFF
        assert offset % width == 0
        size = int.from_bytes(self.tree[offset : offset + width], "little")
        body = self.tree[offset + width : offset + width + size]
        assert len(body) == size
        return body

    def number(self, value):
        kind, offset = value >> 28, value & 0xFFFFFFF
        if kind == 1:
            return offset
        width = {2: 4, 3: 8}[kind]
        return int.from_bytes(self.tree[offset : offset + width], "little")
