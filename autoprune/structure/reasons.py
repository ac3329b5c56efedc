"""Reasons, in words, why dimensions of a model keep their width."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from torch import fx

from autoprune.model.outputs import output_names
from autoprune.structure.analysis import Analysis
from autoprune.structure.branches import find_branches
from autoprune.structure.capture import Capture
from autoprune.structure.elements import unchanged
from autoprune.structure.labels import Array
from autoprune.structure.movements import item, movement, reshaping
from autoprune.structure.nodes import shape_of
from autoprune.structure.rules import rule_for
from autoprune.structure.structure import Fixed
from autoprune.structure.units import Channels, Site

_OF_EVERY_MODEL = ("an output of the model", "reads a fixed input")
"""Reasons that every model has for its first and last layer."""
_MOST_REASONS = 3
_MEETS = "meets a fixed operand"
_ADVICE = "torch.nn.utils.parametrize.remove_parametrizations"


def described(captures: Mapping[bool, Capture], site: Site) -> str:
    """Return the words for a dimension: the operator that made it, behind views, and the layers that read it."""
    kind, name, dim = site
    if kind == "parameter":
        return f"{name}[{dim}]"
    nodes = {node.name: node for node in captures[kind == "train"].graph.nodes}
    node = nodes[name]
    sources = [source for user in node.users for source in user.all_input_nodes if source.op == "get_attr"]
    weights = sorted({str(source.target) for source in sources if len(shape_of(source)) > 1})
    while node.all_input_nodes and rule_for(node.target) in (movement, reshaping, unchanged, item):
        node = node.all_input_nodes[0]
    read = f", and {', '.join(weights)} reads the result" if weights else ""
    return f"{node.target} (node {node.name!r}{_written_at(node)}){read}"


def _written_at(node: fx.Node) -> str:
    """Return the line of the user's code that made a node, if the exporter recorded it."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace", "")).splitlines() if line.strip()]
    return f": `{lines[-1]}`" if lines and not lines[-1].startswith("File") else ""


def useless_units(
    captures: Mapping[bool, Capture],
    canonical: Mapping[str, str],
    sites: Mapping[Site, list[Array]],
    channels: Mapping[Site, Channels],
    widths: Sequence[int],
) -> dict[int, str]:
    """Return the units with a single channel that no policy can remove, with the reason why the channel is single."""
    single = [unit for unit, width in enumerate(widths) if width == 1]
    if not single:
        return {}
    removable = find_branches(captures, channels, canonical, len(widths)).units
    places = list(_meeting_places(captures[False].graph, sites))
    return {unit: _why_single(unit, places, captures, channels) for unit in single if unit not in removable}


def _meeting_places(graph: fx.Graph, sites: Mapping[Site, list[Array]]) -> Iterator[Site]:
    """Yield the dimensions of operands that meet the same channels in another order, as in `x + x.roll(1, 1)`."""
    for node in graph.nodes:
        sources = node.all_input_nodes if node.op == "call_function" else []
        orders: dict[tuple[int, frozenset[int]], Array] = {}
        for source in sources:
            rank = len(shape_of(source))
            for dim in range(rank):
                for order in sites.get(("eval", source.name, dim), []):
                    first = orders.setdefault((dim - rank, frozenset(order.tolist())), order)
                    if not np.array_equal(first, order):
                        yield "eval", node.name, len(shape_of(node)) + dim - rank


def _why_single(
    unit: int, places: Sequence[Site], captures: Mapping[bool, Capture], channels: Mapping[Site, Channels]
) -> str:
    of_unit = (place for place in places if place in channels and unit in channels[place].of_unit)
    where = next(of_unit, None)
    if where is None:
        return "its indices are all tied to each other, so that none can go alone"
    return f"its channels meet each other in {described(captures, where)}, so that none can go alone"


def with_advice(name: str, reason: str) -> str:
    """Return the reason with what can be done about it: a parametrization computes the weight from another one."""
    module, parametrized, rest = name.partition(".parametrizations.")
    if not parametrized:
        return reason
    weight = rest.split(".")[0]
    return f"{module}.{weight} is computed by a parametrization ({reason}); first: {_ADVICE}({module}, {weight!r})"


def why_nothing(states: Mapping[bool, Analysis], fixed: Sequence[Fixed], captures: Mapping[bool, Capture]) -> str:
    """Return why a model has no unit, for the message of an error."""
    unsupported = sorted(states[False].unsupported)
    if unsupported:
        advice = next((f". {each.reason}" for each in fixed if _ADVICE in each.reason), "")
        return f"these operators have no rule and fix what they touch: {', '.join(unsupported)}{advice}."
    reasons: dict[str, str] = {}
    for each in fixed:
        if not each.reason.startswith(_OF_EVERY_MODEL):
            reasons.setdefault(each.reason, each.parameter)
    if reasons:
        return "; ".join(f"{name}: {reason}" for reason, name in list(reasons.items())[:_MOST_REASONS]) + "."
    names = [name for name in output_names(captures[False].out_spec) if name]
    several = (
        f" It returns {', '.join(names[:8])}: `outputs=` says which of these counts; hidden states that the others are "
        "computed from need not."
        if len(names) > 1
        else ""
    )
    return (
        "every channel reaches an input or an output of the model. A prunable model has at least two layers." + several
    )


def fixed_heads(
    state: Analysis, channels: Mapping[Site, Channels], heads: Collection[int], canonical: Mapping[str, str]
) -> tuple[Fixed, ...]:
    """Return the heads of attention that stay, each with the weight that makes them and the reason.

    Args:
        state: of the evaluation graph.
        channels: of every labelled dimension.
        heads: indices of the units that are heads.
        canonical: first name of every tensor.
    """
    fixed: dict[str, Fixed] = {}
    for node, arrays in state.heads_of.items():
        labels = [array for array in arrays if not state.labels.roots(array).any()]
        weight = canonical.get(_nearest_weight(node), "") if labels else ""
        cut = channels.get(("parameter", weight, 0))
        if weight and weight not in fixed and not (cut and cut.of_unit.keys() & set(heads)):
            reason = state.labels.reason(int(labels[0][0])) or ""
            hint = ", such as a number for each head" if reason.startswith(_MEETS) else ""
            count = len(np.unique(labels[0]))
            fixed[weight] = Fixed(parameter=weight, dim=0, size=count, reason=f"its heads stay: {reason}{hint}")
    return tuple(fixed.values())


def _nearest_weight(node: fx.Node) -> str:
    """Return the name of the matrix that a node's first operands are computed with, in the fewest steps."""
    waiting, seen = [node], {node}
    for each in waiting:
        for source in each.all_input_nodes:
            if source.op == "get_attr" and len(shape_of(source)) > 1:
                return str(source.target)
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return ""
