"""Metrics that fall: turned round once, so that a higher score is better everywhere; and signs of one that was not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

_ERRORS = {
    "error", "errors", "err", "loss", "losses", "nll", "mse", "rmse", "mae", "mape", "smape", "rmsle", "rms",
    "deviation",
    "distance", "divergence", "perplexity", "ppl", "wer", "cer", "eer", "fid", "bpb", "bpc", "hter", "regret",
}  # fmt: skip
_TURNED = {"neg", "negative", "negated", "minus", "inverse", "inverted", "reciprocal", "one"}
_MARGIN = 0.05
"""How much a cut model must pass the dense one, as a share of the dense score, before the metric is doubted."""
_REMEDY = "a search keeps the highest score: say Task(lower_is_better=True), or return the negative"


@dataclass(frozen=True)
class Negated:
    """A metric that falls for better models, times -1."""

    metric: Callable[[nn.Module, Any], float]

    def __call__(self, model: nn.Module, data: Any) -> float:
        """Return the negative of the metric."""
        return -self.metric(model, data)


def is_named_like_an_error(name: str) -> bool:
    """Return whether the name of a metric is that of an error, such as `RMSE`, `val_loss` or `word error`."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    turned = name.lstrip().startswith(("-", "−", "1")) or not _TURNED.isdisjoint(words)
    return not turned and not _ERRORS.isdisjoint(words)


def doubt(name: str, dense_score: float, cut_score: float, *, trained: bool) -> str | None:
    """Return why the metric of a task seems to fall for better models, for a note; `None` when nothing says so.

    Args:
        name: of the metric.
        dense_score: score of the dense model.
        cut_score: score of a model that was cut and not repaired, on the same data.
        trained: whether the dense model has its trained weights.
    """
    if trained and cut_score > dense_score + _MARGIN * abs(dense_score):
        return (
            f"the metric {name!r} is higher ({cut_score:.4g}) for a model cut without repair than for the dense model "
            f"({dense_score:.4g}). If lower is better, {_REMEDY}"
        )
    if is_named_like_an_error(name) and dense_score > 0:
        return f"the metric {name!r} is named like an error, of which less is better; {_REMEDY}"
    return None
