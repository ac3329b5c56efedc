"""Least-squares reconstruction: the weights that read removed channels are fitted to the dense model's outputs.

It takes calibration inputs, no labels and no gradients, and works layer after layer in the order of the graph:

- X `[rows, D]` are the input windows of a layer in the *pruned* model, Y `[rows, O]` the outputs of the same layer in
  the dense model at the same positions. The new weights are the ridge regression of Y on X, with an intercept where the
  layer has a bias or feeds a batch norm. Since X comes from the pruned model, each layer also compensates for the
  errors of the layers before it.
- The ridge pulls towards the kept weights of the dense model: they stay as they are where the data says nothing.
- A batch norm takes the statistics of the same data.

Source: regression onto dense outputs in channel pruning, He et al. 2017 (https://arxiv.org/abs/1707.06168), and OSSCAR,
Meng et al. 2024 (https://arxiv.org/abs/2403.12983).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from autoprune import memory_limits
from autoprune.errors import TrialError
from autoprune.recovery.batchnorm import take_statistics
from autoprune.recovery.consumers import (
    MATRIX,
    Consumer,
    adapted_norms,
    bias_of,
    covered_units,
    find_consumers,
    groups_of,
    input_of,
    weight_of,
)
from autoprune.recovery.influence import Influence, influence
from autoprune.recovery.prefix import PrefixCache
from autoprune.recovery.recorder import DenseRecorder
from autoprune.recovery.recurrent import Direction, find_directions, weights_of
from autoprune.recovery.regression import regression
from autoprune.recovery.windows import by_example, input_windows, kept_positions, sample_windows
from autoprune.structure import EvaluationGraph, GraphModel, Structure

Array = np.ndarray
Masks = Mapping[tuple[str, str, int], Array]

_POSITIONS = 32
"""Positions of one example that a layer is fitted at, fewer where their targets take too much memory."""

_FEWEST_POSITIONS = 4


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Repairs pruned models of one dense model on calibration inputs.

    Args:
        structure: the dense model.
        inputs: the model's inputs, tensors `[N, ...]` of some N = 256 training examples.
    """

    structure: Structure
    inputs: tuple[Tensor, ...]

    @cached_property
    def consumers(self) -> Mapping[str, Consumer]:
        """Layers that are fitted, by the nodes of the evaluation graph at which they are."""
        return {node: consumer for consumer in self._consumers for node in _some(consumer.nodes)}

    @cached_property
    def _consumers(self) -> tuple[Consumer, ...]:
        return find_consumers(self.structure)

    @cached_property
    def recurrent(self) -> Mapping[str, tuple[Direction, ...]]:
        """Recurrent layers that are fitted, by their node."""
        return find_directions(self.structure)

    @property
    def covered(self) -> frozenset[int]:
        """Units whose readers are all reconstructed, or need no reconstruction (depthwise layers)."""
        return covered_units(self.structure, self._consumers, itertools.chain(*self.recurrent.values()))

    @property
    def examples(self) -> int:
        """Number of calibration examples: each costs a forward pass of every model that is repaired."""
        return len(self.inputs[0])

    def apply(self, model: GraphModel, masks: Masks) -> set[str]:
        """Repair a shrunk model in place, starting from its dense weights.

        Weights and batch norms that no removed channel influences are left alone; nodes before the first influenced
        one are not run, but taken from the dense model.

        Args:
            model: a model of `Structure.shrink`.
            masks: `Structure.masks` of the same policy and channels: bool masks of the kept indices.

        Returns:
            The names of the nodes that were run.

        Raises:
            TrialError: activations of the pruned model are not finite.
        """
        graph = model.evaluation_graph()
        influenced = influence(self.structure, graph.graph, masks)
        fitter = _Fitter(graph, self, masks, influenced)
        starts = self._prefix.starts(graph.graph, influenced.touched)
        with torch.no_grad():
            if starts is None:
                fitter.run(*self.inputs)
                return {node.name for node in graph.graph.nodes}
            for start in starts:
                fitter.run(initial_env=start)
        return influenced.touched

    def touched(self, graph: fx.Graph, masks: Masks) -> set[str]:
        """Return the nodes of a shrunk graph whose value some removed channel or branch changes."""
        return influence(self.structure, graph, masks).touched

    @cached_property
    def _prefix(self) -> PrefixCache:
        return PrefixCache(structure=self.structure, batches=(self.inputs,))

    @cached_property
    def _norms(self) -> set[str]:
        return adapted_norms(self.structure)

    @cached_property
    def _positions(self) -> int:
        tensors = self.structure.tensors
        outputs = sum(tensors[c.weight].shape[1 - c.dim] * (1 if c.dim else c.groups) for c in self.consumers.values())
        wanted = 4 * outputs * self.examples * _POSITIONS
        affordable = _POSITIONS * memory_limits.RECONSTRUCTION_TARGET_BYTES // max(wanted, 1)
        return max(_FEWEST_POSITIONS, min(_POSITIONS, affordable))

    @cached_property
    def recorded(self) -> DenseRecorder:
        """What the dense model computes at the positions that layers are fitted at."""
        recorder = DenseRecorder(self.structure.evaluation_graph(), self.consumers, self.recurrent, self.sample)
        with torch.no_grad():
            recorder.run(*self.inputs)
        return recorder

    def weights(self, direction: Direction) -> list[Tensor]:
        """Return the dense weights of one direction of a recurrent layer."""
        return [self.structure.tensors[name].detach() for name in direction.weights]

    def sample(self, windows: Tensor, node: str, kept: Tensor | None = None) -> Tensor:
        """Sample the same positions of a node in the dense model and, of the kept ones, in every pruned model."""
        seed = [*self.consumers, *self.recurrent].index(node)
        windows = by_example(windows, self.examples)
        return sample_windows(windows, self._positions, torch.Generator().manual_seed(seed), kept)


