from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks_of, missing, prepare, run_block

HOW_TO = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/how-to").glob("*.md"))
PAGES = ["README.md", "docs/start.md", "docs/cluster/README.md", *HOW_TO]
BLOCKS = {page: blocks_of(page) for page in PAGES}
NOT_RUN = 7
"""How many blocks carry `not run`: a new one is a decision, not an accident."""


def run(blocks: list[Block], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if absent := missing(blocks[0].page):
        pytest.skip(f"{blocks[0].page} needs {', '.join(absent)}, which is not installed")
    prepare(folder)
    monkeypatch.chdir(folder)
    namespace = {"__name__": "page"}
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()):
            run_block(block, folder, namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.runs and not b.slow for b in BLOCKS[page])])
def test_quick_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([block for block in BLOCKS[page] if block.runs and not block.slow], tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.slow for b in BLOCKS[page])])
def test_all_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([block for block in BLOCKS[page] if block.runs], tmp_path, monkeypatch)


def test_blocks_that_are_not_run_are_counted_and_say_why() -> None:
    without = [block for blocks in BLOCKS.values() for block in blocks if not block.runs]
    assert len(without) == NOT_RUN, [f"{block.page}:{block.line} {block.marker}" for block in without]


def test_every_page_with_commands_has_blocks() -> None:
    assert [page for page in PAGES if not BLOCKS[page] and "```" in (ROOT / page).read_text()] == []
