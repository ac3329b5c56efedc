"""Treatments: precision, rank and pattern of zeros of a layer, as levels of a search.

A treatment is written as its parts that are not dense: `fp32`, `int8`, `int8-dynamic`, `w8`, `w4`, `rank:24`,
`int8+rank:24`, `sparse:80%`, `2:4`, `int8+sparse:80%@8x1` (see `sparsity.patterns`). This module never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoprune.errors import PolicyError
from autoprune.sparsity.densities import erk_densities
from autoprune.sparsity.patterns import FORMS, Pattern

PRECISIONS = ("fp32", "int8", "int8-dynamic", "w8", "w4")
"""Precisions of a layer, in the order of their codes.

- `int8`: weights and activations are int8; the ranges of activations are calibrated.
- `int8-dynamic`: as `int8`, but every run takes the ranges of its own activations.
- `w8`, `w4`: weights alone have 8 or 4 bits; the layer computes in fp32.
"""

_COST_ORDER = ("int8-dynamic", "int8", "w4", "w8", "fp32")
"""Precisions from the one that usually computes fastest to the dense one."""

_RANK = "rank:"
_RANKS = 1 << 20
"""Ranks are below this number; the code of a pattern begins above them."""

_RANK_STEP = 8
_RANK_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)

Sizes = int | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """Precision, rank and pattern of one layer; the default is the dense layer.

    Args:
        precision: one of `PRECISIONS`.
        rank: rank of the two factors that replace the weight; 0 keeps the weight whole.
        pattern: of the zeros among the weights; `None` leaves all of them.

    Raises:
        PolicyError: for an unknown precision, a rank below 0, a pattern as text, or a rank and a pattern together.

    Example:
        >>> str(Treatment(precision="int8", rank=24))
        'int8+rank:24'
    """

    precision: str = "fp32"
    rank: int = 0
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise PolicyError(f"a precision is one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0:
            raise PolicyError(f"a rank is a whole number, 1 or more, or 0 for the whole weight; got {self.rank!r}")
        if self.rank >= _RANKS:
            raise PolicyError(f"a rank is below {_RANKS}; got {self.rank}")
        if self.pattern is not None and not isinstance(self.pattern, Pattern):
            raise PolicyError(f"a pattern of zeros is a Pattern, read by Pattern.parse; got {self.pattern!r}")
        if self.rank and self.pattern is not None:
            raise PolicyError(
                f"a layer has a low rank or a pattern of zeros, not both; got rank:{self.rank} and {self.pattern}"
            )

    @classmethod
    def parse(cls, text: str) -> Treatment:
        """Read a treatment as it is written; `PolicyError` says what can be written."""
        given: dict[str, Any] = {}
        for part in str(text).split("+"):
            name, value = _part(part)
            if not name:
                raise PolicyError(
                    f"a treatment is a precision ({', '.join(PRECISIONS)}), a rank (rank:24), a pattern of zeros "
                    f"({FORMS}), or a precision with one of these (int8+rank:24, int8+2:4); got {text!r}"
                )
            if name in given:
                raise PolicyError(f"a treatment has one {name}; got two in {text!r}")
            given[name] = value
        return cls(**given)

    def __str__(self) -> str:
        parts = [f"{_RANK}{self.rank}"] if self.rank else []
        parts += [] if self.pattern is None else [str(self.pattern)]
        precision = [] if parts and self.precision == "fp32" else [self.precision]
        return "+".join([*precision, *parts])

    @property
    def weights_precision(self) -> str:
        """Precision of the weights alone: both forms of int8 round them alike."""
        return INT8.precision if self.precision == INT8_DYNAMIC.precision else self.precision

    @property
    def is_local(self) -> bool:
        """Whether the layer alone changes: it reads and writes fp32 as the dense one does, without calibration."""
        return self.precision not in ("fp32", "int8") and not self.rank

    @property
    def code(self) -> int:
        """The treatment as a number for arrays: 0 is the dense one."""
        pattern = 0 if self.pattern is None else self.pattern.code
        return PRECISIONS.index(self.precision) + len(PRECISIONS) * (self.rank + _RANKS * pattern)

    @classmethod
    def of_code(cls, code: int) -> Treatment:
        """Return the treatment of a code."""
        rest, precision = divmod(int(code), len(PRECISIONS))
        pattern, rank = divmod(rest, _RANKS)
        return cls(precision=PRECISIONS[precision], rank=rank, pattern=Pattern.of_code(pattern) if pattern else None)

    @property
    def of_factors(self) -> Treatment:
        """The treatment of each of the two factors that the rank makes: the same precision."""
        return Treatment(precision=self.precision)

    @property
    def timed(self) -> Treatment:
        """The treatment that decides about latency: the same without its pattern, since no runtime skips zeros."""
        return Treatment(precision=self.precision, rank=self.rank)

    @property
    def order(self) -> tuple[int, float, int, int]:
        """Sort key of the levels of a layer: cheaper treatments first, the dense one last."""
        density, pattern = (1.0, 0) if self.pattern is None else (self.pattern.density, self.pattern.code)
        return (self.rank or 1 << 30, density, _COST_ORDER.index(self.precision), pattern)


def _part(text: str) -> tuple[str, Any]:
    """Return the name of the field that a part of a treatment sets, and its value; "" for an unknown part."""
    rank = text.removeprefix(_RANK)
    if text in PRECISIONS:
        return "precision", text
    if text != rank:
        return ("rank", int(rank)) if rank.isdecimal() and int(rank) else ("", None)
    pattern = Pattern.parse(text)
    return ("", None) if pattern is None else ("pattern", pattern)


DENSE = Treatment()
"""The layer as it was: fp32, with its whole weight."""

INT8 = Treatment(precision="int8")
INT8_DYNAMIC = Treatment(precision="int8-dynamic")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An operator with weights that may be treated; operators that share them are one layer.

    `name` is the state-dict name of the first of its `weights`. `op` is the operator's name and `nodes` are those of
    the evaluation graph that compute with them. `precisions` are those in which it can compute. `matrix` holds the rows
    and columns `[O, D]` of the weight as a matrix that two factors can replace, `(0, 0)` where none can. `shapes` are
    those `[O, I, ...]` of the weights; `magnitudes` returns the sizes |w| of all their numbers, flat.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    precisions: tuple[str, ...]
    matrix: tuple[int, int] = (0, 0)
    weights: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    magnitudes: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)

    @property
    def module(self) -> str:
        """Name of the module that holds the weight; the weight's own name where the model itself holds it."""
        return self.name.rpartition(".")[0] or self.name

    def allows(self, treatment: Treatment) -> bool:
        """Return whether the layer can be treated so.

        A rank must make it smaller (see `replaces`); blocks and groups of a pattern must divide its weights.
        """
        of_rank = not treatment.rank or bool(replaces(treatment.rank, *self.matrix))
        return treatment.precision in self.precisions and of_rank and self.divided_by(treatment.pattern)

    def divided_by(self, pattern: Pattern | None) -> bool:
        """Return whether the blocks and groups of a pattern divide all weights of the layer.

        Transposed convolutions have none: inputs are the rows of their weights.
        """
        if pattern is None or (not pattern.of and pattern.block == (1, 1)):
            return True
        if not self.shapes or self.op.startswith("conv_transpose"):
            return False
        return all(pattern.divides(shape[0], shape[1]) for shape in self.shapes)

    def pattern_of(self, weight: str, pattern: Pattern | None) -> Pattern | None:
        """Return the pattern of one of the weights, where the layer has this one.

        A share of zeros is that of all weights together. Of several ones the small ones keep more, by the Erdos-Renyi
        rule: an LSTM has few weights for its inputs beside those for its states.
        """
        if pattern is None or pattern.of or len(self.weights) < 2:
            return pattern
        density = erk_densities(dict(zip(self.weights, self.shapes, strict=True)), pattern.density)[weight]
        return pattern.with_density(density)

    @property
    def largest_rank(self) -> int:
        """The largest rank that makes the layer smaller; at most 0 where none does."""
        outputs, inputs = self.matrix
        return (outputs * inputs - 1) // max(outputs + inputs, 1)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that are worth measuring: multiples of 8 at shares of the largest one that makes the layer smaller."""
        largest = self.largest_rank
        rounded = {round(share * largest / _RANK_STEP) * _RANK_STEP for share in _RANK_SHARES}
        return tuple(sorted(rank for rank in rounded if 0 < rank <= largest))


