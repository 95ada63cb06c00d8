#!/usr/bin/env python3
"""Writes down whatever is written in whole trees of directories, by inotify: one line per event, in their order.

    watch.py LOG NAME=DIR...

A line is `NAME EVENTS PATH`. That somebody opens a file, reads it or closes it is none. `ready` is the first line. Directories that are made
later are watched too (files that were quicker are FOUND; UNWATCHED: it was not there any more); an event that the kernel had no room for is one
called OVERFLOW. Ends when it is told to, by a signal."""
import ctypes
import os
import struct
import sys

EVENTS = {
    0x2: "MODIFY", 0x4: "ATTRIB", 0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF",
}
WANTED = sum(EVENTS)
OVERFLOW, IGNORED, IS_DIR, ONLY_DIR = 0x4000, 0x8000, 0x40000000, 0x01000000


def main():
    log = open(sys.argv[1], "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    libc = ctypes.CDLL(None, use_errno=True)
    inotify = libc.inotify_init1(0)
    if inotify < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    watched = {}
    tops = {}

    def watch(name, base, new):
        """A tree on one file system. By way of its top, which stays open: the root that this process sees may become another one."""
        os.fchdir(tops[name])
        device = os.lstat(base).st_dev
        for path, dirs, files in os.walk(base, onerror=lost):
            dirs[:] = [d for d in dirs if not os.path.islink(os.path.join(path, d)) and os.lstat(os.path.join(path, d)).st_dev == device]
            number = libc.inotify_add_watch(inotify, os.fsencode(path), WANTED | ONLY_DIR)
            if number < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", path)
            watched[number] = (name, path)
            # Made before there was a watch.
            for entry in files if new else []:
                log.write(f"{name} FOUND /{os.path.normpath(os.path.join(path, entry))}\n")

    def lost(error):
        raise error

    for word in sys.argv[2:]:
        name, top = word.split("=", 1)
        tops[name] = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        watch(name, ".", False)
    log.write("ready\n")
    while True:
        events = os.read(inotify, 65536)
        at = 0
        while at < len(events):
            number, mask, _, length = struct.unpack_from("iIII", events, at)
            entry = events[at + 16:at + 16 + length].rstrip(b"\0").decode(errors="surrogateescape")
            at += 16 + length
            if mask & OVERFLOW:
                log.write("* OVERFLOW *\n")
                continue
            if mask & IGNORED or number not in watched:
                continue
            name, folder = watched[number]
            path = os.path.normpath(os.path.join(folder, entry))
            words = "+".join(word for bit, word in EVENTS.items() if mask & bit)
            log.write(f"{name} {words} /{path}\n")
            if mask & IS_DIR and mask & 0x180:
                try:
                    watch(name, path, True)
                except OSError as error:
                    # Gone again, most likely; whoever reads this decides.
                    log.write(f"{name} UNWATCHED /{path} ({error.strerror})\n")


main()
