"""`autoprune search` on a simulated device, disturbed when a stage begins: FOLDER STAGE read-only|interrupted."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import killed_search

from autoprune.cli import main

FOLDER, STAGE, KIND = sys.argv[1:]


def disturb() -> None:
    """Take the right to write into the folder away, or send SIGINT, and once more a moment later."""
    if KIND == "read-only":
        for path in [Path(FOLDER), *(p for p in Path(FOLDER).rglob("*") if p.is_dir())]:
            path.chmod(0o500)
        return
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    os.kill(os.getpid(), signal.SIGINT)


class Disturbing(killed_search.Watch):
    """Events that disturb at the beginning of a stage."""

    def stage(self, title: str) -> None:
        """Begin a stage."""
        if title == STAGE:
            disturb()
        super().stage(title)


def search(**options: Any) -> None:
    """Search as the command does, with a simulated device."""
    from autoprune.pipeline.main import search as real

    real(**options | {"measurer": killed_search.measurer(), "events": Disturbing(killed_search.Board())})


if __name__ == "__main__":
    if STAGE == "import":
        threading.Timer(1.0, disturb).start()
    else:
        import autoprune.pipeline

        autoprune.pipeline.search = search  # pyright: ignore[reportAttributeAccessIssue]
    task = f"{Path(killed_search.__file__).resolve()}:make_task"
    sys.argv[1:] = f"search --run-dir {FOLDER} --task {task} --budget 65% --trials 3 --executor inline".split()
    main.main(own_process=True)
