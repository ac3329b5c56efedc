"""Code blocks of a Markdown page, and how they are run: in order, in one folder and one Python namespace a page.

A fenced `bash` or `python` block is run. A comment on the line before says otherwise:

    <!-- not run: REASON -->    never run here (another host, an environment of its own)
    <!-- slow -->               searches; run with the slow tests alone

A page that is about another package says so once, and is skipped where that is not installed:

    <!-- needs: PACKAGE, PACKAGE -->
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>slow|not run: [^\n]+?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.M | re.S
)
_MINUTES = 60


@dataclass(frozen=True)
class Block:
    """One block of a page. `marker` is empty, `slow` or `not run: REASON`."""

    page: str
    line: int
    language: str
    marker: str
    code: str

    @property
    def runs(self) -> bool:
        return not self.marker.startswith("not run")

    @property
    def slow(self) -> bool:
        return self.marker == "slow"


def blocks_of(page: str) -> list[Block]:
    """All `bash` and `python` blocks of a page, in order."""
    text = (ROOT / page).read_text()
    return [
        Block(
            page, text.count("\n", 0, match.start("code")) + 1, match["language"], match["marker"] or "", match["code"]
        )
        for match in _BLOCK.finditer(text)
    ]


def missing(page: str) -> list[str]:
    """Packages that a page needs and that are not installed."""
    needs = re.findall(r"^<!-- needs: ([^\n]+?) -->$", (ROOT / page).read_text(), re.M)
    return [name for line in needs for name in line.split(", ") if importlib.util.find_spec(name) is None]


def prepare(folder: Path) -> None:
    """Put into the folder what pages name by path."""
    for name in ("docs", "scripts", "search_spaces"):
        (folder / name).symlink_to(ROOT / name)


def run_block(block: Block, folder: Path, namespace: dict[str, Any]) -> None:
    """Run a block in `folder`, which is the current one; `AssertionError` with the output when it fails."""
    where = f"{block.page}:{block.line}"
    if block.language == "python":
        exec(compile(block.code, where, "exec"), namespace)
        return
    bin_folder = Path(sys.executable).parent
    path = os.pathsep.join([str(bin_folder), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60 * _MINUTES,
    )  # fmt: skip
    assert done.returncode == 0, f"{where} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
