#!/usr/bin/env python3
"""A command line over the HTTP API, as the documents of 0.12.3 describe it: one connection for each request, a time-out of 120 s, decisions by
`ok` and `code` alone, no credentials on GET.

cli.py URL health | ping HOST... | run HOST... --script S [-- ARG...] | status REQID | discovery [HOST...]
Environment: TOKEN, USERNAME.
"""
import http.client
import json
import os
import sys
import urllib.parse
import urllib.request

TIMEOUT = 120


def call(base, method, path, body=None):
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT)
    headers = {"Connection": "close"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body=data, headers=headers)
    answer = connection.getresponse()
    text = answer.read()
    assert int(answer.getheader("Content-Length")) == len(text)
    assert answer.getheader("Content-Type") == "application/json"
    assert answer.will_close, "the connection was to be closed"
    connection.close()
    return json.loads(text)


def checked(reply):
    if reply.get("ok") is True or "endpoints" in reply:
        return reply
    assert reply["ok"] is False
    if reply.get("code") == 4:
        sys.exit("locked: " + ", ".join(reply["conflicts"]))
    detail = reply.get("detail")
    sys.exit("error: " + reply["error"] + (": " + detail if detail else ""))


def asked(**members):
    return dict(members, username=os.environ.get("USERNAME", ""), token=os.environ.get("TOKEN", ""))


def health(base, _):
    # The other client of the standard library.
    with urllib.request.urlopen(base + "/health", timeout=TIMEOUT) as answer:
        reply = checked(json.load(answer))
    print("STATUS ok")
    print("VERSION " + reply["version"])


def ping(base, hosts):
    reply = checked(call(base, "POST", "/ping", asked(hosts=hosts)))
    for r in reply["results"]:
        print(r["host"], r["status"], r["rtt"], r.get("expiry", "-"), r.get("version", r.get("error")), sep="\t")
    return any(r["status"] != "ok" for r in reply["results"])


def run(base, words):
    args = []
    if "--" in words:
        at = words.index("--")
        words, args = words[:at], words[at + 1:]
    at = words.index("--script")
    script, hosts = words[at + 1], words[:at] + words[at + 2:]
    reply = checked(call(base, "POST", "/run", asked(hosts=hosts, script=script, args=args)))
    print("reqid: " + reply["reqid"])
    return show(reply["results"])


def show(results):
    failed = False
    for r in results:
        state = "ok" if r["exit"] == 0 else "error" if r["exit"] == -1 else "exit:%d" % r["exit"]
        print("==> %s [%s %s]" % (r["host"], state, r["rtt"]))
        sys.stdout.write(r.get("stdout", ""))
        sys.stderr.write(r.get("stderr", "") or r.get("error", ""))
        failed |= r["exit"] != 0
    return failed


def status(base, words):
    reply = checked(call(base, "GET", "/status/" + words[0]))
    print("reqid: %s\nscript: %s\nhosts: %s\ncompleted: %d" % (reply["reqid"], reply["script"], " ".join(reply["hosts"]), reply["completed"]))
    return show(reply["results"])


def discovery(base, hosts):
    reply = checked(call(base, "POST", "/discovery", asked(hosts=hosts)) if hosts else call(base, "GET", "/discovery"))
    for name in sorted(reply["hosts"]):
        host = reply["hosts"][name]
        for script in host.get("scripts", []):
            print(name, script["name"], "" if script["executable"] else "[not executable]")


verbs = {"health": health, "ping": ping, "run": run, "status": status, "discovery": discovery}
sys.exit(1 if verbs[sys.argv[2]](sys.argv[1], sys.argv[3:]) else 0)
