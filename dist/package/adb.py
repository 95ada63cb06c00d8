"""The package format of apk-tools 3 (apk-v3(5)): one tree of values, then the bytes of the files.

    file     "ADBd", then raw deflate of:  "ADB." schema  block...
    block    u32 type << 30 | size, payload, zeros up to a multiple of 8; types: 0 the tree, 2 the bytes of a file (u32 directory, u32 file, bytes)
    tree     u8 0, u8 0, u16 0, value of the root; then everything that values point to
    value    u32: 4 bits of type, 28 bits of number, or offset in the tree

All numbers are little-endian. Equal values are stored once. Arrays of directories, files and dependencies are sorted, because apk searches them by halving.
The package is not signed inside: OpenWrt trusts the signature of an index, and a single file is checked by its minisign signature.
"""

import hashlib
import struct
import zlib

SCHEMA_PACKAGE = 0x676B6370

_INT, _INT32, _INT64 = 0x1, 0x2, 0x3
_BLOB8, _BLOB16, _BLOB32 = 0x8, 0x9, 0xA
_ARRAY, _OBJECT = 0xD, 0xE
_NULL = 0

# Slots of the objects; slot 0 is the number of slots.
_INFO = {
    "name": 1, "version": 2, "hashes": 3, "description": 4, "arch": 5, "license": 6, "origin": 7, "maintainer": 8, "url": 9,
    "repo-commit": 10, "build-time": 11, "installed-size": 12, "depends": 15, "provides": 16,
}
_SCRIPTS = {"pre-install": 2, "post-install": 3, "pre-deinstall": 4, "post-deinstall": 5, "pre-upgrade": 6, "post-upgrade": 7}
# "Not" and "any version", as apk writes it.
_CONFLICT = 16 | 7

# How many bytes of the SHA-256 name a package.
_ID_LENGTH = 20


class Tree:
    """Collects values; each method returns the 32-bit value that stands for what was stored."""

    def __init__(self):
        self.data = bytearray(8)
        self.stored = {}

    def _store(self, raw, alignment, shared=True):
        key = (raw, alignment)
        if shared and key in self.stored:
            return self.stored[key]
        self.data += bytes(-len(self.data) % alignment)
        offset = len(self.data)
        if offset >> 28:
            raise ValueError("too much for one package")
        self.data += raw
        if shared:
            self.stored[key] = offset
        return offset

    def number(self, value):
        if value < 1 << 28:
            return _INT << 28 | value
        if value < 1 << 32:
            return _INT32 << 28 | self._store(struct.pack("<I", value), 4)
        return _INT64 << 28 | self._store(struct.pack("<Q", value), 8)

    def blob(self, raw, shared=True):
        if not raw:
            return _NULL
        if len(raw) < 1 << 8:
            return _BLOB8 << 28 | self._store(struct.pack("<B", len(raw)) + raw, 1, shared)
        if len(raw) < 1 << 16:
            return _BLOB16 << 28 | self._store(struct.pack("<H", len(raw)) + raw, 2, shared)
        return _BLOB32 << 28 | self._store(struct.pack("<I", len(raw)) + raw, 4, shared)

    def _slots(self, kind, values):
        while values and values[-1] == _NULL:
            values.pop()
        if not values:
            return _NULL
        words = [len(values) + 1, *values]
        return kind << 28 | self._store(struct.pack(f"<{len(words)}I", *words), 4)

    def object(self, slots):
        return self._slots(_OBJECT, [slots.get(i, _NULL) for i in range(1, max(slots, default=0) + 1)])

    def array(self, values):
        # apk writes arrays inside objects with the type of an object, and reads either.
        return self._slots(_ARRAY, list(values))


def _text(tree, text):
    return tree.blob(text.encode())


def _acl(tree, node):
    return tree.object({1: tree.number(node.mode), 2: _text(tree, node.user), 3: _text(tree, node.group)})


def _file(tree, node, epoch):
    slots = {1: _text(tree, node.path.rsplit("/", 1)[-1]), 2: _acl(tree, node), 4: tree.number(epoch)}
    if node.kind == "link":
        slots[3] = tree.number(len(node.target))
        slots[6] = tree.blob(struct.pack("<H", 0o120000) + node.target.encode())
    else:
        slots[3] = tree.number(len(node.data))
        slots[5] = tree.blob(hashlib.sha256(node.data).digest())
    return tree.object(slots)


def _dependency(tree, mark, name):
    return tree.object({1: _text(tree, name), **({3: tree.number(_CONFLICT)} if mark == "!" else {})})


def _directories(nodes):
    """(name, node, files) of every directory, sorted by the bytes of the name."""
    found = {}
    for node in nodes:
        if node.kind == "dir":
            found[node.path] = (node, [])
    for node in nodes:
        if node.kind != "dir":
            found[node.path.rpartition("/")[0]][1].append(node)
    for path in sorted(found, key=str.encode):
        node, files = found[path]
        yield path, node, sorted(files, key=lambda n: n.path.rsplit("/", 1)[-1].encode())


def _block(kind, payload):
    size = len(payload) + 4
    if size >> 30:
        raise ValueError("too much for one block")
    return struct.pack("<I", kind << 30 | size) + payload + bytes(-size % 8)


def package(info, hooks, nodes, epoch, squeeze=None):
    """A package as bytes. `nodes` has every directory before what lies in it; `info["depends"]` is a list of (mark, name), "!" for a conflict.
    `squeeze`, if there is one, makes raw deflate of what is in the files."""
    tree = Tree()
    directories = list(_directories(nodes))
    size = sum(len(n.data) for n in nodes) or 1
    slots = {}
    for key, value in {**info, "installed-size": size}.items():
        if key == "depends":
            slots[_INFO[key]] = tree.array([_dependency(tree, *d) for d in sorted(value, key=lambda d: d[1].encode())])
        else:
            slots[_INFO[key]] = tree.number(value) if isinstance(value, int) else _text(tree, value)
    # The name of the package is a hash of the tree, in which stand zeros for it at first.
    slots[_INFO["hashes"]] = tree.blob(bytes(_ID_LENGTH), shared=False)
    place = (slots[_INFO["hashes"]] & 0x0FFFFFFF) + 1
    root = {
        1: tree.object(slots),
        2: tree.array([
            tree.object({1: _text(tree, path), 2: _acl(tree, node), 3: tree.array([_file(tree, f, epoch) for f in files])})
            for path, node, files in directories
        ]),
        3: tree.object({_SCRIPTS[kind]: tree.blob(text) for kind, text in hooks.items()}),
    }
    struct.pack_into("<I", tree.data, 4, tree.object(root))
    tree.data[place : place + _ID_LENGTH] = hashlib.sha256(tree.data).digest()[:_ID_LENGTH]

    head = b"ADB." + struct.pack("<I", SCHEMA_PACKAGE) + _block(0, bytes(tree.data))
    body = []
    for i, (_, _, files) in enumerate(directories, 1):
        for j, node in enumerate(files, 1):
            if node.kind == "file" and node.data:
                body.append(_block(2, struct.pack("<II", i, j) + node.data))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    if not squeeze:
        return b"ADBd" + deflate.compress(head + b"".join(body)) + deflate.flush()
    # One stream of two parts: the tree is another one for every CPU name, the files are not.
    return b"ADBd" + deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH) + squeeze(b"".join(body))
