"""Charges of a model whose layers may be treated: in which precision, in which pieces, and the conversions between.

In fp32, an addition and an activation ride on the convolution before them. Where a value between them becomes int8,
they do not: the addition is then a charge of its own. Where a tensor changes between fp32 and int8, its conversion is
a charge. `Placement` knows both; here its answers become functions of rows `[P, U + L]`.

A layer of two factors is two charges (see `factor_charges`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from autoprune.latency.charges import ALWAYS_DENSE, BYPASSED, Decided, PricedOperator
from autoprune.latency.conditions import all_and_none, some
from autoprune.latency.factor_charges import first_factor, rank_of_layer, whole_or_second
from autoprune.structure import Dim, Operator, Structure
from autoprune.structure.gates import ALWAYS, NEVER, Gate, any_of
from autoprune.structure.geometry import output_shape
from autoprune.structure.placement import Boundary, Placement, Step
from autoprune.treatments import INT8, code_of_factors

Masks = Mapping[str, np.ndarray]

_OWN_LAYOUT = frozenset({"conv2d"})
"""Operators that the runtime computes in a memory layout of their own in fp32."""


def treated_charges(
    structure: Structure, charges: Sequence[PricedOperator], layers: Sequence[str]
) -> tuple[PricedOperator, ...]:
    """Return the charges of a model whose layers may be treated: pieces of the given ones, then conversions.

    Args:
        structure: of the model.
        charges: those of the model in fp32.
        layers: names of the `L` layers, in the order of the last columns of rows.
    """
    decisions = _Decisions.of(structure, layers)
    pieces = [piece for charge in charges for piece in _pieces(charge, structure, decisions)]
    boundaries = structure.placement.boundaries(frozenset(layers))
    conversions = [charge for boundary in boundaries for charge in _conversions(boundary, structure, decisions)]
    return (*pieces, *conversions)


@dataclass(frozen=True, kw_only=True)
class _Decisions:
    """Answers of a placement for rows.

    `columns` are those of the layers, `gates` say when a layer runs, and `exists` when the value of a step exists.
    `ranks` are those of the factors of a layer, 0 where its weight is whole, for the layers that can have factors.
    """

    placement: Placement
    columns: Mapping[str, int]
    gates: Mapping[str, Gate]
    exists: Mapping[str, Gate]
    ranks: Mapping[str, Decided]

    @classmethod
    def of(cls, structure: Structure, layers: Sequence[str]) -> _Decisions:
        gate_of = {operator.node: operator.gate for operator in structure.operators}
        nodes = {layer.name: layer.nodes for layer in structure.layers}
        return cls(
            placement=structure.placement,
            columns={name: len(structure.units) + number for number, name in enumerate(layers)},
            gates={name: any_of(gate_of[node] for node in nodes[name]) for name in layers},
            exists={node: gate for node, gate in _value_gates(structure.operators).items() if gate != ALWAYS},
            ranks={
                layer.name: rank_of_layer(structure.dims[layer.name], len(structure.units) + layers.index(layer.name))
                for layer in structure.layers
                if layer.name in layers and any(layer.matrix)
            },
        )

    def code(self, layer: str) -> Decided:
        """Code of the treatment of a layer, or of each of its factors."""
        return Decided(columns=(self.columns[layer],), of=partial(_code, self.columns[layer]))

    def is_int8(self, tensor: str) -> Decided:
        """Whether a tensor is int8."""
        return self._decided(self.placement.layers_of[tensor], (), partial(_is_int8, self.placement, tensor))

    def some_int8(self, tensors: Iterable[str]) -> Decided:
        """Whether one of some tensors is int8."""
        return some([self.is_int8(tensor) for tensor in tensors])

    def code_of_join(self, step: Step) -> Decided:
        """Code of int8 where a join computes in int8, else of fp32."""
        layers = self.placement.deciding(step)
        return self._decided(layers, step.inputs, partial(_join_code, self.placement, step))

    def converted(self, tensor: str) -> Decided:
        """Whether a tensor is int8 that an fp32 step wrote."""
        writer = self.placement.steps[tensor]
        layers = dict.fromkeys((*self.placement.layers_of[tensor], *self.placement.deciding(writer)))
        steps = (tensor, *(writer.inputs if writer.kind == "join" else ()))
        return self._decided([*layers], steps, partial(_meets_fp32, self.placement, tensor, (writer,)))

    def sums_in_fp32(self, step: Step) -> Decided:
        """Whether a layer is int8 and what it writes is not."""
        layers = dict.fromkeys((step.layer, *self.placement.layers_of[step.name]))
        return self._decided([*layers], (), partial(_sums_in_fp32, self.placement, step))

    def meets_fp32(self, boundary: Boundary, sides: Sequence[Step]) -> Decided:
        """Whether a conversion takes place because some of its sides compute in fp32."""
        steps = (
            *(side.name for side in sides),
            *(name for side in sides if side.kind == "join" for name in side.inputs),
        )
        return self._decided(
            boundary.layers, steps, partial(_meets_fp32, self.placement, boundary.tensor, tuple(sides))
        )

    def _decided(
        self, layers: Sequence[str], steps: Sequence[str], answer: Callable[[Masks, Masks], np.ndarray]
    ) -> Decided:
        """Return what a placement answers to the masks of layers that are int8, and of steps that exist."""
        columns = {name: self.columns[name] for name in layers if name in self.columns}
        gates = {name: self.gates[name] for name in columns}
        exists = {name: self.exists[name] for name in steps if name in self.exists}
        units = {unit for gate in (*gates.values(), *exists.values()) for unit in gate.units}
        return Decided(
            columns=tuple(sorted({*columns.values(), *units})), of=partial(_answer, columns, gates, exists, answer)
        )


def _answer(
    columns: Mapping[str, int],
    gates: Mapping[str, Gate],
    exists: Mapping[str, Gate],
    answer: Callable[[Masks, Masks], np.ndarray],
    rows: np.ndarray,
) -> np.ndarray:
    int8 = {name: (_code(column, rows) == INT8.code) & gates[name](rows) for name, column in columns.items()}
    return answer(int8, {name: gate(rows) for name, gate in exists.items()})


def _is_int8(placement: Placement, tensor: str, int8: Masks, _: Masks) -> np.ndarray:
    return placement.is_int8(tensor, int8)


def _join_code(placement: Placement, step: Step, int8: Masks, exists: Masks) -> np.ndarray:
    return placement.runs_in_int8(step, int8, exists) * np.int64(INT8.code)


def _meets_fp32(placement: Placement, tensor: str, sides: Sequence[Step], int8: Masks, exists: Masks) -> np.ndarray:
    return placement.meets_fp32(tensor, sides, int8, exists)


def _sums_in_fp32(placement: Placement, step: Step, int8: Masks, _: Masks) -> np.ndarray:
    return placement.runs_in_int8(step, int8) & ~placement.is_int8(step.name, int8)


def _moved_code(tensor: Decided, rows: np.ndarray) -> np.ndarray:
    return tensor.of(rows) * np.int64(INT8.code)


def _code(column: int, rows: np.ndarray) -> np.ndarray:
    return code_of_factors(rows[:, column])


def _value_gates(operators: Sequence[Operator]) -> dict[str, Gate]:
    """Return when the value of every operator exists: also that of an addition that only passes an operand on."""
    gates: dict[str, Gate] = {}
    for operator in operators:
        passes = operator.op in BYPASSED and operator.gate != ALWAYS
        read = [gates.get(name, ALWAYS) for name in operator.inputs]
        gates[operator.node] = any_of(read) if passes else operator.gate
    return gates


def _pieces(charge: PricedOperator, structure: Structure, decisions: _Decisions) -> Iterator[PricedOperator]:
    """Yield the charges that one of fp32 falls into: it ends before each rider that reads an int8 value.

    An addition does not ride either when the other value that it adds was int8: the runtime then adds in another
    memory layout.
    """
    placement = decisions.placement
    nodes = (charge.node, *charge.riders)
    ends: dict[int, Decided] = {}
    for place in range(1, len(nodes)):
        step = placement.steps[nodes[place]]
        read = step.inputs if step.kind == "join" else (nodes[place - 1],)
        converted = decisions.some_int8(dict.fromkeys(map(placement.tensor_of, read)))
        if step.kind != "moves" and converted.columns:
            ends[place] = converted
    for begin in (0, *ends):
        for end in (*(place for place in ends if place > begin), len(nodes)):
            inside = [decided for place, decided in ends.items() if begin < place < end]
            at = [ends[place] for place in (begin, end) if place in ends]
            piece = _piece(charge, nodes[begin:end], structure, decisions, all_and_none(at, inside))
            rank = decisions.ranks.get(placement.steps[piece.node].layer)
            yield from _by_kernel(piece, decisions) if rank is None else whole_or_second(piece, rank)
    rank = decisions.ranks.get(placement.steps[charge.node].layer)
    if rank is not None:
        yield first_factor(charge, rank, _treatment(charge.node, decisions))


def _by_kernel(piece: PricedOperator, decisions: _Decisions) -> Iterator[PricedOperator]:
    """Yield the charges that one falls into because the runtime has another kernel for it beside fp32 steps.

    Two steps have one: a pooling of int8 that an fp32 step wrote, since the runtime quantizes before it pools, whatever
    the file says, and in the memory layout of the fp32 step (32 channels of 28 x 28 take 38 us, and 4 us in that of an
    int8 convolution); and an int8 linear layer whose sums nobody reads in int8.
    """
    placement = decisions.placement
    step = placement.steps[piece.node]
    if step.kind == "moves":
        other, name = decisions.converted(placement.tensor_of(step.name)), "quantized"
    elif step.kind == "layer" and step.writes_fp32 and step.layer in decisions.columns:
        other, name = decisions.sums_in_fp32(step), "fp32 sums"
    else:
        other, name = Decided(), ""
    if not other.columns:
        yield piece
        return
    own = [piece.condition] if piece.condition.columns else []
    yield replace(piece, condition=all_and_none(own, [other]))
    fused = "+".join(filter(None, (piece.fused, name)))
    yield replace(piece, fused=fused, condition=all_and_none([other, *own], []))


def _piece(
    charge: PricedOperator, nodes: Sequence[str], structure: Structure, decisions: _Decisions, condition: Decided
) -> PricedOperator:
    """Return the charge of some of the nodes of one, the first of which is its operator."""
    operators = {operator.node: operator for operator in structure.operators}
    riding = [operators[node].op for node in nodes[1:] if operators[node].op != "batch_norm"]
    common = {"riders": tuple(nodes[1:]), "fused": "+".join(riding), "condition": condition}
    treatment = _treatment(nodes[0], decisions)
    if nodes[0] == charge.node:
        return replace(charge, treatment=treatment, **common)
    head = operators[nodes[0]]
    return replace(
        charge, node=head.node, op=head.op, c_in=head.c_in, c_out=head.c_out, groups=head.groups,
        out_rows=head.out_rows, out_columns=head.out_columns, kernel=tuple(head.kernel), stride=tuple(head.stride),
        dilation=tuple(head.dilation), parameters=tuple(head.parameters), treatment=treatment, **common,
    )  # fmt: skip


def _treatment(node: str, decisions: _Decisions) -> Decided:
    """Return the treatment of the operator at a node: its layer's, or int8 where a join or a pooling is in int8."""
    step = decisions.placement.steps[node]
    if step.layer:
        return decisions.code(step.layer) if step.layer in decisions.columns else ALWAYS_DENSE
    if step.kind == "join":
        decided = decisions.code_of_join(step)
    elif step.kind == "moves":
        tensor = decisions.is_int8(decisions.placement.tensor_of(node))
        decided = replace(tensor, of=partial(_moved_code, tensor))
    else:
        return ALWAYS_DENSE
    return decided if decided.columns else ALWAYS_DENSE


