"""An `ssh` that runs every command on this host, in a home of its own."""

import os
import sys

PYTHON = f"?python={sys.executable}"
CPU = "CPUExecutionProvider"

ELSEWHERE = """#!/bin/sh
# Notes its arguments, then runs the command here, in another home.
for argument; do printf '%s\\n' "$argument"; done >> "{home}/arguments"
while [ "$1" != "--" ]; do shift; done
{hook}
cd "{home}" && HOME="{home}" exec sh -c "$3"
"""


class Host:
    """What the fake client reaches: a home folder, and the arguments of every call."""

    def __init__(self, folder, monkeypatch):
        self.home, self.bin = folder / "home", folder / "bin"
        self.home.mkdir()
        self.bin.mkdir()
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        self.install()

    def install(self, hook="", text=None):
        client = self.bin / "ssh"
        client.write_text(text or ELSEWHERE.format(home=self.home, hook=hook))
        client.chmod(0o755)

    @property
    def arguments(self):
        return (self.home / "arguments").read_text().splitlines()

    @property
    def kits(self):
        return sorted((self.home / ".cache/autoprune").glob("kit-*"))
