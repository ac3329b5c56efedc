"""How much each channel of a unit matters: plain functions of a unit, higher is more important.

Every score has shape `[width]`, is finite and not negative, and sums over all parameters that the unit cuts, so that
coupled channels are judged together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from autoprune.errors import TaskError, UsageError, unknown_name
from autoprune.structure import Structure
from autoprune.structure.module import evaluating

aten = torch.ops.aten
Array = np.ndarray
Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor | None]
"""Inputs and target (`None` when the task has no labels) of one batch."""


@dataclass(frozen=True)
class Calibration:
    """Data that some scores look at: a few hundred training examples in batches.

    `loss` is needed by `taylor` alone; `seed` feeds the `random` score.
    """

    batches: Sequence[Batch] = ()
    loss: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None
    seed: int = 0

    @property
    def examples(self) -> int:
        """Number of calibration examples."""
        return sum(len(inputs[0]) for inputs, _ in self.batches)

    def require(self, score: str) -> None:
        """Raise `UsageError` when the data that a score needs is missing."""
        if not self.batches or (score == "taylor" and self.loss is None):
            needs = "batches and a loss" if score == "taylor" else "batches"
            raise UsageError(f"the score {score!r} looks at data: give it a Calibration with {needs}")


_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_FILTERS: dict[Any, tuple[int, int]] = {
    aten.embedding.default: (0, 1),
    aten.matmul.default: (1, 1),
    aten.mm.default: (1, 1),
    aten.addmm.default: (2, 1),
} | dict.fromkeys(_TRANSPOSED, (1, 1))
"""Operators whose weight does not have its filters along dimension 0: which argument it is, and the dimension."""


class Scorer:
    """Scores of the units of one structure; gradients and activations are taken once for all units."""

    def __init__(self, structure: Structure, calibration: Calibration) -> None:
        self.structure = structure
        self.calibration = calibration
        self.tensors = structure.tensors

    def members(self, unit: int) -> list[tuple[str, int, Array]]:
        """Parameter name, dimension and channel of every index (`-1`: none), for all that the unit cuts."""
        found = self.structure.channels
        return [
            (name, dim, sites.of_unit[unit])
            for (kind, name, dim), sites in found.items()
            if kind == "parameter" and unit in sites.of_unit and isinstance(self.tensors[name], nn.Parameter)
        ]

    @cached_property
    def filter_dims(self) -> dict[str, int]:
        """The dimension along which a weight has one filter for each channel that it puts out; 0 for those left out."""
        found: dict[str, int] = {}
        for node in self.structure.captures[False].graph.nodes:
            place, dim = _FILTERS.get(node.target, (0, 0))
            source = node.args[place] if dim else None
            if isinstance(source, fx.Node) and source.op == "get_attr":
                name = self.structure.canonical.get(str(source.target), "")
                depthwise = node.target in _TRANSPOSED and node.args[6:7] > (1,) and self.tensors[name].shape[1] == 1
                found[name] = 0 if depthwise else dim
        return found

    @cached_property
    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradient of the summed calibration loss by parameter; the model and its own gradients are left alone.

        Raises `UsageError` without data and a loss, and when every parameter is frozen.
        """
        self.calibration.require("taylor")
        model, loss = self.structure.model, self.calibration.loss
        assert loss is not None
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not parameters:
            raise UsageError(
                "the score 'taylor' takes gradients of parameters, and all of this model's are frozen: call "
                "requires_grad_(True) on some, or take a score without gradients, such as 'l2'"
            )
        totals = {n: torch.zeros_like(p) for n, p in parameters.items()}
        with evaluating(model):
            for inputs, target in self.calibration.batches:
                value = loss(model(*inputs), target)
                grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
                for name, grad in zip(parameters, grads, strict=True):
                    if grad is not None:
                        totals[name] += grad * len(inputs[0])
        return totals

    @cached_property
    def activations(self) -> dict[tuple[str, int], Array]:
        """Mean absolute activation along every labelled dimension of the evaluation graph, by node and dimension."""
        self.calibration.require("activation")
        dims = [(node, dim) for kind, node, dim in self.structure.channels if kind == "eval" and dim > 0]
        recorder = _Recorder(self.structure.evaluation_graph(), dims)
        with torch.no_grad():
            for inputs, _ in self.calibration.batches:
                recorder.run(*inputs)
        return {key: total / self.calibration.examples for key, total in recorder.totals.items()}


