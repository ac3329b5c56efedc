"""Rule of recurrent layers: the rows of their weights are blocks, one for each gate, with the same labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import fx

from autoprune.records import Unit
from autoprune.structure.analysis import Analysis
from autoprune.structure.capture import Capture
from autoprune.structure.cells import HIDDEN
from autoprune.structure.labels import Value
from autoprune.structure.nodes import concrete
from autoprune.structure.recurrent_layers import GATES, is_projected, states_of

_HIDDEN_WEIGHTS = (".weight_hh", "weight_hh_")
"""Ends of the names of weights that read a hidden state: of a cell, and of a layer up to its number."""


def recurrent(state: Analysis, node: fx.Node) -> list[Value]:
    """Rule of one layer, `x [.., C]`, weights `[gates * H, C]` and `[gates * H, H]`: gates share the hidden labels H.

    Both directions of a layer share their labels, because one operator runs both at one width.
    """
    labels, x = state.labels, state.value(node.args[0])
    states = [state.value(s) for s in states_of(node)]
    weights = [state.value(w) for w in node.args[2]]  # type: ignore[union-attr]
    outputs = [Value(concrete(v.shape)) for v in node.meta["val"]]
    last, directions = len(x.shape) - 1, 2 if node.args[7] else 1
    labels.fix_value(x, "a step of a recurrent layer", range(last))
    if is_projected(node):
        # At equal sizes of cell and projection, the operator takes the projection for a bias.
        for value in (x, *states, *weights):
            labels.fix_value(value, "is of an LSTM with projected outputs (proj_size), whose widths cannot change")
        return outputs
    hidden = labels.fresh(weights[1].shape[1])
    each = len(weights) // directions
    for direction in range(directions):
        for_input, for_hidden, *biases = weights[direction * each : (direction + 1) * each]
        if x.shape[last] > 1:
            labels.equate(x.along(last), for_input.along(1), "reads a fixed input")
        if len(hidden) > 1:
            labels.equate(for_hidden.along(1), [hidden], "a fixed recurrent weight")
        for rows in (for_input, for_hidden, *biases):
            labels.equate(rows.along(0), [np.tile(hidden, GATES[node.target])], "a fixed gate")
    for value in states if len(hidden) > 1 else ():
        labels.equate(value.along(len(value.shape) - 1), [hidden], "an initial state that is given")
    along = [np.tile(hidden, directions), *(hidden for _ in states)]
    return [Value.of_dims(v.shape, {len(v.shape) - 1: [a]}) for v, a in zip(outputs, along, strict=True)]


def name_hidden(
    units: Sequence[Unit], captures: Mapping[bool, Capture], canonical: Mapping[str, str]
) -> tuple[Unit, ...]:
    """Return the units with those of recurrent layers of the kind `hidden`, named by module and layer: `encoder.l0`."""
    nodes = [n for n in captures[False].graph.nodes if n.target in GATES]
    given = [w for n in nodes for w in n.args[2][1:2]]
    given += [n.args[1] for n in captures[False].graph.nodes if HIDDEN in n.meta]
    weights = [canonical[str(w.target)] for w in given if w.op == "get_attr"]
    taken = {unit.name for unit in units}
    named = []
    for unit in units:
        names = [m.parameter for m in unit.members if m.dim == 0 and m.parameter in weights]
        if names:
            cell, layer = _HIDDEN_WEIGHTS
            name = names[0].removesuffix(cell) if names[0].endswith(cell) else names[0].replace(layer, "")
            unit = replace(unit, kind="hidden", name=name if name not in taken - {unit.name} else unit.name)
            taken.add(unit.name)
        named.append(unit)
    return tuple(named)
