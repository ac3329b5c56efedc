"""Charges of a runtime: the operators of a graph, where an operator and everything fused into it are one charge."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from autoprune.latencies import Geometry
from autoprune.structure import Dim, Operator
from autoprune.structure.gates import NEVER, Gate
from autoprune.treatments import INT8, Treatment

_FREE = frozenset(
    {"flatten", "view", "reshape", "unflatten", "dropout", "contiguous", "clone", "detach", "alias", "squeeze"}
    | {"unsqueeze", "getitem", "zeros"}
)
_WEIGHTED = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}
)
_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh", "clamp", "leaky_relu", "sigmoid", "hardsigmoid", "tanh"})
BYPASSED = _ACTIVATIONS | {"add"}
"""Operators that pass an operand on where a removed branch leaves them nothing to do."""


def _ones(rows: np.ndarray) -> np.ndarray:
    return np.ones(len(rows), dtype=np.int64)


def _zeros(rows: np.ndarray) -> np.ndarray:
    return np.zeros(len(rows), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A value that widths and treatments decide: `of` maps rows `[P, U + L]` to values `[P]`.

    `columns` are those of the rows that it depends on. The default is 1 (true) for every row.
    """

    columns: tuple[int, ...] = ()
    of: Callable[[np.ndarray], np.ndarray] = _ones


ALWAYS_THERE = Decided()
ALWAYS_DENSE = Decided(of=_zeros)
"""Code of the dense treatment for every row."""


@dataclass(frozen=True, kw_only=True)
class PricedOperator:
    """One charge of the runtime: an operator, and the names of the element-wise ones that ride on it (`fused`).

    `node` is the operator's name in the captured graph, `riders` are those of the operators that ride on it. `carrier`
    is the node that the dense model charges for it: the same node, or the operator it rides on there. `parameters` are
    state-dict names. The operator is charged while `gate` is open, `unless` is closed and `condition` holds. `unless`
    closes when a branch is removed: only then is an activation behind that branch a charge of its own. `condition`
    and `treatment`, the code of the treatment that the operator has, depend on the treatments of layers.

    A `factor` of a layer, its "first" or "second" one, has as many channels out, or in, as the layer's `rank` says.

    Rows are int64 `[P, U + L]`: widths of units, then codes of the treatments of layers.
    """

    node: str
    carrier: str
    op: str
    c_in: Dim
    c_out: Dim
    groups: Dim
    out_rows: int
    out_columns: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    fused: str
    parameters: tuple[str, ...]
    gate: Gate
    unless: Gate
    riders: tuple[str, ...] = ()
    condition: Decided = ALWAYS_THERE
    treatment: Decided = ALWAYS_DENSE
    factor: Literal["", "first", "second"] = ""
    rank: Decided = ALWAYS_DENSE

    def present(self, rows: np.ndarray) -> np.ndarray:
        """Return whether the operator is charged at all: bool `[P]` for rows `[P, U + L]`."""
        return self.gate(rows) & ~self.unless(rows) & self.condition.of(rows).astype(bool)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Return channels in, channels out and groups: int64 `[P, 3]` for rows `[P, U + L]`."""
        inner = self.rank.of(rows)
        c_in = inner if self.factor == "second" else self.c_in(rows)
        c_out = inner if self.factor == "first" else self.c_out(rows)
        return np.stack([c_in, c_out, self.groups(rows)], axis=1)

    def geometry(self, sizes: Iterable[int], code: int = 0) -> Geometry:
        """Key of this operator in a latency table, for one row of `sizes` and the code of its treatment."""
        c_in, c_out, groups = (int(size) for size in sizes)
        return replace(self.signature(code), c_in=c_in, c_out=c_out, groups=groups)

    def geometries(self, rows: np.ndarray) -> list[Geometry]:
        """Distinct keys of this operator in all models of rows `[P, U + L]`."""
        rows = rows[self.present(rows)]
        keys = np.column_stack([self.treatment.of(rows), self.sizes(rows)])
        return [self.geometry(sizes, code) for code, *sizes in np.unique(keys, axis=0)]

    def signature(self, code: int = 0) -> Geometry:
        """Return the part of the key that no width changes (channels and groups are 0), in a treatment.

        An activation that rides on an int8 operator is not named: it only changes the range to which sums are rounded.
        """
        free = code == INT8.code and self.fused in _ACTIVATIONS
        return Geometry(
            op=self.op,
            c_in=0,
            c_out=0,
            out_rows=self.out_rows,
            out_columns=self.out_columns,
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            groups=0,
            fused="" if free else self.fused,
            treatment=str(Treatment.of_code(code)) if code else "",
        )

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the columns of rows, units and layers, that the cost depends on."""
        treated = {*self.condition.columns, *self.treatment.columns, *self.rank.columns}
        return tuple(sorted({*self.widths, *treated}))

    @property
    def widths(self) -> tuple[int, ...]:
        """Indices of the units whose widths its sizes and its gates depend on."""
        sized = {*self.c_in.units, *self.c_out.units, *self.groups.units}
        return tuple(sorted({*sized, *self.gate.units, *self.unless.units}))


_Key = tuple[str, str]
"""Name of a charge: the node of its operator, and the operators that are fused into it."""


