"""Iterative pruning: some weights go, the rest is trained, and so on, as long as the score on validation data holds.

Where it falls below what the user allows, the model steps back to the last state that was good, and pruning ends.

Source: Han et al. 2015, https://arxiv.org/abs/1506.02626; rates that rise geometrically: Frankle and Carbin 2019,
https://arxiv.org/abs/1803.03635.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autoprune.task.base import Task
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.mask_schedule import MaskSchedule, OneShot
from autoprune.training.plans import Plan
from autoprune.training.resumption import PART
from autoprune.training.sample_passes import SamplePasses

ROUNDS = 6
_PART = "rounds"
"""Name of the state after a round in a checkpoint."""


class _Round(OneShot):
    """The mask of one round, by the weights at its beginning."""

    def __init__(self, plan: Plan, share: float) -> None:
        super().__init__(plan)
        self._share = share

    def first(self) -> list[Tensor]:
        """Return what stays in this round."""
        return self._plan.kept(self._share)


def train_iteratively(
    plan: Plan,
    model: nn.Module,
    task: Task,
    *,
    train: Callable[[nn.Module, MaskSchedule], None],
    score: Callable[[nn.Module], float],
    least: float,
    passes: SamplePasses,
    checkpoint: Checkpoint | None = None,
) -> list[Tensor]:
    """Prune and train a model in rounds, in place; leave it in the last state whose score is good.

    Args:
        plan: of the zeros after the last round; each round leaves the same share of what the round before left.
        model: the dense model.
        task: of the training.
        train: trains the model with a schedule, for one of `ROUNDS` parts of the training.
        score: of the model on validation data.
        least: the lowest score that is good.
        passes: of all rounds; `train` counts them.
        checkpoint: keeps what came out of each round.

    Returns:
        Which groups of the plan are kept, bool `[width]` each.
    """
    plan.begin(model, task)
    final = plan.kept()
    density = max(sum(int(kept.sum()) for kept in final) / sum(len(kept) for kept in final), 1e-6)
    good, kept = copy.deepcopy(model.state_dict()), [torch.ones_like(mask) for mask in final]
    begun = None if checkpoint is None else checkpoint.part(_PART)
    if begun is not None:
        model.load_state_dict(begun["good"])
        good, kept, plan.passes = begun["good"], begun["kept"], begun["plan_passes"]
        passes.restore(begun["passes"])
    for number in range(1 if begun is None else begun["round"], ROUNDS + 1):
        share = (1 - density ** (number / ROUNDS)) / (1 - density) if density < 1 else 0.0
        schedule = _Round(plan, share)
        train(model, schedule)
        if score(model) < least:
            model.load_state_dict(good)
            break
        good, kept = copy.deepcopy(model.state_dict()), schedule.kept
        if checkpoint is not None:
            state = {"round": number + 1, "good": dict(good), "kept": kept, "plan_passes": plan.passes}
            state["passes"] = passes.state()
            checkpoint.forget(PART)
            checkpoint.keep(_PART, lambda state=state: state, now=True)
    return kept
