# Plays a root executor: stub_executor.py SOCKET DIR original|ours
#
# What it is asked is written to DIR/asked, a line each. A run goes on until DIR/go exists or it is cancelled; DIR/refuse makes it refuse to
# begin one, DIR/hang-up makes it close without an answer to that.
import os, socket, struct, sys, threading, time
path, home, kind = sys.argv[1:4]
at = lambda name: os.path.join(home, name)
KIND = dict(exit=0, denied=4, cancelled=6, running=9, unknown=10)
ORDERS = ["hello", "wait", "peek", "cancel", "forget"]
jobs = {}
turn = threading.Lock()

def exact(s, n):
    data = b""
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part:
            raise EOFError
        data += part
    return data

def parse(body):
    at = 0
    def number(size="I"):
        nonlocal at
        n = struct.calcsize(">" + size)
        at += n
        return struct.unpack(">" + size, body[at - n:at])[0]
    def field():
        nonlocal at
        n = number()
        at += n
        return body[at - n:at]
    reqid, dispatcher, script, stdin = field(), field(), field(), field()
    args = [field() for _ in range(number())]
    tags = {}
    if body[at:at + 4] == b"CEX1":
        at += 4
        for _ in range(number()):
            tag, _flags = number("H"), number("H")
            tags[tag] = field()
    return reqid.decode(), dispatcher.decode(), script.decode(), stdin, args, tags

def field(data):
    return struct.pack(">I", len(data)) + data

def reply(exit, out=b"", err=b"", kind=None):
    data = struct.pack(">i", exit) + field(out) + field(err)
    if kind is not None:
        data += b"CEX1" + struct.pack(">IHH", 1, 1, 1) + field(bytes([KIND[kind]]))
    return data

def state(job):
    if job["cancelled"]:
        return reply(126, b"begun\n", b"cancelled\n", "cancelled")
    if os.path.exists(at("go")):
        return reply(7, b"begun\nended\n", b"warn\n", "exit")
    return None

def answer(reqid, dispatcher, script, stdin, args, tags):
    what = ORDERS[tags[5][0]] if script == ".job" and 5 in tags else "detach" if 4 in tags else "run"
    with turn:
        with open(at("asked"), "a") as f:
            f.write("%s %s %s %s\n" % (what, dispatcher, reqid, script))
    if kind == "original":
        if script == ".job":
            return reply(-1, b"", b"executor: script not permitted\n")
        return reply(0, b"sync\n")
    job = jobs.get((dispatcher, reqid))
    if what == "hello":
        return reply(0, b'{"detach":true}', b"", "exit")
    if what == "detach":
        if os.path.exists(at("refuse")):
            return reply(-1, b"", b"executor: undefined profile\n", "denied")
        jobs[dispatcher, reqid] = dict(cancelled=False, tags=tags)
        if os.path.exists(at("hang-up")):
            return b""
        with open(at("order"), "wb") as f:
            f.write(b"%s|%s|%s" % (stdin, b",".join(args), tags.get(3, b"")))
        return reply(0, b"", b"", "running")
    if job is None:
        return reply(-1, b"", b"executor: no such job\n", "unknown")
    if what == "peek":
        return state(job) or reply(0, b"begun\n", b"", "running")
    if what == "cancel":
        job["cancelled"] = True
        return reply(0, b"", b"", "running")
    if what == "forget":
        del jobs[dispatcher, reqid]
        return reply(0, b"", b"", "unknown")
    end = time.monotonic() + 2
    while time.monotonic() < end and not state(job):
        time.sleep(0.02)
    return state(job) or reply(0, b"", b"", "running")

def serve(s):
    with s:
        try:
            s.sendall(answer(*parse(exact(s, struct.unpack(">I", exact(s, 4))[0]))))
        except EOFError:
            pass

listener = socket.socket(socket.AF_UNIX)
try:
    os.unlink(path)
except FileNotFoundError:
    pass
listener.bind(path)
listener.listen(16)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
