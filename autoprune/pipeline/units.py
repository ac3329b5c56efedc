"""The units of a model and the form of its cuts, before anything costs time: proven, and said in lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autoprune.device.target import adds_in_16_bits
from autoprune.manifest import Manifest
from autoprune.pipeline.events import Events
from autoprune.pipeline.spaces import SpaceFile
from autoprune.records import SearchSpace
from autoprune.runfolder import RunFolder
from autoprune.structure import Structure, form_at_half
from autoprune.treatments import INT8, INT8_DYNAMIC, Treatment

_MOST_WRITTEN = 1e9
"""Larger numbers are written with an exponent."""


def check_units(structure: Structure, space_file: SpaceFile, events: Events) -> None:
    """Prove that the smallest policy of the space computes what it should, and note what was found.

    Raises:
        ProofError: names the units that break it.
    """
    structure.shrink(space_file.scanned().smallest())
    events.note(f"{len(structure.units)} units")
    for op, nodes in structure.unsupported.items():
        events.note(f"operator {op} has no rule: what it touches keeps its width ({len(nodes)} places)")


def decide_form(structure: Structure, folder: RunFolder, events: Events) -> None:
    """Decide on the form of pruned models, note it and why, and keep it in the run folder for all workers.

    Raises:
        StructureError: neither form computes the gradients of the model, so none can be fine-tuned.
    """
    if folder.form.exists():
        return
    form, _ = form_at_half(structure)
    Manifest(folder).write_json(folder.form, asdict(form))
    for line in (f"pruned models: {form}", *form.notes):
        events.note(line)


def _count(number: int) -> str:
    """Return a whole number with three digits: `332,000`, `3.3e+14`, `1e400`."""
    if number < _MOST_WRITTEN:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.2g}" if number < 1e300 else f"1e{len(str(number)) - 1}"


def note_space(space: SearchSpace, name: str, events: Events) -> None:
    """Note how many policies a space holds, and that zeros save no time where it has patterns of them."""
    size = _count(space.size)
    layers = [name for name in space.searched if name in set(space.layer_names)]
    treated = f" and the treatments of {len(layers)} layers" if layers else ""
    units = len(space.searched) - len(layers)
    events.note(f"{units} units{treated} searched: {size} policies (space {name!r})")
    if space.timed() is not space:
        events.note("zeros among weights save bytes and no time: ONNX Runtime multiplies them like other numbers")


def note_short_sums(space: SearchSpace, fingerprint: Mapping[str, Any], events: Events) -> None:
    """Note what follows where the CPU of a table adds products of int8 layers in 16 bits."""
    if not adds_in_16_bits(fingerprint):
        return
    levels = [level for name in space.layer_names for level in space.levels[name]]
    precisions = {level.precision for level in levels if isinstance(level, Treatment)}
    if precisions & {INT8.precision, INT8_DYNAMIC.precision}:
        events.note("weights in int8 have 7 bits: without VNNI the CPU adds two products in 16 bits")