def _conversions(boundary: Boundary, structure: Structure, decisions: _Decisions) -> Iterator[PricedOperator]:
    """Yield the charges of a conversion, at the size of the value that is converted.

    The operator that writes it in fp32, or a convolution that reads it, is named by `fused`: the runtime's fp32
    convolutions have a memory layout of their own, into which and out of which values are copied.
    """
    placement = decisions.placement
    op_of = {operator.node: operator.op for operator in structure.operators}
    sides: dict[str, list[Step]] = {}
    for side in placement.sides_of(boundary):
        op = op_of.get(side.name, "")
        sides.setdefault(op if boundary.direction == "quantize" or op in _OWN_LAYOUT else "", []).append(side)
    for name, steps in sides.items():
        value = boundary.tensor
        if boundary.direction == "dequantize":
            value = next(read for read in steps[0].inputs if placement.tensor_of(read) == value)
        sized = _sized(value, structure)
        yield PricedOperator(
            node=f"{boundary.direction} {boundary.tensor} {name}".strip(), carrier="", op=boundary.direction,
            c_in=sized.c_out, c_out=sized.c_out, groups=Dim(1), out_rows=sized.out_rows,
            out_columns=sized.out_columns, kernel=(), stride=(), dilation=(), fused=name, parameters=(), gate=ALWAYS,
            unless=NEVER, condition=decisions.meets_fp32(boundary, steps),
        )  # fmt: skip


def _sized(value: str, structure: Structure) -> Operator:
    """Return an operator with the output sizes of a value: the one that writes it, or one that stands for an input."""
    operators = {operator.node: operator for operator in structure.operators}
    if value in operators:
        return operators[value]
    node = next(node for node in structure.captures[False].graph.nodes if node.name == value)
    _, *sizes = output_shape(node)
    channels, *places = sizes or [1]
    return Operator(
        node=value, op="input", inputs=(), c_in=Dim(channels), c_out=Dim(channels), groups=Dim(1),
        out_columns=int(np.prod(places)),
    )  # fmt: skip