class _Recorder(fx.Interpreter):
    """Runs a graph and sums mean absolute activations over examples, along some dimensions of some nodes."""

    def __init__(self, module: fx.GraphModule, dims: Sequence[tuple[str, int]]) -> None:
        super().__init__(module)
        self._dims = dims
        self.totals: dict[tuple[str, int], Array] = {}

    def run_node(self, n: fx.Node) -> object:
        out = super().run_node(n)
        for node, dim in self._dims:
            if node == n.name and isinstance(out, torch.Tensor) and out.is_floating_point():
                mean = out.abs().movedim(dim, 0).reshape(out.shape[dim], -1).mean(1) * len(out)
                self.totals[node, dim] = self.totals.get((node, dim), 0) + mean.double().numpy()
        return out


def _sum_by_channel(values: torch.Tensor, dim: int, channel: Array, width: int) -> Array:
    """Sum a parameter-shaped tensor over everything but the channels of `dim`: `[width]`."""
    per_index = values.detach().double().transpose(0, dim).reshape(values.shape[dim], -1).sum(1).numpy()
    inside = channel >= 0
    return np.bincount(channel[inside], weights=per_index[inside], minlength=width)


def _norm(scorer: Scorer, unit: int, power: int) -> Array:
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.members(unit):
        if scorer.tensors[name].dim() > 1:
            total += _sum_by_channel(scorer.tensors[name].abs() ** power, dim, channel, width)
    return total ** (1 / power)


def l1(scorer: Scorer, unit: int) -> Array:
    """Sum of absolute weights (Li et al. 2017), over producers and consumers."""
    return _norm(scorer, unit, 1)


def l2(scorer: Scorer, unit: int) -> Array:
    """Euclidean norm of the weights, over producers and consumers."""
    return _norm(scorer, unit, 2)


def random(scorer: Scorer, unit: int) -> Array:
    """Uniform random numbers from the calibration's seed and the unit's position."""
    width = scorer.structure.units[unit].width
    return np.random.default_rng([scorer.calibration.seed, unit]).random(width)


def fpgm(scorer: Scorer, unit: int) -> Array:
    """Distance of a filter to all others of its layer (He et al. 2019): those in the middle can be replaced."""
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.members(unit):
        weight = scorer.tensors[name]
        if weight.dim() > 1 and dim == scorer.filter_dims.get(name, 0):
            filters = weight.detach().double().transpose(0, dim).flatten(1)
            distance = torch.cdist(filters, filters).sum(1)
            total += np.bincount(channel[channel >= 0], weights=distance.numpy()[channel >= 0], minlength=width)
    return total


def bn_scale(scorer: Scorer, unit: int) -> Array:
    """Absolute scale of the batch norms on the channels (Liu et al. 2017); falls back to `l2` where there are none."""
    width = scorer.structure.units[unit].width
    total, found = np.zeros(width), False
    for name, dim, channel in scorer.members(unit):
        if f"{name.rpartition('.')[0]}.running_var" in scorer.tensors and name.endswith("weight"):
            total += _sum_by_channel(scorer.tensors[name].abs(), dim, channel, width)
            found = True
    return total if found else l2(scorer, unit)


def taylor(scorer: Scorer, unit: int) -> Array:
    """First-order change of the loss when the channel goes: |sum of weight times gradient| (Molchanov et al. 2019)."""
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.members(unit):
        if name in scorer.gradients:
            product = scorer.tensors[name].detach() * scorer.gradients[name]
            total += np.abs(_sum_by_channel(product, dim, channel, width))
    return total / max(scorer.calibration.examples, 1)


def activation(scorer: Scorer, unit: int) -> Array:
    """Mean absolute activation of the channel on calibration data, over all nodes that carry it."""
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for (kind, node, dim), sites in scorer.structure.channels.items():
        if kind == "eval" and unit in sites.of_unit and (node, dim) in scorer.activations:
            channel = sites.of_unit[unit]
            inside = channel >= 0
            total += np.bincount(channel[inside], weights=scorer.activations[node, dim][inside], minlength=width)
    return total


SCORES: dict[str, Callable[[Scorer, int], Array]] = {
    "l1": l1,
    "l2": l2,
    "random": random,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "activation": activation,
}


def score_units(structure: Structure, score: str, calibration: Calibration | None = None) -> dict[str, Array]:
    """Scores of all units, `unit name -> [width]`.

    Raises `UsageError` for an unknown score or missing data, `TaskError` when a score is not finite.
    """
    if score not in SCORES:
        raise unknown_name("score", score, SCORES)
    scorer = Scorer(structure, calibration or Calibration())
    scores = {unit.name: SCORES[score](scorer, number) for number, unit in enumerate(structure.units)}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise TaskError(
                f"the score {score!r} of unit {name!r} is not finite: check the weights and the data for NaN"
            )
    return scores
