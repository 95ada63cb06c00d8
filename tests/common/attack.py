#!/usr/bin/python3
"""Attacks from inside a script. Each runs in a process of its own and harms nothing even where it succeeds: files are opened and not
written, signals are number 0. Prints a line per attack: name, `open` or `stopped`, and why."""
import ctypes, errno, json, mmap, os, platform, resource, signal, socket, stat, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)
given = json.loads(sys.argv[1])
NR = {
    "x86_64": dict(ptrace=101, open_by_handle_at=304, name_to_handle_at=303, io_uring_setup=425, keyctl=250,
                   userfaultfd=323, process_vm_readv=310, pidfd_open=434, pidfd_getfd=438, add_key=248, clone3=435),
    "aarch64": dict(ptrace=117, open_by_handle_at=265, name_to_handle_at=264, io_uring_setup=425, keyctl=219,
                    userfaultfd=282, process_vm_readv=270, pidfd_open=434, pidfd_getfd=438, add_key=217, clone3=435),
}[platform.machine()]
MS_REMOUNT, MS_BIND = 32, 4096
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


def check(result):
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def call(name, *args):
    return check(libc.syscall(NR[name], *[ctypes.c_long(a) if isinstance(a, int) else a for a in args]))


def mount(source, target, kind, flags):
    check(libc.mount(source.encode() if source else None, target.encode(), kind.encode() if kind else None, flags, None))


def stopped(why):
    raise OSError(errno.EPERM, why)


def touch(path):
    """Opens for writing, writes nothing."""
    os.close(os.open(path, os.O_WRONLY))


