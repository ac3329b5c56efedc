"""The rules of the house that hold for every file, so that a new file is covered without a list of names."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from tests.import_graph import IMPORTS, PACKAGE, SOURCES, TREES, chain, circles

PLANNING = {
    "allocation", "budgets", "cli", "config", "errors", "executors", "front", "latencies", "lease", "records", "report",
    "runfolder", "search", "space", "study", "treatments", "trials",
}  # fmt: skip
"""Rooms that start without torch: a plan, a status or a report must not wait for it."""

ROOMS_OF = {
    "optuna": {"study"},
    "sqlalchemy": {"study"},
    "ray": {"executors"},
    "onnx": {"onnxgraph", "device", "profiling", "export"},
    "onnxruntime": {"onnxgraph", "device", "profiling", "export"},
    "onnxscript": {"onnxgraph"},
    "plotly": set(),
    "typer": {"cli"},
    "rich": {"cli", "report"},
}
"""The only rooms that may name a library."""

MOST_LINES = 300
MOST_FUNCTION_LINES = 40
ROOT_FILES = {
    "CHANGELOG.md", "CONTRIBUTING.md", "DECISIONS.md", "LICENSE", "README.md", "constraints.txt", "llms.txt",
    "mkdocs.yml", "pyproject.toml",
}  # fmt: skip
ONE_FILE = {"autoprune.device.measure"}
"""`measure.py` is copied alone to devices that have no autoprune: it cannot be divided."""

# What breaks a rule today. These lists may only shrink.
REACHES_TORCH: set[str] = set()
NAMES_LIBRARY: set[str] = set()
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()


def test_the_root_holds_no_stray_file() -> None:
    """A slip of a redirection is committed easily, and seen by everyone who opens the repository."""
    files = {path.name for path in PACKAGE.parent.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert files == ROOT_FILES


def test_no_file_imports_itself_in_a_circle() -> None:
    assert circles() == []


def test_planning_does_not_reach_torch() -> None:
    chains = {name: chain(name, "torch") for name in SOURCES if _room(name) in PLANNING}
    reaching = {name: steps for name, steps in chains.items() if steps}
    _only(reaching, REACHES_TORCH, [" -> ".join(steps) for steps in reaching.values()])


def test_nothing_is_decided_by_the_clock_on_the_wall() -> None:
    """It jumps: at most what is shown or sent elsewhere may come from it. Leases and limits count seconds."""
    readers = {name for name, path in SOURCES.items() if re.search(r"\btime\.time(_ns)?\(", path.read_text())}
    assert readers == {"autoprune.trackers"}


@pytest.mark.parametrize("library", ROOMS_OF)
def test_libraries_stay_in_their_rooms(library: str) -> None:
    users = {name for name, imports in IMPORTS.items() if library in {i.partition(".")[0] for i in imports.all}}
    strangers = {f"{name}: {library}" for name in users if _room(name) not in ROOMS_OF[library]}
    _only(strangers, {entry for entry in NAMES_LIBRARY if entry.endswith(f": {library}")}, strangers)


def test_files_are_short() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items() if name not in ONE_FILE}
    long = {name for name, count in lines.items() if count > MOST_LINES}
    _only(long, LONG_FILES, [f"{name} has {lines[name]} lines" for name in long])


def test_functions_are_short() -> None:
    lines = {f"{name}.{function.name}": _body_lines(function) for name in SOURCES for function in _functions(name)}
    long = {name for name, count in lines.items() if count > MOST_FUNCTION_LINES}
    _only(long, LONG_FUNCTIONS, [f"{name} has {lines[name]} lines" for name in long])


def test_no_public_name_is_unused() -> None:
    """A module-level function or class is used by the package, by a script, or is a public name."""
    scripts = [path.read_text() for path in (PACKAGE.parent / "scripts").rglob("*.py")]
    words = Counter(re.findall(r"\w+", "\n".join([*(path.read_text() for path in SOURCES.values()), *scripts])))
    defined = [
        node for tree in TREES.values() for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    names = {node.name for node in defined if not node.decorator_list and not node.name.startswith("__")}
    assert {name for name in names if words[name] < 2} == set()


def _room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def _only(violations: Iterable[str], known: set[str], messages: Iterable[str]) -> None:
    """Fail for a violation that is new, and for one that is gone and still listed."""
    assert set(violations) <= known, "\n".join(sorted(messages))
    assert known <= set(violations), f"fixed: remove from the list {sorted(known - set(violations))}"


def _functions(name: str) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef))


def _body_lines(function: ast.FunctionDef) -> int:
    """Lines of code without the parameters and the docstring, which may be long."""
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0  # type: ignore[operator]
