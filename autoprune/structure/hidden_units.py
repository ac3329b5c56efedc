"""Names of the units of recurrent layers and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autoprune.records import Unit
from autoprune.structure.capture import Capture
from autoprune.structure.cells import HIDDEN
from autoprune.structure.recurrent_layers import GATES, is_projected

_OF_CELL, _OF_LAYER = ".weight_hh", ("weight_hh_", "weight_hr_")
"""Ends of the names of weights with a row for each hidden unit: of a cell, and of a layer up to its number."""


def name_hidden(
    units: Sequence[Unit], captures: Mapping[bool, Capture], canonical: Mapping[str, str]
) -> tuple[Unit, ...]:
    """Return the units with those of recurrent layers of the kind `hidden`, named by module and layer: `encoder.l0`."""
    nodes = [n for n in captures[False].graph.nodes if n.target in GATES]
    given = [n.args[2][4 if n.args[3] else 2] if is_projected(n) else n.args[2][1] for n in nodes]
    given += [n.args[1] for n in captures[False].graph.nodes if HIDDEN in n.meta]
    weights = [canonical[str(w.target)] for w in given if w.op == "get_attr"]
    taken = {unit.name for unit in units}
    named = []
    for unit in units:
        names = [m.parameter for m in unit.members if m.dim == 0 and m.parameter in weights]
        if names:
            name = names[0].removesuffix(_OF_CELL)
            for part in _OF_LAYER:
                name = name.replace(part, "")
            unit = replace(unit, kind="hidden", name=name if name not in taken - {unit.name} else unit.name)
            taken.add(unit.name)
        named.append(unit)
    return tuple(named)