def create(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def read_secret():
    if b"SECRET" not in open(given["key"], "rb").read():
        stopped("empty")


def list_secrets():
    if not os.listdir(os.path.dirname(given["socket"])):
        stopped("empty")


def forge_reply():
    frame = struct.pack(">iII", 0, 0, 0)
    others = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and stat.S_IFMT(os.fstat(int(name)).st_mode) != stat.S_IFDIR:
                others.append(int(name))
        except OSError:
            pass
    # A socket among the standard streams would do as well.
    others += [fd for fd in (0, 1, 2) if stat.S_ISSOCK(os.fstat(fd).st_mode)]
    if not others:
        stopped("descriptors 0 to 2 and no socket")
    for fd in others:
        os.write(fd, frame)


def inherited_write():
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISREG(os.fstat(int(name)).st_mode):
                os.write(int(name), b"")
                return
        except OSError:
            pass
    stopped("no file is open")


def executor_socket():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(5)
    s.connect(given["socket"])
    body = b"".join(struct.pack(">I", len(f)) + f for f in (b"r1", b"d1", given["other"].encode(), b"")) + struct.pack(">I", 0)
    s.sendall(struct.pack(">I", len(body)) + body)
    answer = s.recv(65536)
    if len(answer) < 4 or struct.unpack(">i", answer[:4])[0] != 0:
        stopped("no answer")


def remount_control():
    mount(None, given["etc"], None, MS_REMOUNT | MS_BIND)


def umount_control():
    check(libc.umount2(given["etc"].encode(), 2))


def user_namespace():
    check(libc.unshare(CLONE_NEWUSER))


def user_namespace_remount():
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    why = None
    for target in (given["etc"], os.path.dirname(given["socket"]), "/proc/sys"):
        for attempt in (lambda: mount(None, target, None, MS_REMOUNT | MS_BIND), lambda: check(libc.umount2(target.encode(), 2))):
            try:
                attempt()
                if target == "/proc/sys":
                    touch("/proc/sys/kernel/core_pattern")
                elif target == given["etc"]:
                    create(target + "/forged")
                else:
                    list_secrets()
                return
            except OSError as e:
                why = e
    raise why


def sub_mount():
    create(os.path.dirname(sys.argv[0]) + "/sub/forged")


def add_config():
    try:
        create(given["etc"] + "/forged")
    except OSError:
        create(given["etc"] + "/sub/forged")


def change_config():
    touch(given["etc"] + "/agent.conf")


def change_script():
    touch(sys.argv[0])


def add_script():
    create(os.path.dirname(sys.argv[0]) + "/forged")


def change_root_file():
    touch(given["data"] + "/root-file")


def create_root_file():
    create(given["data"] + "/forged")


def chown_file():
    os.chown(given["data"] + "/root-file", 1, -1)
    os.chown(given["data"] + "/root-file", 0, -1)


def core_pattern():
    touch("/proc/sys/kernel/core_pattern")


def modprobe_path():
    touch("/proc/sys/kernel/modprobe")


def uevent_helper():
    touch("/sys/kernel/uevent_helper")


def sysrq():
    touch("/proc/sysrq-trigger")


def cgroup_write():
    touch(given["cgroup"] + "/cgroup.procs")


def kill_executor():
    os.kill(given["executor"], 0)


def kill_front_end():
    os.kill(given["front_end"], 0)


def kill_supervisor():
    if given["ppid"] <= 1:
        stopped("its own init")
    os.kill(given["ppid"], 0)


def trace_executor():
    call("ptrace", 0x4206, given["executor"], 0, 0)


def trace_front_end():
    call("ptrace", 0x4206, given["front_end"], 0, 0)


def proc_executor():
    last = None
    base = "/proc/%d/" % given["executor"]

    def mapped():
        place = int(open(base + "maps").readline().split("-")[0], 16)
        with open(base + "mem", "rb") as mem:
            mem.seek(place)
            mem.read(8)

    # The numbers of the descriptors are no secret, what is behind them is.
    attempts = [lambda name=name: os.close(os.open(base + "fd/%d" % name, os.O_RDONLY)) for name in range(12)]
    attempts += [lambda: os.listdir(base + "root/"), lambda: os.listdir(base + "cwd/"), mapped, lambda: open(base + "environ", "rb").read(),
                 lambda: open(base + "mem", "r+b").close()]
    for attempt in attempts:
        try:
            attempt()
            return
        except OSError as e:
            # A socket behind a descriptor cannot be opened by anybody, but who is told so was let in.
            if e.errno == errno.ENXIO:
                return
            last = e
    raise last


def proc_init_root():
    os.listdir("/proc/1/root/")
    if os.stat("/proc/1/root/").st_ino == os.stat("/").st_ino and os.readlink("/proc/1/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
        stopped("its own init")


def see_processes():
    if not os.path.exists("/proc/%d/cmdline" % given["executor"]) or b"ctrl-exec" not in open("/proc/%d/cmdline" % given["executor"], "rb").read():
        stopped("not in sight")


def steal_descriptor():
    fd = call("pidfd_open", given["executor"], 0)
    call("pidfd_getfd", fd, 0, 0)


def device_node():
    path = given["scratch"] + "/node%d" % os.getpid()
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(*given["disk"]))
    os.unlink(path)


def raw_disk():
    os.close(os.open(given["disk_path"], os.O_RDONLY))


def kernel_memory():
    os.close(os.open("/dev/mem", os.O_RDONLY))


def open_by_handle():
    class Handle(ctypes.Structure):
        _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]

    handle, mount_id = Handle(128), ctypes.c_int()
    call("name_to_handle_at", -100, b"/usr", ctypes.byref(handle), ctypes.byref(mount_id), 0)
    root = os.open("/usr", os.O_RDONLY)
    os.close(call("open_by_handle_at", root, ctypes.byref(handle), os.O_RDONLY))


def setuid_binary():
    if os.geteuid() == 0:
        stopped("is root already")
    if os.popen(given["data"] + "/setuid-id -u").read().strip() != "0":
        stopped("uid is the same")


def file_capabilities():
    out = os.popen(given["data"] + "/filecap-cat /proc/self/status 2>/dev/null").read()
    eff = [int(l.split()[1], 16) for l in out.splitlines() if l.startswith("CapEff")]
    mine = [int(l.split()[1], 16) for l in open("/proc/self/status") if l.startswith("CapEff")]
    if not eff or eff[0] & ~mine[0] == 0:
        stopped("no capability more")


def fork_bomb():
    children = []
    try:
        for _ in range(300):
            child = os.fork()
            if child == 0:
                time.sleep(20)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def memory_hog():
    # 640 MiB, touched.
    mmap.mmap(-1, 640 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x8000).close()


def fill_tmp():
    path = "/tmp/fill-%d" % os.getpid()
    try:
        with open(path, "wb") as f:
            for _ in range(96):
                f.write(b"x" * (1 << 20))
    finally:
        os.unlink(path)


def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for _ in range(1500):
        os.open("/dev/null", os.O_RDONLY)


def core_dump():
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))


def manager_private():
    socket.socket(socket.AF_UNIX).connect("/run/systemd/private")


def manager_bus():
    socket.socket(socket.AF_UNIX).connect("/run/dbus/system_bus_socket")


def manager_ubus():
    socket.socket(socket.AF_UNIX).connect("/run/ubus/ubus.sock")


