#!/usr/bin/python3
"""shim.py ERRNO CALL[,CALL...] PROGRAM ARGS...: executes the program on a kernel where these system calls fail.

A call may carry a condition on its first argument: `unshare:NEWPID` and `clone:NEWPID` fail only with this flag. clone3 hides its flags
in memory, so a condition on clone takes clone3 away as a whole, with ENOSYS."""
import ctypes, errno, os, platform, struct, sys

NR = {
    "x86_64": dict(arch=0xC000003E, fork=57, vfork=58, clone=56, unshare=272, mount=165, landlock_create_ruleset=444, mount_setattr=442,
                   close_range=436, clone3=435, pidfd_open=434, openat2=437, fsopen=430, seccomp=317, open_tree=428, move_mount=429,
                   pidfd_send_signal=424, memfd_create=319),
    "aarch64": dict(arch=0xC00000B7, clone=220, unshare=97, mount=40, landlock_create_ruleset=444, mount_setattr=442, close_range=436,
                    clone3=435, pidfd_open=434, openat2=437, fsopen=430, seccomp=277, open_tree=428, move_mount=429,
                    pidfd_send_signal=424, memfd_create=279),
}[platform.machine()]
FLAGS = dict(NEWNS=0x20000, NEWCGROUP=0x2000000, NEWUTS=0x4000000, NEWIPC=0x8000000, NEWUSER=0x10000000, NEWPID=0x20000000,
             NEWNET=0x40000000)
LD, JEQ, JSET, RET = 0x20, 0x15, 0x45, 0x06
ALLOW = 0x7FFF0000


def error(name):
    return 0x00050000 | getattr(errno, name)


program = []


def add(code, jt, jf, k):
    program.append(struct.pack("HBBI", code, jt, jf, k))


def deny(number, word, flag=None):
    if flag is None:
        add(JEQ, 0, 1, number)
        add(RET, 0, 0, error(word))
        return
    add(JEQ, 0, 4, number)
    add(LD, 0, 0, 16)
    add(JSET, 0, 1, flag)
    add(RET, 0, 0, error(word))
    add(LD, 0, 0, 0)


word, calls, command = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
add(LD, 0, 0, 4)
add(JEQ, 1, 0, NR["arch"])
add(RET, 0, 0, ALLOW)
add(LD, 0, 0, 0)
for call in calls:
    name, _, flag = call.partition(":")
    if name not in NR:
        continue
    if flag:
        deny(NR[name], word, FLAGS[flag])
        if name == "clone":
            deny(NR["clone3"], "ENOSYS")
    else:
        deny(NR[name], word)
add(RET, 0, 0, ALLOW)

code = b"".join(program)


class Prog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
prog = Prog(len(program), code)
# Root needs no no_new_privs for this, and must not have it: the executor would pass it on.
if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(prog), 0, 0) != 0:
    sys.exit("shim: " + os.strerror(ctypes.get_errno()))
os.execv(command[0], command)
