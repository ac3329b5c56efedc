"""Sizes of a model's inputs: which dimensions may differ from the examples, and which a captured graph has fixed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from autoprune.errors import UsageError

Shapes = tuple[tuple[int, ...], ...]
"""One shape for each input, with the batch first."""


@dataclass(frozen=True, kw_only=True)
class FixedSize:
    """A dimension of an input that must have the example's size, and why."""

    input: str
    dim: int
    size: int
    reason: str

    def __str__(self) -> str:
        """Return the sentence for tables: "x: dimension 1 is 3 (conv2d fixes it, net.py line 12)"."""
        return f"{self.input}: dimension {self.dim} is {self.size} ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A branch on sizes that `forward` took during capture: a Python expression of symbols, and the line that asked.

    `definitions` are names in the expression that stand for formulas, in the order in which they are computed.
    """

    code: str
    line: str
    definitions: tuple[tuple[str, str], ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether this says that a formula is one number."""
        return bool(re.search(r"== \d+$", self.code))

    @property
    def symbols(self) -> frozenset[str]:
        """Symbols in the expression and in the definitions."""
        return frozenset().union(*(_names(code) for code in (self.code, *(code for _, code in self.definitions))))

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Return whether the captured graph holds at these sizes of the symbols; true for unknown symbols."""
        known = dict(sizes)
        try:
            for name, formula in self.definitions:
                known[name] = evaluated(formula)(**known)
            return bool(evaluated(self.code)(**known))
        except (ArithmeticError, NameError, TypeError, ValueError):
            return True


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """Free and fixed dimensions of every input.

    - `names` and `shapes`: of the inputs, in the order of `forward`; shapes are those of the capture.
    - `formulas`: for every dimension the expression of symbols that is its size; "" for a fixed one. The first
      dimension of each input is the batch. Dimensions with one symbol have equal sizes.
    - `reasons`: why a dimension is fixed, by (input, dimension).
    - `conditions`: branches that the capture took because of sizes, which are required of every call.
    - `needs`: equations that operators of torch were told during capture; not all of them matter.
    - `second`: shapes other than the examples' at which the graph was compared with the model (`None`: none is free).
    """

    names: tuple[str, ...] = ()
    shapes: Shapes = ()
    formulas: tuple[tuple[str, ...], ...] = ()
    reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    needs: tuple[Condition, ...] = ()
    second: Shapes | None = None

    @property
    def fixed(self) -> tuple[FixedSize, ...]:
        """Dimensions besides the batch that must have the example's size."""
        return tuple(
            FixedSize(
                input=self.names[number],
                dim=dim,
                size=self.shapes[number][dim],
                reason=self.reasons.get((number, dim), "a weight fixes it"),
            )
            for number, formulas in enumerate(self.formulas)
            for dim, formula in enumerate(formulas)
            if dim and not formula
        )

    def free(self) -> Iterator[tuple[int, int, str]]:
        """Yield the input, the dimension and the formula of every free dimension besides the batch."""
        for number, formulas in enumerate(self.formulas):
            yield from ((number, dim, formula) for dim, formula in enumerate(formulas) if dim and formula)

    def symbols(self) -> dict[str, int]:
        """Return the size that each symbol of a free dimension had during capture, batch symbols left out."""
        batch = self.batch_symbols()
        return {
            formula: self.shapes[number][dim]
            for number, dim, formula in self.free()
            if formula.isidentifier() and formula not in batch
        }

    def batch_symbols(self) -> frozenset[str]:
        """Return the symbols that first dimensions consist of."""
        return frozenset(formulas[0] for formulas in self.formulas if formulas and formulas[0].isidentifier())

    def shapes_at(self, symbols: Mapping[str, int]) -> Shapes:
        """Return the shapes of the inputs when symbols have other sizes; unnamed ones keep the size of the capture."""
        known = self._sizes(self.shapes) | dict(symbols)
        return tuple(
            tuple(
                evaluated(formula)(**known) if formula else size for formula, size in zip(formulas, shape, strict=True)
            )
            for formulas, shape in zip(self.formulas, self.shapes, strict=True)
        )

    def with_fixed(self, symbols: AbstractSet[str], reason: str) -> InputSizes:
        """Return sizes in which all dimensions that depend on one of `symbols` are fixed."""
        fixed = {(number, dim) for number, dim, formula in self.free() if _names(formula) & symbols}
        formulas = (
            tuple("" if (number, dim) in fixed else formula for dim, formula in enumerate(own))
            for number, own in enumerate(self.formulas)
        )
        if not fixed:
            return self
        reasons = {**self.reasons, **dict.fromkeys(fixed, reason)}
        sizes = replace(self, formulas=tuple(formulas), reasons=reasons)
        if self.second is None:
            return sizes
        rows = zip(self.second, self.shapes, sizes.formulas, strict=True)
        second = tuple(
            tuple(s if formula else e for s, e, formula in zip(other, example, own, strict=True))
            for other, example, own in rows
        )
        return replace(sizes, second=second if any(sizes.symbols()) else None)

    def also(self, other: InputSizes) -> InputSizes:
        """Return the sizes that are free in both graphs of a model, under the conditions of both."""
        if self == other:
            return self
        formulas = tuple(
            tuple(a if a == b or not dim else "" for dim, (a, b) in enumerate(zip(mine, others, strict=True)))
            for mine, others in zip(self.formulas, other.formulas, strict=True)
        )
        return replace(
            self,
            formulas=formulas,
            reasons={**other.reasons, **self.reasons},
            conditions=tuple(dict.fromkeys((*self.conditions, *other.conditions))),
            needs=tuple(dict.fromkeys((*self.needs, *other.needs))),
        )

    def _sizes(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """Return the size of every symbol, from the first dimension that has it."""
        sizes: dict[str, int] = {}
        for formulas, shape in zip(self.formulas, shapes, strict=True):
            for formula, size in zip(formulas, shape, strict=True):
                if formula.isidentifier():
                    sizes.setdefault(formula, int(size))
        return sizes

    def require(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raise `UsageError` for inputs of sizes at which the captured graph does not compute the model.

        Too few or too many inputs are left to the call itself.
        """
        if len(shapes) != len(self.shapes):
            return
        for number, (shape, own, formulas) in enumerate(zip(shapes, self.shapes, self.formulas, strict=True)):
            name = self.names[number]
            if len(shape) != len(own):
                raise UsageError(
                    f"the input {name!r} has {len(own)} dimensions, as its example had; got the shape {tuple(shape)}"
                )
            for dim, (size, captured, formula) in enumerate(zip(shape, own, formulas, strict=True)):
                if not formula and dim and size != captured:
                    reason = self.reasons.get((number, dim), "a weight fixes it")
                    raise UsageError(
                        f"dimension {dim} of the input {name!r} is fixed to {captured}, the size of its example "
                        f"({reason}); got {size}. Bring inputs to that size, or prune with an example of the size "
                        f"{size}"
                    )
        self._require_relations(shapes)

    def _require_relations(self, shapes: Sequence[Sequence[int]]) -> None:
        sizes = self._sizes(shapes)
        for number, dim, formula in self.free():
            wanted, got = evaluated(formula)(**sizes), shapes[number][dim]
            if wanted != got:
                raise UsageError(
                    f"dimension {dim} of the input {self.names[number]!r} follows from other sizes of the inputs and "
                    f"is {wanted} beside them; got {got}"
                )
        for condition in self.conditions:
            if not condition.holds(sizes):
                raise UsageError(
                    f"forward takes another branch for inputs of the shapes {', '.join(map(str, map(tuple, shapes)))} "
                    f"than for the example ({condition.line}), and one branch was captured. Bring inputs to a size of "
                    "the captured branch, or prune with an example of this size"
                )


@lru_cache(maxsize=1024)
def _names(code: str) -> frozenset[str]:
    """Return the names in a Python expression."""
    return frozenset(compile(code, "<autoprune sizes>", "eval").co_names)


@lru_cache(maxsize=1024)
def evaluated(code: str) -> Callable[..., Any]:
    """Return a function of symbols, by name, for a Python expression that torch printed."""
    compiled = compile(code, "<autoprune sizes>", "eval")
    scope = {"__builtins__": {}, "math": math, "max": max, "min": min, "abs": abs, "int": int, "float": float}
    scope |= {"Max": max, "Min": min}
    return lambda **sizes: eval(compiled, scope, sizes)


def resized(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return a tensor of another shape, all dimensions but the batch: entries are left out or repeated in order."""
    for dim in range(1, x.dim()):
        if x.shape[dim] != shape[dim]:
            x = x.index_select(dim, torch.arange(shape[dim]) % x.shape[dim])
    return x


def at_second(sizes: InputSizes, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """Return example inputs brought to the second size; `None` when no size is free."""
    if sizes.second is None:
        return None
    return [resized(x, shape) for x, shape in zip(inputs, sizes.second, strict=True)]
