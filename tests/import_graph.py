"""Which files of the package import which modules, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import autoprune

PACKAGE = Path(autoprune.__file__).parent


def module_name(path: Path) -> str:
    """Return the dotted name of a source file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


@dataclass(frozen=True)
class Imports:
    """Modules that one file imports: `at_once` when it is imported, `later` in a function."""

    at_once: frozenset[str]
    later: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """Modules that the file imports at any time; imports for type checkers alone do not count."""
        return self.at_once | self.later


def _imports(tree: ast.Module) -> Imports:
    pairs = list(_walk(tree, inside=False))
    return Imports(
        at_once=frozenset(name for name, inside in pairs if not inside),
        later=frozenset(name for name, inside in pairs if inside),
    )


def _walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
    """Yield every imported module with whether a function imports it."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, inside) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            yield (submodule if submodule in SOURCES else node.module or ""), inside
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from _walk(child, inside)
    else:
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from _walk(child, inside)


IMPORTS = {name: _imports(tree) for name, tree in TREES.items()}


def loaded_with(name: str) -> set[str]:
    """Return the modules that Python runs at once for `import name`: its own imports and the packages around it."""
    parents = {name.rpartition(".")[0]} if "." in name else set()
    return set(IMPORTS[name].at_once) | parents if name in IMPORTS else parents


def chain(start: str, wanted: str) -> list[str] | None:
    """Return the shortest chain of imports from a module to `wanted` or a part of it; `None` when there is none."""
    before: dict[str, str] = {start: ""}
    waiting = [start]
    for name in waiting:
        if name == wanted or name.startswith(f"{wanted}."):
            steps = [name]
            while before[steps[-1]]:
                steps.append(before[steps[-1]])
            return steps[::-1]
        for other in sorted(loaded_with(name) - before.keys()):
            before[other] = name
            waiting.append(other)
    return None


def circles() -> list[list[str]]:
    """Return the groups of files that import each other, at once or later."""
    reached = {name: _reached(name) for name in SOURCES}
    groups = {frozenset(o for o in reached[n] if n in reached[o]) for n in SOURCES if n in reached[n]}
    return sorted(sorted(group) for group in groups)


def _reached(start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    for name in waiting:
        for other in IMPORTS[name].all & SOURCES.keys() - seen:
            seen.add(other)
            waiting.append(other)
    return seen
