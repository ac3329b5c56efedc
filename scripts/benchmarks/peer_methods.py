"""Other tools behind one seam: prune a share of the cost that the tool counts."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from autoprune.errors import UsageError
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate

GRADIENT_BATCHES, GRADIENT_BATCH_SIZE = 10, 64
CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 50, 16
"""FastNAS recalibrates batch norms before every score; it wants 50 batches, so they are small."""
SCORE_EXAMPLES = 1_000
FAST_STEP = 4
"""ONNX Runtime runs multiples of it fast. FastNAS's own step is 32, which leaves a net of 16 to 64 channels whole."""


class Peer(Protocol):
    """A pruning method with its preparation done: gradients taken, sensitivities measured."""

    @property
    def search_passes(self) -> int:
        """Sample passes of the preparation, which serves all budgets."""
        ...

    def prune(self, share: float) -> nn.Module:
        """A new model with `share` (0 to 1) of what the method counts removed."""
        ...


class TorchPruning:
    """Torch-Pruning: one global threshold over the scores of all channels, or one for every kind of layer.

    `round_to` makes widths multiples of it, as someone does who knows which ones the runtime runs fast.
    """

    def __init__(
        self,
        task: Task,
        dense: nn.Module,
        seed: int,
        *,
        score: str,
        isomorphic: bool = False,
        round_to: int | None = None,
    ) -> None:
        self._library: Any = import_module("torch_pruning")
        self._task = task
        self._dense = dense
        self._isomorphic = isomorphic
        self._round_to = round_to
        self._score = score
        passes = SamplePasses()
        self._gradients = _gradients(task, dense, seed, passes) if score == "GroupTaylorImportance" else {}
        self.search_passes = round(passes.total)

    def prune(self, share: float) -> nn.Module:
        """As `Peer`; `share` is of the channels."""
        model = copy.deepcopy(self._dense)
        for name, parameter in model.named_parameters():
            parameter.grad = self._gradients.get(name)
        self._library.pruner.BasePruner(
            model,
            self._task.example_inputs,
            importance=getattr(self._library.importance, self._score)(),
            global_pruning=True,
            isomorphic=self._isomorphic,
            pruning_ratio=share,
            round_to=self._round_to,
            ignored_layers=_classifiers(model, self._task),
            # Its defaults are dictionaries that all pruners of a process share.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        ).step()
        model.zero_grad()
        return model


class FastNas:
    """ModelOpt's FastNAS: widths by one threshold on what every layer alone costs in validation score.

    `limit` is the cost that it constrains, `params` or `flops`. The sensitivities are measured once and kept in a file
    for all shares, so only they count. Every forward pass counts like one of the dense model: an upper bound.
    """

    def __init__(self, task: Task, dense: nn.Module, seed: int, *, limit: str) -> None:
        self._library: Any = import_module("modelopt.torch.prune")
        self._task = task
        self._dense = dense
        self._limit = limit
        rows = sample_rows(length(task.train_set), CALIBRATION_BATCHES * CALIBRATION_BATCH_SIZE, seed=seed)
        self._inputs = [task.split(batch)[0] for batch in batches(task.train_set, CALIBRATION_BATCH_SIZE, rows=rows)]
        self._folder = tempfile.TemporaryDirectory()
        self._examples = 0
        self.prune(0.0)
        passes = SamplePasses()
        passes.forward(self._examples)
        self.search_passes = round(passes.total)

    def prune(self, share: float) -> nn.Module:
        """As `Peer`; `share` is of the parameters or FLOPs."""
        model = copy.deepcopy(self._dense)
        counter = model.register_forward_pre_hook(self._count)
        search = {
            "score_func": self._validation_score,
            "data_loader": self._inputs,
            "collect_func": lambda inputs: inputs,
            "checkpoint": str(Path(self._folder.name) / "sensitivities.pth"),
            "verbose": False,
        }
        constraints = {self._limit: f"{100 * (1 - share):g}%"}
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            pruned, _ = self._library.prune(
                model, [("fastnas", self._space())], constraints, self._task.example_inputs, config=search
            )
        counter.remove()
        return pruned

    def _space(self) -> Mapping[str, Any]:
        space = self._library.fastnas.FastNASConfig()
        for kind in space:
            for rule in (space[kind] or {}).values():
                for name in ("channel_divisor", "feature_divisor"):
                    if rule and name in rule:
                        rule[name] = FAST_STEP
        return space

    def _validation_score(self, model: nn.Module) -> float:
        return evaluate(model, self._task, self._task.val_set, limit=SCORE_EXAMPLES).score

    def _count(self, _model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._examples += len(inputs[0])


_TAYLOR = partial(TorchPruning, score="GroupTaylorImportance")
_MAGNITUDE = partial(TorchPruning, score="GroupMagnitudeImportance")
METHODS: Mapping[str, Callable[[Task, nn.Module, int], Peer]] = {
    "tp-taylor": _TAYLOR,
    "tp-magnitude": _MAGNITUDE,
    "tp-isomorphic": partial(_TAYLOR, isomorphic=True),
    "tp-taylor-round4": partial(_TAYLOR, round_to=FAST_STEP),
    "tp-magnitude-round4": partial(_MAGNITUDE, round_to=FAST_STEP),
    "tp-isomorphic-round4": partial(_TAYLOR, isomorphic=True, round_to=FAST_STEP),
    "fastnas-params": partial(FastNas, limit="params"),
    "fastnas-flops": partial(FastNas, limit="flops"),
}


def _gradients(task: Task, dense: nn.Module, seed: int, passes: SamplePasses) -> dict[str, torch.Tensor]:
    """Gradients of the task's loss by parameter name, summed over batches of training data."""
    if task.loss is None:
        raise UsageError(f"Taylor scores need a loss; task {task.name!r} has none")
    model = copy.deepcopy(dense)
    rows = sample_rows(length(task.train_set), GRADIENT_BATCHES * GRADIENT_BATCH_SIZE, seed=seed)
    for batch in batches(task.train_set, GRADIENT_BATCH_SIZE, rows=rows):
        inputs, targets = task.split(batch)
        assert targets is not None
        task.loss(model(*inputs), targets).backward()
        passes.training(len(targets))
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _classifiers(model: nn.Module, task: Task) -> list[nn.Module]:
    """Linear layers as wide as the model's output: it must keep its classes."""
    with torch.no_grad():
        width = model(*task.example_inputs).shape[-1]
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == width]