def replaces(rank: Sizes, outputs: Sizes, inputs: Sizes) -> Any:
    """Return whether two factors of a rank replace a weight `[O, D]`: they have fewer numbers than it has.

    Where a layer has become so narrow that they have not, it keeps its weight whole. Arguments are numbers or arrays.
    """
    return rank * (outputs + inputs) < outputs * inputs


def rank_of_code(code: Sizes) -> Any:
    """Return the ranks of treatments from their codes, numbers or arrays; 0 for whole weights."""
    return code // len(PRECISIONS) % _RANKS


def code_of_factors(code: Sizes) -> Any:
    """Return the codes of treatments without their ranks and patterns, numbers or arrays."""
    return code % len(PRECISIONS)


def timed_code(code: Sizes) -> Any:
    """Return the codes of treatments without their patterns, numbers or arrays (see `Treatment.timed`)."""
    return code % (len(PRECISIONS) * _RANKS)


def timed_rows(rows: np.ndarray, units: int) -> np.ndarray:
    """Return rows `[P, U + L]` with treatments without patterns, for the number `units` of their first columns."""
    return np.concatenate([rows[:, :units], timed_code(rows[:, units:])], axis=1)


Level = int | Treatment
"""A level of a decision: the width of a unit, or the treatment of a layer."""


def sorted_treatments(treatments: Iterable[Treatment]) -> tuple[Treatment, ...]:
    """Return distinct treatments in the order of levels, the dense one last."""
    return tuple(sorted(set(treatments), key=lambda treatment: treatment.order))


def timed_levels(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Return the levels of a decision without patterns (see `Treatment.timed`); widths stay as they are."""
    if not isinstance(levels[-1], Treatment):
        return tuple(levels)
    return sorted_treatments(level.timed for level in levels if isinstance(level, Treatment))


def level_to_json(level: Level) -> int | str:
    """Return a level as a plain JSON value."""
    return str(level) if isinstance(level, Treatment) else int(level)


def level_from_json(value: int | str) -> Level:
    """Build the level that `level_to_json` wrote."""
    return Treatment.parse(value) if isinstance(value, str) else int(value)


def level_code(level: Level) -> int:
    """Return a level as a number for arrays: a width as it is, a treatment as its code."""
    return level.code if isinstance(level, Treatment) else level
