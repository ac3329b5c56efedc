"""A PostgreSQL server of one test run: in a folder of its own, on a socket in it, as a user that may run one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BIN = next((Path(program).resolve().parent for program in [shutil.which("initdb")] if program), *_PLACES[-1:])


class Server:
    """Starts, stops and restarts; `url` is what a run is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-U", "prune", "--auth=trust", "--no-sync")
        self.start()
        self.url = f"postgresql+psycopg://prune@/postgres?host={folder}"

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def kill(self) -> None:
        """As `kill -9` of the server: nothing is written, every connection ends."""
        self.stop("immediate")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [BIN / program, *arguments],
            check=True, capture_output=True, cwd=self.folder, **self._user,
        )  # fmt: skip
