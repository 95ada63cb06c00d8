"""Stands in for the agent of release 0.12.3 (spec/agent.md 7-9, 17; spec/pairing.md 3, 11).

legacy_agent.py pair PORT NAME DIR AGENT_PORT
    RSA key and CSR by the openssl command line, one held connection, two answers; stores agent.key, agent.crt, ca.crt and map in DIR.
legacy_agent.py serve PORT DIR [VERSION]
    Answers /ping, /run and /result in HTTP/1.0, one request per connection, for clients whose certificate the CA signed.
"""
import hashlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys

SUITES = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256"


def read_message(stream, with_status_line):
    """The parser of the original: a status line only before the first message, then header lines to an empty one."""
    if with_status_line:
        assert stream.readline(), "no response from ctrl-exec"
    length = None
    while True:
        line = stream.readline()
        assert line, "no Content-Length in pairing result"
        line = line.rstrip(b"\r\n")
        if not line:
            break
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    assert length, "no Content-Length in pairing result"
    return json.loads(stream.read(length))


def pair(port, name, directory, agent_port):
    # The probe of the original: connect, close.
    socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
    key, request = os.path.join(directory, "agent.key"), os.path.join(directory, "agent.csr")
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    subprocess.run(["openssl", "req", "-new", "-key", key, "-subj", "/CN=" + name, "-out", request], check=True, capture_output=True)
    with open(request) as f:
        csr = f.read()
    code = int.from_bytes(hashlib.sha256(csr.encode()).digest()[:4], "big") % 1000000
    print("code %06d" % code)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", int(port)), timeout=60)
    tls = context.wrap_socket(raw)
    nonce = secrets.token_hex(16)
    body = json.dumps({"hostname": name, "csr": csr, "nonce": nonce, "port": agent_port, "ip": "127.0.0.1", "lookup_by": "ip"}).encode()
    tls.sendall(b"POST /pair HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    stream = tls.makefile("rb")
    first = read_message(stream, True)
    assert first["status"] == "pending" and first["reqid"], first
    print("reqid " + first["reqid"])
    second = read_message(stream, False)
    if second["status"] != "approved":
        print("refused " + second.get("reason", "denied"))
        sys.exit(3)
    assert second["nonce"] == nonce, "nonce mismatch in pairing result"
    with open(os.path.join(directory, "agent.crt"), "w") as f:
        f.write(second["cert"])
    with open(os.path.join(directory, "ca.crt"), "w") as f:
        f.write(second["ca"])
    with open(os.path.join(directory, "map"), "w") as f:
        f.write("%s %s\n" % (second["dispatcher_serial"], second["dispatcher_id"]))
    print("paired")


def reply(stream, status, body):
    text = json.dumps(body, separators=(",", ":")).encode()
    stream.sendall(b"HTTP/1.0 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(text)) + text)


def canonical(text):
    """The serial canonicaliser of the original (spec/agent.md 13.1)."""
    text = text.lower()
    if text.isdigit():
        return "%x" % int(text)
    return text.lstrip("0") or "0"


def serve(port, directory, version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if version == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(SUITES)
    context.load_cert_chain(os.path.join(directory, "agent.crt"), os.path.join(directory, "agent.key"))
    context.load_verify_locations(os.path.join(directory, "ca.crt"))
    context.verify_mode = ssl.CERT_OPTIONAL
    with open(os.path.join(directory, "map")) as f:
        trusted = {canonical(line.split()[0]): line.split()[1] for line in f if line.strip() and not line.startswith("#")}
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", int(port)))
    listener.listen(10)
    running = {}
    print("ready")
    while True:
        raw, _ = listener.accept()
        raw.settimeout(30)
        try:
            stream = context.wrap_socket(raw, server_side=True)
        except (ssl.SSLError, OSError) as e:
            print("handshake failed: %s" % e)
            continue
        serial = (stream.getpeercert() or {}).get("serialNumber", "")
        data = b""
        while b"\r\n\r\n" not in data:
            part = stream.recv(65536)
            if not part:
                break
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        print("request %s over %s" % (lines[0], stream.version()))
        length = 0
        for line in lines[1:]:
            name, _, value = line.partition(":")
            assert name.lower() not in ("transfer-encoding", "expect"), line
            if name.lower() == "content-length":
                length = int(value)
        while len(body) < length:
            body += stream.recv(65536)
        method, path = lines[0].split()[:2]
        request = json.loads(body) if body else {}
        if canonical(serial) not in trusted:
            reply(stream, b"403 Forbidden", {"error": "serial mismatch", "status": "forbidden"})
        elif (method, path) == ("POST", "/ping"):
            reply(stream, b"200 OK", {"status": "ok", "host": "legacy.test", "version": "0.12.3",
                                      "expiry": "Jun  7 16:28:00 2028 GMT", "staged": False, "reqid": request.get("reqid", "")})
        elif (method, path) == ("POST", "/run") and request.get("async"):
            # Never ends: it has no /cancel, and its scripts run to their end.
            running[request["reqid"]] = request["script"]
            reply(stream, b"202 Accepted", {"script": request["script"], "status": "accepted", "reqid": request["reqid"]})
        elif method == "GET" and path.startswith("/result/"):
            reqid = path[len("/result/"):]
            if reqid in running:
                reply(stream, b"200 OK", {"reqid": reqid, "script": running[reqid], "owner": "ctl", "status": "running", "started": "2026-01-02T03:04:05Z"})
            else:
                reply(stream, b"404 Not Found", {"status": "unknown", "reqid": reqid})
        elif (method, path) == ("POST", "/run"):
            assert isinstance(request["args"], list) and all(isinstance(a, str) for a in request["args"])
            reply(stream, b"200 OK", {"script": request["script"], "exit": 0, "stdout": json.dumps(request, sort_keys=True) + "\n",
                                      "stderr": "", "reqid": request["reqid"]})
        else:
            reply(stream, b"404 Not Found", {"error": "not found"})
        # No close-notify, as the original.
        try:
            raw = stream.detach()
            os.close(raw)
        except OSError:
            pass


{"pair": pair, "serve": serve}[sys.argv[1]](*sys.argv[2:])
