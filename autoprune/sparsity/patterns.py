"""Patterns: which share of the weights of a layer is zero, and in which groups. This module never imports torch.

A pattern is written `sparse:80%` (80 % of the weights are zero), `2:4` (2 of every 4 consecutive inputs are not zero),
and for blocks of 8 outputs and 1 input that are zero together `sparse:80%@8x1` or `2:4@8x1`.

Sizes are those of a weight `[O, I, ...]`: O outputs and I inputs (of a group) at each of K positions of a kernel.
Blocks and groups lie within one position. Where they do not divide a weight, its last ones are smaller.

Source: N:M, Mishra et al. 2021, https://arxiv.org/abs/2104.08378; blocks, Gray et al. 2017 (block-sparse kernels).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from autoprune.errors import PolicyError

Sizes = int | np.ndarray

_UNITS = 10_000
"""A share is a whole number of hundredths of a percent, so that equal shares are equal numbers."""

_LARGEST = 255
"""Largest N, M and side of a block: each takes 8 bits of a code."""

_FORM = re.compile(r"(?:sparse:(?P<share>[^@]*)|(?P<kept>\d+):(?P<of>\d+))(?:@(?P<rows>\d+)x(?P<columns>\d+))?")
_SHARE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(%?)")

FORMS = "sparse:80%, 2:4, or with blocks of 8 outputs and 1 input sparse:80%@8x1, 2:4@8x1"
"""The forms in which a pattern can be written, for messages."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Which weights of a layer are zero.

    Either a share of all weights, or all but `kept` of every `of` consecutive inputs.

    Args:
        share: of the weights (or blocks) that are zero, in hundredths of a percent; 0 with `kept` and `of`.
        kept: N of N:M: weights (or blocks) of every group that are not zero.
        of: M of N:M: size of a group.
        block: outputs and inputs of the blocks that are zero together.

    Raises:
        PolicyError: for a share that is not between 0 and 1, N that is not below M, or a block without weights.

    Example:
        >>> str(Pattern.parse("sparse:0.8@8x1"))
        'sparse:80%@8x1'
        >>> Pattern.parse("2:4").density
        0.5
    """

    share: int = 0
    kept: int = 0
    of: int = 0
    block: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.of and self.share:
            raise PolicyError(f"a pattern is a share or N:M, not both; got {self.share} and {self.kept}:{self.of}")
        if (self.of or self.kept) and not 0 < self.kept < self.of <= _LARGEST:
            raise PolicyError(
                f"N:M keeps N of every M weights, with N from 1 to M - 1 and M up to {_LARGEST}; "
                f"got {self.kept}:{self.of}"
            )
        if not self.of and not 0 < self.share < _UNITS:
            raise PolicyError(
                "the share of zeros is above 0 and below 100 %, in steps of 0.01 %, such as sparse:80%; "
                f"got {self.share / 100:g}%"
            )
        if not all(1 <= side <= _LARGEST for side in self.block):
            raise PolicyError(
                f"a block has 1 to {_LARGEST} outputs and inputs, such as 8x1; got {self.block[0]}x{self.block[1]}"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern | None:
        """Read a pattern as it is written; `None` for a text that is no pattern, `PolicyError` for a wrong one."""
        form = _FORM.fullmatch(text)
        if form is None:
            if text.startswith("sparse"):
                raise PolicyError(f"a pattern is written {FORMS}; got {text!r}")
            return None
        block = (int(form["rows"]), int(form["columns"])) if form["rows"] else (1, 1)
        if form["of"]:
            return cls(kept=int(form["kept"]), of=int(form["of"]), block=block)
        return cls(share=_hundredths(form["share"]), block=block)

    def __str__(self) -> str:
        of = f"{self.kept}:{self.of}" if self.of else f"sparse:{self.share / 100:g}%"
        return of if self.block == (1, 1) else f"{of}@{self.block[0]}x{self.block[1]}"

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return self.kept / self.of if self.of else (_UNITS - self.share) / _UNITS

    def with_density(self, density: float) -> Pattern:
        """Return the pattern with the share of zeros, in steps of 0.01 %, that leaves so much of the weights."""
        return replace(self, share=min(max(round(_UNITS * (1 - density)), 1), _UNITS - 1))

    @property
    def code(self) -> int:
        """The pattern as a number from 1 to 2^40."""
        rows, columns = self.block
        first, second = (self.kept, self.of) if self.of else divmod(self.share, 256)
        return ((int(bool(self.of)) << 32) | (rows << 24) | (columns << 16) | (first << 8) | second) + 1

    @classmethod
    def of_code(cls, code: int) -> Pattern:
        """Return the pattern of a code."""
        value = int(code) - 1
        first, second, block = (value >> 8) & 255, value & 255, ((value >> 24) & 255, (value >> 16) & 255)
        if value >> 32:
            return cls(kept=first, of=second, block=block)
        return cls(share=256 * first + second, block=block)

    def blocks_left(self, outputs: Sizes, inputs: Sizes, kernel: Sizes = 1) -> Any:
        """Return how many blocks of a weight `[O, I, K]` are not zero; sizes are numbers or arrays."""
        rows, columns = self.block
        down, across = -(-outputs // rows), -(-inputs // columns)
        if self.of:
            return down * kernel * (across // self.of * self.kept + np.minimum(self.kept, across % self.of))
        return down * across * kernel - down * across * kernel * self.share // _UNITS

    def nonzeros(self, outputs: Sizes, inputs: Sizes, kernel: Sizes = 1) -> Any:
        """Return how many numbers of a weight `[O, I, K]` are not zero, at most; sizes are numbers or arrays."""
        return np.minimum(self.blocks_left(outputs, inputs, kernel) * math.prod(self.block), outputs * inputs * kernel)

    def divides(self, outputs: int, inputs: int) -> bool:
        """Return whether blocks and groups divide a weight of some outputs and inputs."""
        rows, columns = self.block
        return outputs % rows == 0 and inputs % (columns * max(self.of, 1)) == 0


def _hundredths(text: str) -> int:
    """Return a share, written as a percentage or as a number below 1, in hundredths of a percent."""
    form = _SHARE.fullmatch(text)
    share = Decimal(form[1]) / (100 if form[2] else 1) if form else None
    if share is None or not 0 < share < 1 or share * _UNITS != int(share * _UNITS):
        raise PolicyError(
            f"the share of zeros is above 0 and below 100 %, in steps of 0.01 %, such as sparse:80% or sparse:0.8; "
            f"got sparse:{text}"
        )
    return int(share * _UNITS)
