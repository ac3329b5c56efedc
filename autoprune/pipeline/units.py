"""The units of a model, before anything costs time: proven for the smallest policy, and said in lines."""

from __future__ import annotations

from autoprune.pipeline.events import Events
from autoprune.pipeline.spaces import SpaceFile
from autoprune.records import SearchSpace
from autoprune.structure import Structure


def check_units(structure: Structure, space_file: SpaceFile, events: Events) -> None:
    """Prove that the smallest policy of the space computes what it should, and note what was found.

    Raises:
        ProofError: names the units that break it.
    """
    structure.shrink(space_file.scanned().smallest())
    events.note(f"{len(structure.units)} units")
    for op, nodes in structure.unsupported.items():
        events.note(f"operator {op} has no rule: what it touches keeps its width ({len(nodes)} places)")


def note_space(space: SearchSpace, name: str, events: Events) -> None:
    """Note how many policies a space holds."""
    size = f"{space.size:.3g}" if space.size < 1e300 else f"1e{len(str(space.size)) - 1}"
    events.note(f"{len(space.searched)} units searched: {size} policies (space {name!r})")
