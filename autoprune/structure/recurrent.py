"""Rule of recurrent layers: the rows of their weights are blocks, one for each gate, with the same labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from autoprune.structure.analysis import Analysis
from autoprune.structure.labels import Array, Labels, Value
from autoprune.structure.nodes import concrete
from autoprune.structure.recurrent_layers import GATES, is_projected, states_of


def recurrent(state: Analysis, node: fx.Node) -> list[Value]:
    """Rule of one layer, `x [.., C]`, weights `[gates * H, C]` and `[gates * H, R]`, and output `[.., R]`.

    R is H, and gates share its labels; or the projection of an LSTM with a third weight `[R, H]`, whose H is fixed.
    Both directions of a layer share their labels, because one operator runs both at one width.
    """
    labels, x = state.labels, state.value(node.args[0])
    weights = [state.value(w) for w in node.args[2]]  # type: ignore[union-attr]
    last, directions = len(x.shape) - 1, 2 if node.args[7] else 1
    labels.fix_value(x, "a step of a recurrent layer", range(last))
    made = labels.fresh(weights[1].shape[1])
    each = len(weights) // directions
    for direction in range(directions):
        for_input, for_hidden, *others = weights[direction * each : (direction + 1) * each]
        if x.shape[last] > 1:
            labels.equate(x.along(last), for_input.along(1), "reads a fixed input")
        if len(made) > 1:
            labels.equate(for_hidden.along(1), [made], "a fixed recurrent weight")
        if is_projected(node):
            _project(labels, others[-1], made, [for_input, for_hidden, *others[:-1]])
        else:
            for rows in (for_input, for_hidden, *others):
                labels.equate(rows.along(0), [np.tile(made, GATES[node.target])], "a fixed gate")
    return _with_states(state, node, made)


def _project(labels: Labels, projection: Value, made: Array, gates: Sequence[Value]) -> None:
    """Tie the rows of a projection `[R, H]` to its outputs, and fix the cells H, also in the rows of the gates."""
    # At equal numbers of cells and projected outputs, the operator would take the projection for a bias.
    reason = "cells of an LSTM with projected outputs (proj_size), which stay more than its outputs"
    labels.fix_value(projection, reason, [1])
    for rows in gates:
        labels.fix_value(rows, reason, [0])
    if len(made) > 1:
        labels.equate(projection.along(0), [made], "a fixed projection")


def _with_states(state: Analysis, node: fx.Node, made: Array) -> list[Value]:
    """Return the values of sequence and final states, and tie the initial states to them; `made` `[R]` are labels."""
    outputs = [Value(concrete(v.shape)) for v in node.meta["val"]]
    directions, values = 2 if node.args[7] else 1, []
    for number, output in enumerate(outputs):
        last = len(output.shape) - 1
        is_cell = number == 2 and is_projected(node)
        along = [] if is_cell else [np.tile(made, directions) if number == 0 else made]
        values.append(Value.of_dims(output.shape, {last: along}))
        if number and output.shape[last] > 1:
            given = state.value(states_of(node)[number - 1])
            state.labels.fix_value(given, "the initial state of a recurrent layer", range(last))
            state.labels.equate(given.along(last), along, "an initial state that is given")
    return values
