"""Plans of sparse trainings: which weights or channels are zero in the end, and on the way there."""

from __future__ import annotations

import math
import re
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
from autoprune.task.base import Task
from autoprune.training.state import Resumable
from autoprune.training.unit_groups import Groups, weight_groups


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


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Zeros are the weights whose score is at most `value`, or `value` times the mean score of their weight."""

    value: float
    relative: bool

    _FORM = re.compile(r"(threshold|mean):([0-9.]+(?:e-?[0-9]+)?)")

    @classmethod
    def parse(cls, text: str) -> Threshold | None:
        """Read `threshold:0.01` or `mean:1.5`; `None` for another text, `PolicyError` for a number not above 0."""
        if not text.startswith(("threshold", "mean")):
            return None
        form = cls._FORM.fullmatch(text)
        try:
            value = float(form[2]) if form else 0.0
        except ValueError:
            value = 0.0
        if form is None or not value > 0:
            raise PolicyError(f"a threshold is a number above 0, such as threshold:0.01 or mean:1.5; got {text!r}")
        return cls(value=value, relative=form[1] == "mean")

    def mask(self, scores: Tensor) -> Tensor:
        """Return where the scores are above the threshold; the highest one is always kept."""
        least = self.value * float(scores.mean()) if self.relative else self.value
        return scores > min(least, torch.nextafter(scores.max(), torch.tensor(-torch.inf).to(scores)).item())


def parse_pattern(text: str) -> Pattern | Threshold:
    """Read a pattern of weights, such as `sparse:80%`, `2:4` or `threshold:0.01`; `PolicyError` says what there is."""
    pattern = Pattern.parse(text) or Threshold.parse(text)
    if pattern is None:
        raise PolicyError(
            f"weights are sparse as {FORMS}, threshold:0.01 or mean:1.5; channels as channels:50%; got {text!r}"
        )
    return pattern


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
        if self.ranking != "local" and not (isinstance(self.pattern, Pattern) and self.pattern.share):
            raise UsageError(
                f"a ranking divides a share of zeros among weights; {self.pattern} has none. Take ranking='local', or "
                "a pattern such as sparse:80%"
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
        return (pattern.mask(shaped) if isinstance(pattern, Threshold) else pattern_mask(shaped, pattern)).flatten()


def first_to_go(mask: Tensor, scores: Tensor, share: float) -> Tensor:
    """Return a mask without only a share of what the `mask` is without: what scores lowest. All are bool `[width]`."""
    gone = round(share * int((~mask).sum()))
    lowest = torch.where(mask, torch.inf, scores.float()).argsort(stable=True)[:gone]
    left = torch.ones_like(mask)
    left[lowest] = False
    return left
