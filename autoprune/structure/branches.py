"""Residual branches that can be removed: a unit may have width 0 when the rest of the model runs without it.

A value without channels is *absent*. Values that are computed from absent values are absent, too, biases included,
until an addition: `x + absent` is `x`. Operators and parameters that only serve absent values are *dead*.

In `y = relu(x + conv2(relu(conv1(x))))` with `x = relu(...)` and width 0 between the convolutions, `conv1` and `conv2`
are dead and the addition passes `x` on. The last `relu` would repeat the one that made `x`, so it does not run either.

A unit is *removable* when its absence ends at additions, in the evaluation graph and in the training graph. Absence
that reaches an output, or an operator that needs the value, makes the unit not removable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import fx

from autoprune.structure import rules
from autoprune.structure.aliases import is_in_place, owners
from autoprune.structure.capture import Capture
from autoprune.structure.gates import ALWAYS, NEVER, Gate, all_of
from autoprune.structure.nodes import shape_of
from autoprune.structure.units import Channels, Site

aten = torch.ops.aten
ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}
_PRODUCTS = {aten.mul.Tensor, aten.mul_.Tensor}
_IDEMPOTENT = {"aten::relu", "aten::relu6", "aten::hardtanh"}
_PASSING = {
    rules.convolution, rules.transposed_convolution, rules.linear, rules.batch_norm, rules.layer_norm,
    rules.group_norm, rules.pool, rules.reduction, rules.selection, rules.padding, rules.prelu, rules.movement,
    rules.reshaping, rules.expansion, rules.unchanged, rules.item, rules.ignored, rules.matrix_product,
    rules.attention, rules.glu,
}  # fmt: skip
"""Rules of operators whose output is absent when any input is absent."""

Covers = Mapping[tuple[str, str], frozenset[int]]
"""Indices of the units of which each holds all indices of some dimension, by `("parameter" | mode, name)`."""


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Gates of nodes and tensors that are not always there.

    - `units`: indices of the removable units.
    - `runs` and `present`: gates by (mode, node name). A bypassed addition or activation is present but does not run.
    - `tensors`: gates by canonical state-dict name.
    """

    units: frozenset[int] = frozenset()
    runs: Mapping[tuple[str, str], Gate] = field(default_factory=dict)
    present: Mapping[tuple[str, str], Gate] = field(default_factory=dict)
    tensors: Mapping[str, Gate] = field(default_factory=dict)

    def idle(self, mode: str, removed: AbstractSet[int]) -> set[str]:
        """Return the names of the nodes of a mode that do not run when the units `removed` have width 0."""
        return {name for (of, name), gate in self.runs.items() if of == mode and not gate.open_without(removed)}

    def absent(self, mode: str, removed: AbstractSet[int]) -> set[str]:
        """Return the names of the nodes of a mode whose values are absent when the units `removed` have width 0."""
        return {name for (of, name), gate in self.present.items() if of == mode and not gate.open_without(removed)}

    def dead_tensors(self, removed: AbstractSet[int]) -> set[str]:
        """Return the canonical names of the parameters and buffers that nothing reads without the units `removed`."""
        return {name for name, gate in self.tensors.items() if not gate.open_without(removed)}


def find_branches(
    captures: Mapping[bool, Capture], channels: Mapping[Site, Channels], canonical: Mapping[str, str], units: int
) -> Branches:
    """Find the removable units and everything that goes with them.

    Args:
        captures: both graphs.
        channels: of every labelled dimension.
        canonical: first name of every tensor.
        units: number of units.

    Returns:
        Gates under which any subset of the removable units may have width 0.
    """
    finder = _Finder({c.mode: c.graph for c in captures.values()}, _covers(channels), canonical)
    alone = [finder.try_without(frozenset([unit])) for unit in range(units)]
    removable = frozenset(unit for unit, (blamed, ends) in enumerate(alone) if ends and not blamed)
    while removable and (blamed := finder.try_without(removable)[0]):
        # Either of two branches that are added to each other can go, but not both.
        removable -= {max(blamed)}
    return finder.branches(removable) if removable else Branches()


