from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.scripts import load_script

draw_architecture = load_script("draw_architecture")

EDGES = draw_architecture.imports(ROOT / "autoprune")


def test_every_room_is_on_the_architecture_page_and_in_its_picture() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    picture = (ROOT / "docs/figures/architecture-light.svg").read_text()
    assert [room for room in EDGES if f"`{room}`" not in page] == []
    assert [room for room in EDGES if f">{room}</text>" not in picture] == []


def test_rooms_stand_above_those_that_they_import() -> None:
    floor = draw_architecture.floors(EDGES)
    assert all(floor[room] > floor[other] for room, others in EDGES.items() for other in others)


def test_imports_in_a_circle_are_refused() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        draw_architecture.floors({"a": {"b"}, "b": {"a"}})


def test_arrows_that_others_imply_are_left_out() -> None:
    edges = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert draw_architecture.direct(edges) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_imports_inside_functions_count(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "room").mkdir(parents=True)
    (package / "room" / "thing.py").write_text("def f():\n    from package.other import g\n    return g\n")
    (package / "other.py").write_text("import os\n")
    assert draw_architecture.imports(package) == {"room": {"other"}, "other": set()}