def priced_operators(operators: Sequence[Operator]) -> tuple[PricedOperator, ...]:
    """Return the charges of the dense model in graph order, then the charges that only a removed branch causes.

    A removed branch changes the charges beside it: an activation that rode on the branch becomes a charge of its own,
    or rides on another operator. The operators are therefore grouped again without each removable unit, one unit at a
    time; how several removed branches combine is not looked at.
    """
    dense = _charges(operators)
    removable = sorted({unit for operator in operators for unit in operator.gate.units})
    without_unit = {unit: _charges(without(operators, {unit})) for unit in removable}
    return (*_charges_of_dense(dense, without_unit), *_charges_of_removal(dense, without_unit))


def _charges_of_dense(
    dense: Mapping[_Key, _Charge], without_unit: Mapping[int, Mapping[_Key, _Charge]]
) -> Iterator[PricedOperator]:
    """Charges of the dense model: each ends when a unit is removed without which it is grouped differently."""
    for key, charge in dense.items():
        gate = charge.head.gate
        regrouping = {u for u, charges in without_unit.items() if key not in charges and gate.open_without({u})}
        yield _priced(charge, charge.head.node, gate & _all_above_zero(regrouping), NEVER)


def _charges_of_removal(
    dense: Mapping[_Key, _Charge], without_unit: Mapping[int, Mapping[_Key, _Charge]]
) -> Iterator[PricedOperator]:
    """Charges that the dense model does not have: each exists while any of the units that cause it is removed."""
    carriers = {node: charge.head.node for charge in dense.values() for node in (charge.head.node, *charge.riders)}
    causes: dict[_Key, set[int]] = {}
    for unit, charges in without_unit.items():
        for key in charges.keys() - dense.keys():
            causes.setdefault(key, set()).add(unit)
    for key, units in causes.items():
        charge = without_unit[min(units)][key]
        carrier = carriers.get(charge.head.node, charge.head.node)
        yield _priced(charge, carrier, charge.head.gate, _all_above_zero(units))


def without(operators: Sequence[Operator], removed: AbstractSet[int]) -> list[Operator]:
    """The operators that run when some units (indices) have width 0.

    A bypassed addition, and an activation that has nothing to do behind it, passes its operand on.
    """
    passed: dict[str, str | None] = {}
    running = []
    for operator in operators:
        inputs = [passed.get(name, name) for name in operator.inputs]
        remaining = tuple(name for name in inputs if name is not None)
        if operator.gate.open_without(removed):
            running.append(replace(operator, inputs=remaining))
        else:
            passed[operator.node] = remaining[0] if operator.op in BYPASSED and remaining else None
    return running


@dataclass(frozen=True, kw_only=True)
class _Charge:
    """An operator, the nodes that ride on it, and the operators among them that its key names (`fused`)."""

    head: Operator
    riders: tuple[str, ...]
    fused: str


def _charges(operators: Sequence[Operator]) -> dict[_Key, _Charge]:
    """Group operators as ONNX Runtime does: weights + batch norm, then an addition and an activation, in one charge.

    A follower rides only on an operator whose output nothing else reads. An addition of two such operators rides on
    the later one. Reshapes and dropout cost nothing.
    """
    readers = Counter(name for operator in operators for name in operator.inputs)
    heads: list[Operator] = []
    fused: dict[str, list[str]] = {}
    riders: dict[str, list[str]] = defaultdict(list)
    tails: dict[str, str] = {}
    for operator in operators:
        if operator.op in _FREE:
            continue
        carriers = [name for name in operator.inputs if readers[name] == 1 and name in tails]
        riding = [name for name in carriers if _may_ride(operator.op, fused[tails[name]])]
        if riding:
            tail = max(riding, key=lambda name: _position(heads, tails[name]))
            head = tails.pop(tail)
            tails[operator.node] = head
            riders[head].append(operator.node)
            fused[head] += [] if operator.op == "batch_norm" else [operator.op]
            continue
        heads.append(operator)
        if operator.op in _WEIGHTED:
            tails[operator.node] = operator.node
            fused[operator.node] = []
    charges = [
        _Charge(head=h, riders=tuple(riders.get(h.node, ())), fused="+".join(fused.get(h.node, []))) for h in heads
    ]
    return {(charge.head.node, charge.fused): charge for charge in charges}


def _all_above_zero(units: AbstractSet[int]) -> Gate:
    return Gate(frozenset([frozenset(units)]))


def _may_ride(op: str, fused: Sequence[str]) -> bool:
    """Order of a fusion: batch norm first, then one addition, then one activation that ends it."""
    if fused and fused[-1] in _ACTIVATIONS:
        return False
    if op == "batch_norm":
        return not fused
    return op in _ACTIVATIONS or (op == "add" and not fused)


def _position(heads: Sequence[Operator], node: str) -> int:
    return next(i for i, head in enumerate(heads) if head.node == node)


def _priced(charge: _Charge, carrier: str, gate: Gate, unless: Gate) -> PricedOperator:
    head = charge.head
    return PricedOperator(
        node=head.node,
        carrier=carrier,
        op=head.op,
        c_in=head.c_in,
        c_out=head.c_out,
        groups=head.groups,
        out_rows=head.out_rows,
        out_columns=head.out_columns,
        kernel=tuple(head.kernel),
        stride=tuple(head.stride),
        dilation=tuple(head.dilation),
        fused=charge.fused,
        parameters=tuple(head.parameters),
        gate=gate,
        unless=unless,
        riders=charge.riders,
    )