def _covers(channels: Mapping[Site, Channels]) -> Covers:
    covers: dict[tuple[str, str], frozenset[int]] = defaultdict(frozenset)
    for (kind, name, _), of_site in channels.items():
        covers[kind, name] |= {unit for unit, channel in of_site.of_unit.items() if (channel >= 0).all()}
    return covers


class _Finder:
    """A pass of absence through the graphs of both modes."""

    def __init__(self, graphs: Mapping[str, fx.Graph], covers: Covers, canonical: Mapping[str, str]) -> None:
        self._graphs = graphs
        self._canonical = canonical
        self._steps = {
            mode: [(node, node.all_input_nodes, covers.get(self._key(mode, node), frozenset())) for node in graph.nodes]
            for mode, graph in graphs.items()
        }
        """Nodes of each mode, each with its inputs and the units that cover one of its dimensions."""

    def try_without(self, candidates: frozenset[int]) -> tuple[set[int], bool]:
        """Return the units of `candidates` that some node cannot do without, and if absence ends at an addition."""
        blamed, ends = set[int](), False
        for mode in self._graphs:
            present, guilty = self._presence(mode, candidates)
            blamed |= guilty
            if blamed == candidates:
                break
            ends = ends or any(n.target in ADDITIONS and g != _all_present(n, present) for n, g in present.items())
        return blamed, ends

    def branches(self, removable: frozenset[int]) -> Branches:
        """Return the gates of all nodes and tensors that depend on removable units."""
        runs: dict[tuple[str, str], Gate] = {}
        presence: dict[tuple[str, str], Gate] = {}
        needed: dict[str, Gate] = {}
        for mode, graph in self._graphs.items():
            present, _ = self._presence(mode, removable)
            alive = _alive(graph, present)
            for node in graph.nodes:
                presence[mode, node.name] = present[node]
                repeats = _repeats(node, present)
                runs[mode, node.name] = alive[node] & _all_present(node, present)
                if repeats is not None:
                    runs[mode, node.name] &= _all_present(repeats, present)
                if node.op == "get_attr" and not _is_counter(node):
                    name = self._name(node)
                    needed[name] = needed.get(name, NEVER) | alive[node]
        # Tensors that nothing reads at any width are kept as they are.
        tensors = {name: gate for name, gate in needed.items() if gate != NEVER}
        self._add_counters(runs, tensors)
        return Branches(
            units=removable,
            runs={key: gate for key, gate in runs.items() if gate != ALWAYS},
            present={key: gate for key, gate in presence.items() if gate != ALWAYS},
            tensors={name: gate for name, gate in tensors.items() if gate != ALWAYS},
        )

    def _add_counters(self, runs: dict[tuple[str, str], Gate], tensors: dict[str, Gate]) -> None:
        """Add counters that are written but never read (batches of a batch norm) with the gate of their module."""
        modules: dict[str, Gate] = {}
        for name, gate in tensors.items():
            module = name.rpartition(".")[0]
            modules[module] = modules.get(module, NEVER) | gate
        for mode, graph in self._graphs.items():
            for node in graph.nodes:
                if node.op == "get_attr" and _is_counter(node):
                    gate = modules.get(self._name(node).rpartition(".")[0], ALWAYS)
                    tensors[self._name(node)] = gate
                    runs |= {(mode, n.name): gate for n in (node, *node.users)}

    def _name(self, node: fx.Node) -> str:
        return self._canonical[str(node.target)]

    def _key(self, mode: str, node: fx.Node) -> tuple[str, str]:
        return ("parameter", self._name(node)) if node.op == "get_attr" else (mode, node.name)

    def _presence(self, mode: str, candidates: frozenset[int]) -> tuple[dict[fx.Node, Gate], set[int]]:
        """Return the gate of every value, and the units whose absence some node cannot do without."""
        present: dict[fx.Node, Gate] = {}
        blamed: set[int] = set()
        for node, inputs, covered in self._steps[mode]:
            own = covered & candidates
            if not own and all(present[n] is ALWAYS for n in inputs):
                present[node] = ALWAYS
                continue
            gates = {n: present[n] for n in inputs}
            of_inputs = ALWAYS
            if any(gate != ALWAYS for gate in gates.values()):
                combined = _combined(node, gates)
                if combined is None:
                    blamed.update(*(gate.units for gate in gates.values()))
                    if blamed == candidates:
                        break  # every candidate is ruled out already
                of_inputs = all_of(gates.values()) if combined is None else combined
            present[node] = of_inputs & Gate(frozenset([own]))
        return present, blamed


