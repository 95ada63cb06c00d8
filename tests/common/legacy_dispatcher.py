"""Stands in for the dispatcher of release 0.12.3 (spec/pairing.md 2-4, 9; spec/dispatcher.md 7, 8, 14).

legacy_dispatcher.py pair PORT CA_DIR CERT KEY ID SERIAL_TEXT OUT [split]
    Listens for one pairing, prints the code, signs the CSR with the openssl command line without extensions, answers twice.
    Writes the request object to OUT.
legacy_dispatcher.py call PORT VERSION CERT KEY CA METHOD PATH [BODY]
    One request as libwww-perl sends it, over TLS VERSION (1.2 or 1.3); prints a JSON object with the status line and the body.
"""
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time

SUITES = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256"


def message(body):
    text = json.dumps(body, separators=(",", ":")).encode()
    head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
    return head.encode() + text


def read_request(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(4096)
        if not part:
            return None
        data += part
    head, body = data.split(b"\r\n\r\n", 1)
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        part = stream.recv(4096)
        if not part:
            return None
        body += part
    return json.loads(body)


def sign(ca_dir, csr):
    """As the original: text checks, whole subject copied, no extension file, counter in ca.serial."""
    assert len(csr) <= 10240, "CSR exceeds maximum size"
    assert csr.startswith("-----BEGIN CERTIFICATE REQUEST-----"), "Invalid CSR format"
    with tempfile.TemporaryDirectory() as scratch:
        request = os.path.join(scratch, "a.csr")
        with open(request, "w") as f:
            f.write(csr)
        shown = subprocess.run(["openssl", "req", "-in", request, "-noout", "-verify", "-text"], check=True, capture_output=True, text=True).stdout
        assert "Public Key Algorithm: rsaEncryption" in shown, "CSR public key too small (need >= 2048 bits)"
        size = int(shown.split("Public-Key: (")[1].split(" bit")[0])
        assert size >= 2048, "CSR public key too small (need >= 2048 bits)"
        assert "sha256WithRSAEncryption" in shown
        done = subprocess.run(
            ["openssl", "x509", "-req", "-in", request, "-CA", ca_dir + "/ca.crt", "-CAkey", ca_dir + "/ca.key",
             "-CAserial", ca_dir + "/ca.serial", "-days", "825", "-sha256"],
            check=True, capture_output=True, text=True)
        return done.stdout


def pair(port, ca_dir, cert, key, identity, serial_text, out, split=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(SUITES)
    context.load_cert_chain(cert, key)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", int(port)))
    listener.listen(5)
    print("ready")
    while True:
        raw, _ = listener.accept()
        raw.settimeout(30)
        try:
            stream = context.wrap_socket(raw, server_side=True)
        except (ssl.SSLError, OSError):
            # The probe of the agent: connects and closes.
            continue
        request = read_request(stream)
        if request is None:
            continue
        break
    with open(out, "w") as f:
        json.dump(request, f)
    code = int.from_bytes(hashlib.sha256(request["csr"].encode()).digest()[:4], "big") % 1000000
    print("code %06d" % code)
    first = message({"status": "pending", "reqid": "0123456789abcdef"})
    certificate = sign(ca_dir, request["csr"])
    with open(ca_dir + "/ca.crt") as f:
        authority = f.read()
    second = message({
        "status": "approved", "cert": certificate, "ca": authority, "nonce": request["nonce"],
        "dispatcher_serial": serial_text, "dispatcher_id": identity,
    })
    if split == "split":
        for byte in range(0, len(first + second), 7):
            stream.sendall((first + second)[byte:byte + 7])
    elif split == "together":
        stream.sendall(first + second)
    else:
        stream.sendall(first)
        time.sleep(0.3)
        stream.sendall(second)
    # The original leaves the closing to the agent.
    try:
        stream.recv(1)
    except (ssl.SSLError, OSError):
        pass
    print("done")


def call(port, version, cert, key, ca, method, path, body=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(cert, key)
    context.set_ciphers(SUITES)
    chosen = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    context.minimum_version = context.maximum_version = chosen
    raw = socket.create_connection(("127.0.0.1", int(port)), timeout=30)
    stream = context.wrap_socket(raw)
    assert stream.version() == "TLSv" + version, stream.version()
    head = ("%s %s HTTP/1.1\r\nTE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nHost: 127.0.0.1:%s\r\n"
            "User-Agent: libwww-perl/6.68\r\n" % (method, path, port))
    if body is not None:
        head += "Content-Length: %d\r\nContent-Type: application/json\r\n" % len(body.encode())
    stream.sendall(head.encode() + b"\r\n")
    if body is not None:
        # libwww-perl writes head and body apart.
        stream.sendall(body.encode())
    data = b""
    while True:
        try:
            part = stream.recv(65536)
        except ssl.SSLEOFError:
            part = b""
        if not part:
            break
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    print(json.dumps({"status_line": lines[0], "headers": headers, "body": rest.decode()}))


{"pair": pair, "call": call}[sys.argv[1]](*sys.argv[2:])
