"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

import autoprune
from tests.import_graph import SOURCES

WITH_EXAMPLES = [name for name, path in SOURCES.items() if ">>>" in path.read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("examples"))
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test)
    assert runner.summarize().failed == 0


# Names whose example would take a search, which is minutes.
WITHOUT_EXAMPLE = {"Candidate", "Run", "search"}


def test_every_public_name_has_an_example() -> None:
    texts = {name: f"{getattr(autoprune, name).__doc__}" for name in autoprune.__all__}
    assert {name for name, text in texts.items() if ">>>" not in text} <= WITHOUT_EXAMPLE