def _combined(node: fx.Node, gates: Mapping[fx.Node, Gate]) -> Gate | None:
    """Return when the output of a node is present, given its inputs; `None` if it cannot do without some input."""
    every = all_of(gates.values())
    rule = rules.rule_for(node.target) if node.op == "call_function" else None
    if node.op == "output":
        return None
    if not node.users or node.target in _PRODUCTS or rule in _PASSING:
        return every  # a node without users is an assertion or a write, which goes with its inputs
    if rule is not rules.pointwise:
        return None
    operands = [n for n in gates if isinstance(n.meta.get("val"), torch.Tensor)]
    if len({gates[n] for n in operands}) == 1:
        return every
    if node.target in ADDITIONS and not node.kwargs:
        a, b = operands
        if "get_attr" in (a.op, b.op):
            return every  # a bias
        if shape_of(a) == shape_of(b) and a.meta["val"].dtype == b.meta["val"].dtype:
            return gates[a] | gates[b]
    return None


def may_be_bypassed(node: fx.Node) -> bool:
    """Return whether a node that does not run may pass an operand on."""
    return node.target in ADDITIONS or _activation(node) is not None


def _all_present(node: fx.Node, present: Mapping[fx.Node, Gate]) -> Gate:
    return all_of(present[source] for source in node.all_input_nodes)


def _repeats(node: fx.Node, present: Mapping[fx.Node, Gate]) -> fx.Node | None:
    """Return the addition before an activation that repeats an earlier one when that addition is bypassed.

    The operand that stays has passed the same activation already.
    """
    addition = node.args[0] if _activation(node) else None
    if not isinstance(addition, fx.Node) or addition.target not in ADDITIONS:
        return None
    staying = [n for n in addition.all_input_nodes if present[n] == present[addition]]
    return addition if len(staying) == 1 and _activation(staying[0]) == _activation(node) else None


def _activation(node: fx.Node) -> tuple[object, ...] | None:
    """Return which activation a node is, if applying it twice equals applying it once; else `None`."""
    name = getattr(getattr(node.target, "overloadpacket", None), "_qualified_op_name", "").removesuffix("_")
    return (name, *node.args[1:]) if name in _IDEMPOTENT else None


def _alive(graph: fx.Graph, present: Mapping[fx.Node, Gate]) -> dict[fx.Node, Gate]:
    """Return when every node is present and serves an output; a write serves later readers of that memory."""
    memory = owners(graph)
    needed: dict[fx.Node, Gate] = defaultdict(lambda: NEVER)
    read_later: dict[fx.Node | None, Gate] = defaultdict(lambda: NEVER)
    read_later[None] = ALWAYS  # parameters
    alive: dict[fx.Node, Gate] = {}
    for node in reversed(graph.nodes):
        wanted = ALWAYS if node.op in ("output", "placeholder") else needed[node]
        if is_in_place(node):
            wanted |= read_later[memory.get(node)]
        alive[node] = present[node] & wanted
        for source in node.all_input_nodes:
            needed[source] |= alive[node]
            if source in memory:
                read_later[memory[source]] |= alive[node]
    for node in graph.nodes:
        if node.op == "call_function" and not node.users and not is_in_place(node):
            alive[node] = all_of(alive[source] for source in node.all_input_nodes)
    return alive


def _is_counter(node: fx.Node) -> bool:
    """Return whether a tensor is only written in place."""
    return bool(node.users) and all(is_in_place(user) and not user.users for user in node.users)
