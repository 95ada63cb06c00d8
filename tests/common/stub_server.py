"""A TLS server at an agent's address that misbehaves in one way for every connection.

stub_server.py PORT CERT KEY CA BEHAVIOUR
"""
import socket
import ssl
import sys
import threading
import time

port, cert, key, ca, behaviour = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
context.load_verify_locations(ca)
context.verify_mode = ssl.CERT_REQUIRED


def body(text, status="200 OK", extra=""):
    data = text if isinstance(text, bytes) else text.encode()
    return ("HTTP/1.0 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n" % (status, extra, len(data))).encode() + data


ANSWERS = {
    "array": body('["exit",0]'),
    "garbage": body("this is not JSON"),
    "empty": body(""),
    "number": body("7"),
    "null": body("null"),
    "not-utf8": body(b'{"exit":0,"stdout":"\xff\xfe"}'),
    "no-http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "short": b'HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n{"exit":0',
    "huge-length": b"HTTP/1.0 200 OK\r\nContent-Length: 99999999999\r\n\r\n{",
    "500": body('{"error":"kaputt"}', "500 Internal Server Error"),
    "403": body('{"error":"serial mismatch","status":"forbidden"}', "403 Forbidden"),
    "413": body('{"error":"request too large"}', "413 Content Too Large"),
    "redirect": body("{}", "302 Found", "Location: https://127.0.0.1/run\r\n"),
    "overwrite": body('{"script":"x","exit":0,"stdout":"o\\n","stderr":"","reqid":"ffffffffffffffff","host":"liar","rtt":"0ms","extra":{"a":1}}'),
    "escape": body('{"script":"x","exit":1,"error":"bad\\u001b[2J\\nACTION=run EXIT=0","reqid":"","host":"h\\u001b[31m"}'),
    "exit-text": body('{"script":"x","exit":"0","stdout":"","stderr":"","reqid":"r"}'),
    "no-exit": body('{"script":"x","stdout":"","stderr":"","reqid":"r"}'),
    "ok-ping": body('{"status":"ok","host":"stub","version":"9","expiry":"Jun  7 16:28:00 2028 GMT","staged":false,"reqid":"r"}'),
}


def serve(raw):
    try:
        raw.settimeout(60)
        if behaviour == "no-handshake":
            time.sleep(60)
        stream = context.wrap_socket(raw, server_side=True)
        if behaviour == "close-at-once":
            stream.close()
            return
        data = b""
        while b"\r\n\r\n" not in data:
            part = stream.recv(65536)
            if not part:
                return
            data += part
        if behaviour == "silent":
            time.sleep(60)
        elif behaviour == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        elif behaviour == "endless":
            stream.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                stream.sendall(b"a" * 65536)
        elif behaviour == "endless-headers":
            stream.sendall(b"HTTP/1.0 200 OK\r\n")
            while True:
                stream.sendall(b"X-Header: " + b"a" * 1000 + b"\r\n")
        elif behaviour == "echo-request":
            head, _, rest = data.partition(b"\r\n\r\n")
            print("request " + repr(head.decode()))
            stream.sendall(ANSWERS["ok-ping"])
        else:
            stream.sendall(ANSWERS[behaviour])
        stream.close()
    except OSError:
        pass


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(port)))
listener.listen(100)
print("ready")
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