class _Fitter(fx.Interpreter):
    """Runs the evaluation graph of a pruned model and repairs every touched layer before it is used."""

    def __init__(
        self, module: EvaluationGraph, reconstruction: Reconstruction, masks: Masks, influenced: Influence
    ) -> None:
        super().__init__(module)
        self._reconstruction = reconstruction
        self._masks = masks
        self._influence = influenced

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._influence.touched:
            args, _ = self.fetch_args_kwargs_from_env(n)
            consumer = self._reconstruction.consumers.get(n.name)
            if consumer is not None and consumer.is_shared:
                self._fit_once(consumer, n, args)
            elif consumer is not None and n.name in self._influence.fed:
                self._fit(consumer, n, args)
            elif n.name in self._reconstruction.recurrent:
                self._fit_recurrent(n, args)
            elif n.name in self._reconstruction._norms:
                take_statistics(args[0], args[3], args[4])
        return super().run_node(n)

    def _fit(self, consumer: Consumer, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Fit a layer to the dense model's outputs at the same positions."""
        reconstruction = self._reconstruction
        windows, kept = input_windows(node, args), kept_positions(node, self._masks)
        rows = reconstruction.sample(windows, node.name, kept)
        target = reconstruction.recorded.targets[node.name]
        if kept is not None:
            is_kept = kept.expand(len(windows), -1)[:, :, None, None]
            target = target[reconstruction.sample(is_kept, node.name).flatten()]
        if len(rows):  # else none of the sampled positions is left
            self._adapt(consumer, node, args, rows, target)

    def _fit_once(self, consumer: Consumer, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Fit a layer that runs several times, before its first run, to inputs and outputs of the dense model.

        Its later inputs in the pruned model depend on the weights that are fitted, as those of a recurrent cell do.
        """
        if node.name != consumer.nodes[0] or self._kept(consumer.weight, consumer.dim) is None:
            return
        nodes = _some(consumer.nodes)
        rows = torch.cat([self._reconstruction.recorded.rows[name] for name in nodes])
        target = torch.cat([self._reconstruction.recorded.targets[name] for name in nodes])
        source = input_of(node, node.args)
        mask = self._masks.get(("eval", source.name, source.meta["val"].dim() - 1 if node.target in MATRIX else 1))
        if mask is not None:
            rows = rows[:, consumer.columns(np.flatnonzero(mask))]
        self._adapt(consumer, node, args, rows, target)

    def _adapt(self, consumer: Consumer, node: fx.Node, args: tuple[Any, ...], rows: Tensor, target: Tensor) -> None:
        """Add the regression, on rows `[R, D]`, of what the outputs of a layer miss of `target` `[R, O]`."""
        groups = groups_of(node, args)
        outputs = self._kept_outputs(consumer, node)
        rows = consumer.split(rows, groups)
        target = consumer.split(target if outputs is None else target[:, outputs], groups)
        weight, bias = weight_of(node, args), bias_of(node, args)
        matrix = consumer.matrix(weight, groups)
        if consumer.groups == 1:
            missing = target - F.linear(rows, matrix, bias)
        else:
            missing = target - rows @ matrix.mT - (0 if bias is None else bias.reshape(groups, 1, -1))
        change, offset = regression(rows, missing, centred=consumer.centred)
        if not bool(torch.isfinite(change).all()):
            raise TrialError(f"activations must be finite; the input of {consumer.weight!r} in the pruned model is not")
        consumer.add(weight, change, groups)
        if consumer.bias is not None and bias is not None:
            bias.add_(offset.flatten())

    def _fit_recurrent(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Fit a recurrent layer to the dense model's pre-activations, with the dense model's kept hidden states."""
        reconstruction = self._reconstruction
        recorded = reconstruction.recorded.steps[node.name]
        for direction, dense in zip(reconstruction.recurrent[node.name], recorded, strict=True):
            mine, full = weights_of(direction, args), reconstruction.weights(direction)
            rows, hidden = (self._kept(direction.weights[1], dim) for dim in (0, 1))
            states = dense[:, full[0].shape[1] :]
            states = states if hidden is None else states[:, hidden]
            inputs = reconstruction.sample(direction.inputs(args[0])[:, :, None], node.name)
            columns = torch.cat([inputs, states], dim=1)
            size = mine[1].shape[1]
            for part in direction.parts:
                target = direction.sums(part, dense, full)
                if rows is not None:
                    first, last = part.first * full[1].shape[1], part.last * full[1].shape[1]
                    target = target[:, rows[(rows >= first) & (rows < last)] - first]
                missing = target - direction.sums(part, columns, mine)
                change, offset = regression(direction.read(part, columns, mine), missing, centred=direction.centred)
                if not bool(torch.isfinite(change).all()):
                    raise TrialError(
                        f"activations must be finite; the input of {direction.weights[0]!r} in the pruned model is not"
                    )
                kept = direction.matrix(mine)[part.first * size : part.last * size]
                bias = direction.sums(part, torch.zeros_like(columns[:1]), mine)[0]
                direction.assign(part, direction.read(part, kept, mine) + change, bias + offset, mine)

    def _kept_outputs(self, consumer: Consumer, node: fx.Node) -> Tensor | None:
        """Return the kept output channels of a layer; `None` for all."""
        if consumer.dim or consumer.groups == 1:
            return self._kept(consumer.weight, 1 - consumer.dim)
        mask = self._masks.get(("eval", node.name, 1))  # the weight has the places in one group
        return None if mask is None else torch.from_numpy(np.flatnonzero(mask))

    def _kept(self, weight: str, dim: int) -> Tensor | None:
        mask = self._masks.get(("parameter", weight, dim))
        return None if mask is None else torch.from_numpy(np.flatnonzero(mask))


def _some(nodes: Sequence[str]) -> Sequence[str]:
    """Return the nodes at which a layer that runs several times is fitted: the first, and at most 31 others."""
    return nodes[:: -(-len(nodes) // _POSITIONS)]
