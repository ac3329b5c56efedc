"""Thresholds: weights whose score is at most a number, or a multiple of a mean, are zero. Never imports torch.

Source: fixed thresholds, and thresholds that are a multiple of a layer's spread, Han et al. 2015,
https://arxiv.org/abs/1506.02626.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from autoprune.errors import PolicyError
from autoprune.sparsity.patterns import Pattern

_FORM = re.compile(r"(threshold|mean):([0-9.]+(?:e-?[0-9]+)?)")
_HUNDREDTHS = 10_000


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Zeros are the weights whose score is at most `value`, or `value` times a mean score."""

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Threshold | None:
        """Read `threshold:0.01` or `mean:1.5`; `None` for another text, `PolicyError` for a number not above 0."""
        if not text.startswith(("threshold", "mean")):
            return None
        form = _FORM.fullmatch(text)
        try:
            value = float(form[2]) if form else 0.0
        except ValueError:
            value = 0.0
        if form is None or not 0 < value < math.inf:
            raise PolicyError(f"a threshold is a number above 0, such as threshold:0.01 or mean:1.5; got {text!r}")
        return cls(value=value, relative=form[1] == "mean")

    def __str__(self) -> str:
        return f"{'mean' if self.relative else 'threshold'}:{self.value:g}"

    def least(self, mean: float) -> float:
        """Return the highest score that is zero, for scores of some mean."""
        return self.value * mean if self.relative else self.value

    def pattern_of(self, scores: np.ndarray) -> Pattern | None:
        """Return the share of the scores that are zero as a pattern; `None` for none of them.

        Example:
            >>> str(Threshold(value=0.3, relative=False).pattern_of(np.array([0.1, 0.2, 0.4, 0.5])))
            'sparse:50%'
        """
        gone = int((scores <= self.least(float(scores.mean()) if scores.size else 0.0)).sum())
        # Patterns round the number of zeros down.
        share = min(math.ceil(gone * _HUNDREDTHS / max(scores.size, 1) - 1e-6), _HUNDREDTHS - 1)
        return Pattern(share=share) if share else None
