"""The order in which channels of a unit go."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.config import RunConfig
from autoprune.errors import RunFolderError
from autoprune.evaluation import RECONSTRUCTION_EXAMPLES, DenseModel
from autoprune.manifest import Manifest
from autoprune.pipeline.events import Events
from autoprune.pruning import SCORES as PLAIN_SCORES
from autoprune.pruning import Calibration, channel_order, score_units
from autoprune.pruning.expressions import joined_ranks, parse_scores
from autoprune.pruning.score_passes import score_passes
from autoprune.recovery.moments import collect_moments
from autoprune.recovery.surgeon import surgeon_order
from autoprune.runfolder import RunFolder, json_bytes, read_json
from autoprune.search.strategies import NEEDS_IMPORTANCE
from autoprune.structure import Structure
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.trials import FORWARD_SHARE

CALIBRATION_EXAMPLES = 1_024
MOMENT_EXAMPLES = 512
_BATCH_SIZE = 128

OBS = "obs"
"""Optimal brain surgeon: what a removal costs after all readers made up for it."""

SCORES = (OBS, *PLAIN_SCORES)

_FALLBACK = "bn_scale"
"""Ranks the units that some reader keeps from being reconstructed."""


def make_dense_model(
    config: RunConfig, folder: RunFolder, task: Task, dense: nn.Module, structure: Structure, events: Events
) -> DenseModel:
    """Return the dense model of a run, its channels ranked; note the units that are not reconstructed."""
    if not folder.order.exists():
        _write_order(config, folder, task, structure)
    require_order(folder, structure)
    dense_model = DenseModel.open(task, dense, structure, folder)
    left = dense_model.not_reconstructed
    if config.reconstruct and left:
        events.note(
            f"no least squares for {len(left)} of {len(structure.units)} units ({', '.join(left[:3])}"
            f"{', ...' if len(left) > 3 else ''}): something that reads them is no convolution of one group and no "
            "linear layer; they are recovered by batch norms and fine-tuning alone"
        )
    return dense_model


def _write_order(config: RunConfig, folder: RunFolder, task: Task, structure: Structure) -> None:
    weights = parse_scores(config.scores, SCORES)
    plain = [name for name in weights if name != OBS] or [_FALLBACK]
    data = calibration(task, config.seed)
    scores = score_units(structure, "+".join(f"{weights.get(name, 1.0)!r}*{name}" for name in plain), data)
    order, passes = channel_order(scores), sum(score_passes(name, data.examples) for name in plain)
    if OBS in weights:
        rows = sample_rows(length(task.train_set), MOMENT_EXAMPLES, seed=config.seed)
        inputs = (task.split(batch)[0] for batch in batches(task.train_set, _BATCH_SIZE, rows=rows))
        by_surgeon = surgeon_order(structure, collect_moments(structure, inputs), order)
        order = joined_orders(by_surgeon, weights[OBS], scores) if len(weights) > 1 else by_surgeon
        passes += FORWARD_SHARE * len(rows)
    if config.reconstruct:
        passes += FORWARD_SHARE * RECONSTRUCTION_EXAMPLES  # the dense outputs that layers are fitted to
    settings = {"scores": config.scores, "reconstruct": config.reconstruct, "seed": config.seed}
    content = json_bytes(settings | {"sample_passes": passes, "order": order})
    Manifest(folder).write_again(folder.order, content, sources=[folder.dense])


def require_order(folder: RunFolder, structure: Structure) -> None:
    """Raise `RunFolderError` unless the order of a run names every channel of every unit once."""
    known = read_json(folder.order, "reconstruct", "seed", "order")
    order = known["order"] if isinstance(known["order"], dict) else {}
    wrong = [unit.name for unit in structure.units if not _is_order(order.get(unit.name), unit.width)]
    wrong += [name for name in ("seed",) if type(known[name]) is not int]
    wrong += [name for name in ("reconstruct",) if type(known[name]) is not bool]
    if wrong or len(order) != len(structure.units):
        raise RunFolderError(
            f"{folder.order} is damaged: {', '.join(wrong[:3]) or 'it has other units than the model'}. Delete it and "
            "run `autoprune search` on its run folder again."
        )


def _is_order(value: object, width: int) -> bool:
    return isinstance(value, list) and all(type(x) is int for x in value) and sorted(value) == list(range(width))


def joined_orders(
    order: Mapping[str, list[int]], weight: float, scores: Mapping[str, np.ndarray]
) -> dict[str, list[int]]:
    """Return the order of channels by the weighted mean of two ranks: that of an order, and that of scores."""
    of_order = {name: -np.argsort(np.asarray(channels)).astype(float) for name, channels in order.items()}
    return channel_order(
        {name: joined_ranks([(weight, of_order[name]), (1 - weight, values)]) for name, values in scores.items()}
    )


def importance(config: RunConfig, structure: Structure, task: Task) -> dict[str, np.ndarray] | None:
    """Return how much each channel of each unit matters, `[width]`; `None` for strategies that do not ask."""
    scores = NEEDS_IMPORTANCE.get(config.strategy)
    return None if scores is None else score_units(structure, scores, calibration(task, config.seed))


def scoring_passes(config: RunConfig, folder: RunFolder, task: Task) -> float:
    """Return the sample passes of everything that ranked channels: the order of the run, and `importance`."""
    ordering = read_json(folder.order, "sample_passes")["sample_passes"]
    return ordering + importance_passes(config, length(task.train_set))


def importance_passes(config: RunConfig, train_examples: int) -> float:
    """Return the sample passes of `importance`."""
    return score_passes(NEEDS_IMPORTANCE.get(config.strategy, ""), min(CALIBRATION_EXAMPLES, train_examples))


def calibration(task: Task, seed: int) -> Calibration:
    """Return training examples for the scores that look at data; without a loss, squared outputs stand in for it."""
    rows = sample_rows(length(task.train_set), CALIBRATION_EXAMPLES, seed=seed)
    split = [task.split(batch) for batch in batches(task.train_set, _BATCH_SIZE, rows=rows)]
    return Calibration(batches=split, loss=partial(_loss, task), seed=seed)


def _loss(task: Task, outputs: Any, target: torch.Tensor | None) -> torch.Tensor:
    outputs = task.select(outputs)
    if task.loss is None or target is None:
        return outputs.square().mean()
    return task.loss(outputs, target)