def abstract_socket():
    socket.socket(socket.AF_UNIX).connect("\0" + given["abstract"])


def tcp_connect():
    socket.create_connection(("127.0.0.1", given["port"]), 5).close()


def tcp6_connect():
    socket.create_connection(("::1", given["port6"]), 5).close()


def tcp_bind():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))


def udp_send():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"x", ("127.0.0.1", 9))


def raw_socket():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


def odd_socket():
    socket.socket(40, socket.SOCK_STREAM)  # AF_VSOCK


def terminal_input():
    import fcntl
    last = None
    for path in ("/dev/tty", "/dev/console", None):
        try:
            fd = 0 if path is None else os.open(path, os.O_RDWR | os.O_NOCTTY)
            fcntl.ioctl(fd, 0x5412, b"")
            return
        except OSError as e:
            last = e
    raise last


def io_uring():
    params = (ctypes.c_ubyte * 120)()
    call("io_uring_setup", 1, params)


def key_ring():
    call("keyctl", 0, ctypes.c_int(-3), 1)
    call("add_key", b"user", b"ce-test", b"x", 1, ctypes.c_int(-1))


def user_fault():
    call("userfaultfd", 1)


def read_executor_memory():
    place = int(open("/proc/self/maps").readline().split("-")[0], 16)
    buffer = ctypes.create_string_buffer(8)
    mine = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 8)
    other = (ctypes.c_ulong * 2)(place, 8)
    call("process_vm_readv", given["executor"], mine, 1, other, 1, 0)


def hard_link_out():
    link = given["data"] + "/w/link-%d" % os.getpid()
    os.link(given["data"] + "/root-file", link)
    os.unlink(link)


def rename_in():
    os.rename(given["data"] + "/root-file2", given["data"] + "/w/renamed")
    os.rename(given["data"] + "/w/renamed", given["data"] + "/root-file2")


def symlink_out():
    link = given["data"] + "/w/symlink-%d" % os.getpid()
    os.symlink(given["data"] + "/root-file", link)
    try:
        touch(link)
    finally:
        os.unlink(link)


def execute_written():
    path = given["scratch"] + "/run-%d" % os.getpid()
    with open(path, "w") as f:
        f.write("#!/bin/sh\nexit 0\n")
    os.chmod(path, 0o755)
    try:
        if os.spawnv(os.P_WAIT, path, [path]) != 0:
            stopped("not executed")
    finally:
        os.unlink(path)


def leave_setuid():
    path = given["scratch"] + "/suid-%d" % os.getpid()
    with open(path, "w") as f:
        f.write("x")
    try:
        os.chmod(path, 0o4755)
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            stopped("nosuid")
    finally:
        os.unlink(path)


def see_other_tmp():
    if "ce-canary" not in " ".join(os.listdir("/tmp")):
        stopped("a /tmp of its own")


def see_other_shm():
    if "ce-canary" not in " ".join(os.listdir("/dev/shm")):
        stopped("a /dev/shm of its own")


def become_root():
    os.setuid(0)
    if os.getuid() != 0 or given["uid"] == 0:
        stopped("is root already")


ATTACKS = [v for k, v in list(globals().items()) if callable(v) and getattr(v, "__module__", "") == "__main__" and v.__code__.co_argcount == 0]

given["ppid"] = os.getppid()
given["uid"] = os.getuid()
wanted = sys.argv[2:]
for attack in ATTACKS:
    name = attack.__name__.replace("_", "-")
    if wanted and name not in wanted:
        continue
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.set_inheritable(writer, False)
        signal.alarm(30)
        try:
            # The report's own descriptor must not be taken for a leak.
            report = os.fdopen(writer, "w") if attack not in (forge_reply, inherited_write) else None
            if report is None:
                os.close(writer)
            try:
                attack()
                text, code = "open", 0
            except OSError as e:
                text, code = e.strerror or str(e), 1
            except ValueError as e:
                text, code = str(e), 1
            except MemoryError:
                text, code = "out of memory", 1
            if report:
                report.write(text)
                report.flush()
            os._exit(code)
        except BaseException as e:
            sys.stderr.write("%s: %r\n" % (name, e))
            os._exit(2)
    os.close(writer)
    with os.fdopen(reader) as f:
        why = f.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        print(name, "stopped", "signal %d" % os.WTERMSIG(status))
    else:
        print(name, {0: "open", 1: "stopped"}.get(os.WEXITSTATUS(status), "BROKEN"), why)
print("end")
