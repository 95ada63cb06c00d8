"""Checksums and detached signatures.

A signature is in minisign's format and made by the program `minisign` with the key that CTRL_EXEC_MINISIGN_KEY names (a file, without a password).
Without one a throwaway key is made below target/: enough to try how a signature is checked, and worth nothing.
"""

import hashlib
import os
import shutil
import subprocess

from release import Refused

KEY = "CTRL_EXEC_MINISIGN_KEY"


def checksum(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


class Signer:
    def __init__(self, work, epoch):
        if not shutil.which("minisign"):
            raise Refused("minisign is needed to sign: apt-get install minisign")
        self.epoch = epoch
        named = os.environ.get(KEY)
        self.throwaway = not named
        if named:
            self.secret = named
            if not os.path.isfile(named):
                raise Refused(f"{KEY}: there is no file '{named}'")
        else:
            self.secret = str(work / "throwaway.key")
            if not os.path.exists(self.secret):
                work.mkdir(parents=True, exist_ok=True)
                self._run("-G", "-W", "-s", self.secret, "-p", self.secret + ".pub")

    def _run(self, *arguments):
        # Without a terminal a key with a password fails instead of waiting for somebody.
        run = subprocess.run(["minisign", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if run.returncode != 0:
            raise Refused(f"minisign: {(run.stderr or run.stdout).strip()} (the key must have no password)")

    def public_key(self, path):
        self._run("-R", "-f", "-s", self.secret, "-p", str(path))

    def sign(self, path):
        # The default comment has the time of signing in it.
        comment = f"timestamp:{self.epoch}\tfile:{path.name}"
        self._run("-S", "-s", self.secret, "-m", str(path), "-x", str(path) + ".minisig", "-t", comment, "-c", "signature of ctrl-exec")
