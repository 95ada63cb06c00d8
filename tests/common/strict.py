"""Are our certificates good enough for the default context of Python 3.13, which is the strictest in wide use?

strict.py connect PORT CERT KEY CA SERVER_NAME   client with every strict flag and the host name checked; pings the agent
strict.py pair PORT CA NAME                      the same towards the pairing listener (no client certificate)
strict.py serve PORT CERT KEY CA                 server with every strict flag; answers one ping
"""
import json
import socket
import ssl
import sys


def context(ca, purpose):
    made = ssl.create_default_context(purpose, cafile=ca)
    made.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return made


def exchange(stream):
    body = b'{"reqid":"strict"}'
    stream.sendall(b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    data = b""
    while True:
        part = stream.recv(65536)
        if not part:
            break
        data += part
        head, _, rest = data.partition(b"\r\n\r\n")
        if rest.endswith(b"}"):
            break
    print(json.dumps({"version": stream.version(), "body": json.loads(rest)}))


def connect(port, cert, key, ca, name):
    made = context(ca, ssl.Purpose.SERVER_AUTH)
    made.load_cert_chain(cert, key)
    with made.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), 30), server_hostname=name) as stream:
        exchange(stream)


def pair(port, ca, name):
    made = context(ca, ssl.Purpose.SERVER_AUTH)
    with made.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), 30), server_hostname=name) as stream:
        print(json.dumps({"version": stream.version()}))


def serve(port, cert, key, ca):
    made = context(ca, ssl.Purpose.CLIENT_AUTH)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(cert, key)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen(5)
    print("ready")
    raw, _ = listener.accept()
    stream = made.wrap_socket(raw, server_side=True)
    print("client " + dict(x[0] for x in stream.getpeercert()["subject"])["commonName"])
    while b"}" not in stream.recv(65536):
        pass
    body = b'{"status":"ok","host":"strict","version":"1","expiry":"Jun  7 16:28:00 2028 GMT","staged":false,"reqid":"r"}'
    stream.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    stream.close()


{"connect": connect, "pair": pair, "serve": serve}[sys.argv[1]](*sys.argv[2:])
