"""Runs a program in a terminal of its own and answers what it asks.

terminal.py [PATTERN ANSWER]... -- PROGRAM ARGS...
    Copies what the program prints to stdout; when PATTERN has come since the last answer, types ANSWER and Return. The answer ^D is
    the end of the input. Ends as the program ends.
"""
import os
import pty
import select
import sys
import time

split = sys.argv.index("--")
talk = list(zip(sys.argv[1:split:2], sys.argv[2:split:2]))
program = sys.argv[split + 1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(program[0], program)
seen, deadline = "", time.time() + 50
while time.time() < deadline:
    if not select.select([terminal], [], [], 0.2)[0]:
        continue
    try:
        data = os.read(terminal, 65536)
    except OSError:
        data = b""
    if not data:
        break
    text = data.decode(errors="replace").replace("\r\n", "\n")
    sys.stdout.write(text)
    sys.stdout.flush()
    seen += text
    while talk and talk[0][0] in seen:
        pattern, answer = talk.pop(0)
        seen = seen.split(pattern, 1)[1]
        os.write(terminal, b"\x04" if answer == "^D" else answer.encode() + b"\n")
else:
    os.kill(pid, 9)
status = os.waitpid(pid, 0)[1]
sys.exit(os.waitstatus_to_exitcode(status) % 256)
