"""Whole channels of units become zero, so that they can be cut without any change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import PolicyError, UsageError
from autoprune.pruning.calibration import Calibration
from autoprune.pruning.expressions import parse_scores
from autoprune.pruning.ranking import RANKINGS, channel_order, global_shares, widths_of_shares
from autoprune.pruning.score_passes import score_passes
from autoprune.pruning.scores import SCORES, score_units
from autoprune.records import Policy
from autoprune.sparsity.patterns import Pattern
from autoprune.structure import Structure, analyze
from autoprune.task.base import Task
from autoprune.training.plans import first_to_go
from autoprune.training.state import Resumable
from autoprune.training.unit_groups import Groups, groups_in


def channel_share(pattern: str) -> float | None:
    """Read `channels:50%`; `None` for another pattern, `PolicyError` for a share that is not between 0 and 1."""
    if not pattern.startswith("channels"):
        return None
    try:
        return 1 - Pattern.parse(pattern.replace("channels", "sparse", 1)).density  # type: ignore[union-attr]
    except PolicyError as error:
        raise PolicyError(f"channels go as channels:50%, with a share above 0 and below 1; got {pattern!r}") from error


@dataclass(kw_only=True)
class ChannelPlan(Resumable):
    """A share of the channels of units goes.

    Args:
        share: of the channels, above 0 and below 1.
        scores: a key of `autoprune.pruning.SCORES`, or an expression.
        ranking: one of `autoprune.pruning.ranking.RANKINGS`.
        calibration: data for the scores.
        choose: which units take part, by name (default: all).
    """

    STATE = ("passes",)

    share: float
    scores: str = "l2"
    ranking: str = "local"
    calibration: Calibration = field(default_factory=Calibration)
    choose: Callable[[str], bool] | None = None
    groups: list[Groups] = field(default_factory=list)
    passes: float = 0.0

    def __post_init__(self) -> None:
        parse_scores(self.scores, SCORES)
        if self.ranking not in RANKINGS:
            raise UsageError(f"channels are ranked {', '.join(RANKINGS)}; got {self.ranking!r}")

    def begin(self, model: nn.Module, task: Task | None) -> None:
        """Analyze the units of a model."""
        assert task is not None
        if self.groups and self._model is model:  # tracing it again would find the same
            return
        self._model = model
        self._structure = analyze(model, task.example_inputs, task.outputs)
        chosen = [g for g in groups_in(self._structure, model) if self.choose is None or self.choose(g.name)]
        if not chosen:
            names = ", ".join(unit.name for unit in self._structure.units[:5])
            raise UsageError(f"no unit was chosen whose channels can go; the model has {names or 'none'}")
        self.groups = chosen

    def kept(self, share: float = 1.0) -> list[Tensor]:
        """Return which channels stay (see `Plan`)."""
        values = score_units(self._structure, self.scores, self.calibration)
        used = parse_scores(self.scores, SCORES)
        self.passes += sum(score_passes(name, self.calibration.examples) for name in used)
        chosen = {group.name: values[group.name] for group in self.groups}
        keep = 1 - self.share
        shares = dict.fromkeys(chosen, keep) if self.ranking == "local" else global_shares(chosen, keep, self.ranking)
        self._widths = widths_of_shares(self._structure, shares)
        masks = [
            first_to_go(self.best(number, scores), scores, share)
            for number, scores in enumerate(torch.as_tensor(chosen[group.name]) for group in self.groups)
        ]
        return masks

    def best(self, number: int, scores: Tensor) -> Tensor:
        """Return which channels stay of one unit, by scores `[width]`."""
        group = self.groups[number]
        (order,) = channel_order({"": scores.cpu().numpy()}).values()
        mask = torch.zeros(group.width, dtype=torch.bool)
        mask[order[: self._widths[group.name]]] = True
        return mask.to(scores.device)

    def cut(self, kept: list[Tensor]) -> tuple[Structure, Policy, dict[str, np.ndarray]]:
        """Return the structure, and the widths and channels that are kept, in the form in which it shrinks."""
        channels = {unit.name: np.arange(unit.width) for unit in self._structure.units}
        channels |= {
            group.name: mask.nonzero().flatten().numpy() for group, mask in zip(self.groups, kept, strict=True)
        }
        widths = {name: len(indices) for name, indices in channels.items()}
        return self._structure, Policy(space_id=self._structure.digest(), widths=widths), channels
