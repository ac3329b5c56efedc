"""Draw the rooms of the package as a picture, from the imports in its source: whoever imports stands above.

python scripts/draw_architecture.py [docs/figures/architecture]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

from figure_style import Drawing, draw_pair

ROOT = Path(__file__).resolve().parent.parent
WIDTH, ROW, BOX, GAP = 960, 62, 34, 14
GROUPS = {
    "model": "describe", "task": "describe",
    "structure": "prune", "pruning": "prune", "training": "prune", "recovery": "prune",
    "device": "measure", "onnxgraph": "measure", "latency": "measure", "profiling": "measure",
    "allocation": "search", "study": "search", "executors": "search", "search": "search", "evaluation": "search",
}  # fmt: skip
COLORS = {"describe": "muted", "prune": "green", "measure": "amber", "search": "blue"}


def rooms(package: Path) -> dict[str, list[Path]]:
    """Files by room; a room is a folder of the package, or a module that stands in the package itself."""
    files: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if not name.startswith("__"):
            files.setdefault(name, []).append(path)
    return files


def imports(package: Path) -> dict[str, set[str]]:
    """Which rooms each room imports, wherever in a file the import stands."""
    files = rooms(package)
    edges: dict[str, set[str]] = {name: set() for name in files}
    for name, paths in files.items():
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    modules = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                else:
                    continue
                targets = (module.split(".") for module in modules if module.startswith(f"{package.name}."))
                edges[name] |= {parts[1] for parts in targets if parts[1] in files and parts[1] != name}
    return edges


def floors(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room: 0 imports nobody, every other stands one above the highest that it imports."""
    floor: dict[str, int] = {}

    def of(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"rooms must not import each other in a circle; got {' -> '.join((*above, name))}")
        if name not in floor:
            floor[name] = 1 + max((of(other, (*above, name)) for other in edges[name]), default=-1)
        return floor[name]

    for name in edges:
        of(name)
    return floor


def direct(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports that no chain of other imports implies: enough to see who stands on whom."""

    def reach(name: str) -> set[str]:
        return edges[name].union(*(reach(other) for other in edges[name]))

    return {name: {o for o in others if not any(o in reach(p) for p in others - {o})} for name, others in edges.items()}


def places(floor: Mapping[str, int]) -> dict[str, tuple[float, float, float]]:
    """Left edge, top and width of the box of each room."""
    top, boxes = max(floor.values()), {}
    for level in range(top + 1):
        names = sorted(
            (n for n in floor if floor[n] == level), key=lambda n: (list(COLORS).index(GROUPS.get(n, "describe")), n)
        )
        widths = [22 + 8.2 * len(name) for name in names]
        x = (WIDTH - sum(widths) - GAP * 3 * (len(names) - 1)) / 2
        for name, width in zip(names, widths, strict=True):
            boxes[name] = (x, 16 + (top - level) * ROW, width)
            x += width + GAP * 3
    return boxes


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/figures/architecture"
    edges = imports(ROOT / "autoprune")
    floor = floors(edges)
    boxes = places(floor)

    def draw(picture: Drawing) -> None:
        for name, others in direct(edges).items():
            x, y, width = boxes[name]
            for other in sorted(others):
                ox, oy, other_width = boxes[other]
                picture.line([(x + width / 2, y + BOX), (ox + other_width / 2, oy)], width=1.0, arrow=True)
        for name, (x, y, width) in boxes.items():
            picture.box(x, y, width, BOX, edge=COLORS.get(GROUPS.get(name, ""), "line"))
            picture.text(x + width / 2, y + 22, name)

    draw_pair(out, WIDTH, 16 + (max(floor.values()) + 1) * ROW, draw)


if __name__ == "__main__":
    main()
