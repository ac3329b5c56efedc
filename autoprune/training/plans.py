"""Plans of sparse trainings: which weights or channels are zero in the end, and on the way there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from autoprune.errors import PolicyError, UsageError
from autoprune.pruning.calibration import Calibration
from autoprune.pruning.expressions import parse_scores
from autoprune.pruning.rates import zero_shares
from autoprune.pruning.score_passes import score_passes
from autoprune.pruning.weight_scores import WEIGHT_SCORES, score_weights
from autoprune.pruning.weights import prunable_weights
from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import FORMS, Pattern
from autoprune.sparsity.thresholds import Threshold
from autoprune.task.base import Task
from autoprune.training.state import Resumable
from autoprune.training.unit_groups import Groups, weight_groups

NO_PATTERN = "none"
"""The pattern that makes no weight zero."""


class Plan(Protocol):
    """Groups of weights of a model of which some are zero in the end."""

    groups: list[Groups]
    passes: float
    """Sample passes that the scores took so far."""

    def begin(self, model: nn.Module, task: Task | None) -> None:
        """Find the groups of a model."""

    def kept(self, share: float = 1.0) -> list[Tensor]:
        """Return which of the groups stay, bool `[width]` each, by scores of the model as it is.

        Args:
            share: of the groups that are zero in the end; those that matter least are the first ones.
        """
        ...

    def best(self, number: int, scores: Tensor) -> Tensor:
        """Return which groups stay in the end of `groups[number]`, bool `[width]`, by given scores `[width]`."""
        ...


def parse_pattern(text: str) -> Pattern | Threshold:
    """Read a pattern of weights, such as `sparse:80%`, `2:4` or `threshold:0.01`; `PolicyError` says what there is."""
    pattern = Pattern.parse(text) or Threshold.parse(text)
    if pattern is None:
        raise PolicyError(
            f"weights are sparse as {FORMS}, threshold:0.01 or mean:1.5; channels as channels:50%; with "
            f"{NO_PATTERN}, zeros are those of terms alone; got {text!r}"
        )
    return pattern


@dataclass(kw_only=True)
class NoPlan(Resumable):
    """No group is made zero: zeros are what the terms of a training make of single weights or channels."""

    groups: list[Groups] = field(default_factory=list)
    passes: float = 0.0

    def begin(self, model: nn.Module, task: Task | None) -> None:
        """Find nothing."""

    def kept(self, share: float = 1.0) -> list[Tensor]:
        """Return no groups."""
        del share
        return []

    def best(self, number: int, scores: Tensor) -> Tensor:
        """Return all groups."""
        del number
        return torch.ones_like(scores, dtype=torch.bool)


@dataclass(kw_only=True)
class WeightPlan(Resumable):
    """Single weights become zero in a pattern.

    Args:
        pattern: of every weight; where blocks or groups do not divide a weight, it stays dense.
        scores: a key of `WEIGHT_SCORES`, or an expression.
        ranking: how a share of zeros is divided among the weights, one of `WEIGHT_RANKINGS`.
        calibration: data for the scores.
        choose: which weights take part (see `prunable_weights`).
    """

    STATE = ("passes",)

    pattern: Pattern | Threshold
    scores: str = "magnitude"
    ranking: str = "local"
    calibration: Calibration = field(default_factory=Calibration)
    choose: Callable[[str], bool] | None = None
    groups: list[Groups] = field(default_factory=list)
    passes: float = 0.0

    def __post_init__(self) -> None:
        parse_scores(self.scores, WEIGHT_SCORES)
        if isinstance(self.pattern, Threshold) and self.ranking in ("local", "global"):
            return
        if self.ranking != "local" and not (isinstance(self.pattern, Pattern) and self.pattern.share):
            also = ", or global (one mean of all weights)" if isinstance(self.pattern, Threshold) else ""
            raise UsageError(
                f"a ranking divides a share of zeros among weights; {self.pattern} has none. Take ranking='local'"
                f"{also}, or a pattern such as sparse:80%"
            )

    def begin(self, model: nn.Module, task: Task | None) -> None:
        """Find the weights that the pattern divides."""
        del task
        weights = prunable_weights(model, self.choose)
        fitting = {name: weight for name, weight in weights.items() if self._fits(weight)}
        if not fitting:
            listed = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in list(weights.items())[:3])
            raise PolicyError(f"{self.pattern} divides no weight of the model: {listed}. Take smaller blocks or groups")
        self._model, self._weights = model, fitting
        self.groups = weight_groups(fitting)
        self._patterns: dict[str, Pattern | Threshold | None] = {}

    def _fits(self, weight: Tensor) -> bool:
        of_all = isinstance(self.pattern, Threshold) or (not self.pattern.of and self.pattern.block == (1, 1))
        return of_all or self.pattern.divides(weight.shape[0], weight.shape[1])  # type: ignore[union-attr]

    def kept(self, share: float = 1.0) -> list[Tensor]:
        """Return which weights stay (see `Plan`)."""
        scores = score_weights(self._model, self._weights, self.scores, self.calibration)
        used = parse_scores(self.scores, WEIGHT_SCORES)
        self.passes += sum(score_passes(name, self.calibration.examples) for name in used)
        self._patterns = self._divided(scores)
        masks = [self.best(number, scores[group.name].flatten()) for number, group in enumerate(self.groups)]
        if share >= 1:
            return masks
        return [
            first_to_go(mask, scores[group.name].flatten(), share)
            for mask, group in zip(masks, self.groups, strict=True)
        ]

    def _divided(self, scores: dict[str, Tensor]) -> dict[str, Pattern | Threshold | None]:
        """Return the pattern of each weight; `None` for one that stays dense."""
        if isinstance(self.pattern, Threshold) and self.ranking == "global":
            mean = sum(float(s.double().sum()) for s in scores.values()) / sum(s.numel() for s in scores.values())
            return dict.fromkeys(scores, Threshold(value=self.pattern.least(mean), relative=False))
        if self.ranking == "local" or isinstance(self.pattern, Threshold):
            return dict.fromkeys(scores, self.pattern)
        shares = zero_shares(scores, 1 - self.pattern.density, self.ranking)
        # Patterns round the number of zeros down: a share rounded up leaves as many as the ranking gives.
        hundredths = {name: math.ceil(share * 10_000 - 1e-6) for name, share in shares.items()}
        return {n: replace(self.pattern, share=min(h, 9_999)) if h else None for n, h in hundredths.items()}

    def best(self, number: int, scores: Tensor) -> Tensor:
        """Return which weights stay of one weight, by scores `[width]`."""
        name = self.groups[number].name
        pattern = self._patterns.get(name, self.pattern)
        shaped = scores.view(self._weights[name].shape)
        if pattern is None:
            return torch.ones_like(scores, dtype=torch.bool)
        return (_above(pattern, shaped) if isinstance(pattern, Threshold) else pattern_mask(shaped, pattern)).flatten()


def _above(threshold: Threshold, scores: Tensor) -> Tensor:
    """Return where the scores are above a threshold; the highest one is always kept."""
    below_highest = torch.nextafter(scores.max(), torch.tensor(-torch.inf).to(scores)).item()
    return scores > min(threshold.least(float(scores.mean())), below_highest)


def first_to_go(mask: Tensor, scores: Tensor, share: float) -> Tensor:
    """Return a mask without only a share of what the `mask` is without: what scores lowest. All are bool `[width]`."""
    gone = round(share * int((~mask).sum()))
    lowest = torch.where(mask, torch.inf, scores.float()).argsort(stable=True)[:gone]
    left = torch.ones_like(mask)
    left[lowest] = False
    return left
