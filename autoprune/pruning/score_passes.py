"""Costs of scores, in sample passes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autoprune.pruning.calibration import FISHER_EXAMPLES
from autoprune.trials import FORWARD_SHARE

_PASSES: Mapping[str, float] = MappingProxyType(
    {
        "taylor": 1.0,
        "gradient": 1.0,
        "hvp": 4.0,  # the gradient; then another one, and the way back through both of its passes
        "activation": FORWARD_SHARE,
        "activation_mean": FORWARD_SHARE,
        "activation_variance": FORWARD_SHARE,
        "wanda": FORWARD_SHARE,
    }
)
"""Sample passes of one calibration example, for the scores that look at all of them."""


def score_passes(score: str, examples: int) -> float:
    """Return the sample passes of a score on so many calibration examples; 0 for scores that look at weights alone."""
    return float(min(examples, FISHER_EXAMPLES)) if score == "fisher" else examples * _PASSES.get(score, 0.0)
