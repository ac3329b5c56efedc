from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

HISTORY = ("CHANGELOG.md", "docs/decisions/")  # what was there at the time
FOLDERS = ("autoprune", "docs", "scripts", "tests", "search_spaces")
_PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w(?:\.\w+)?)(?!\w*\()")
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)")


def is_there(path: str) -> bool:
    return (ROOT / path).exists()


def pages() -> list[str]:
    found = [*ROOT.glob("*.md"), ROOT / "llms.txt", *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


@pytest.mark.parametrize("page", pages())
def test_paths_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    if not page.startswith(HISTORY):
        absent = sorted({path for path in _PATH.findall(text) if not (is_there(path) or is_there(f"{path}-light.svg"))})
        assert not absent, f"{page} names {absent}"
    here = (ROOT / page).parent
    links = [link for link in _LINK.findall(text) if not link.startswith(("http", "mailto:"))]
    assert [link for link in links if not Path(here / link).exists()] == []


def test_functions_of_the_architecture_page_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for path, name in re.findall(r"`((?:autoprune|tests|scripts)/[\w/]+\.py)`: `(\w+)`", text):
        source = (ROOT / path).read_text()
        assert re.search(rf"^\s*(?:(?:def|class) )?{name}\b", source, re.M), f"{path} has no {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
