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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from autoprune import memory_limits
from autoprune.errors import TrialError
from autoprune.recovery.consumers import Consumer, adapted_norms, bias_of, covered_units, find_consumers, weight_of
from autoprune.recovery.influence import Influence, influence
from autoprune.recovery.moments import ridged
from autoprune.recovery.prefix import PrefixCache
from autoprune.recovery.recurrent import Direction, find_directions, hidden_state, weights_of
from autoprune.recovery.windows import by_example, input_windows, kept_positions, output_positions, sample_windows
from autoprune.structure import GraphModel, Structure

Array = np.ndarray
Masks = Mapping[tuple[str, str, int], Array]

_RIDGE = 1e-3
"""Added to the diagonal of X^T X, as a share of the mean of that diagonal."""

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
        """Layers that are fitted, by their node in the evaluation graph."""
        return {consumer.node: consumer for consumer in find_consumers(self.structure)}

    @cached_property
    def recurrent(self) -> Mapping[str, tuple[Direction, ...]]:
        """Recurrent layers that are fitted, by their node."""
        return find_directions(self.structure)

    @property
    def covered(self) -> frozenset[int]:
        """Units whose readers are all reconstructed, or need no reconstruction (depthwise layers)."""
        return covered_units(self.structure, self.consumers.values(), itertools.chain(*self.recurrent.values()))

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
        outputs = sum(self.structure.tensors[c.weight].shape[1 - c.dim] for c in self.consumers.values())
        wanted = 4 * outputs * self.examples * _POSITIONS
        affordable = _POSITIONS * memory_limits.RECONSTRUCTION_TARGET_BYTES // max(wanted, 1)
        return max(_FEWEST_POSITIONS, min(_POSITIONS, affordable))

    @property
    def _steps(self) -> Mapping[str, tuple[Tensor, ...]]:
        """Inputs and hidden states `[rows, C + H]` of each direction of the dense model's recurrent layers, by node."""
        return self._recorded.steps

    @property
    def _targets(self) -> Mapping[str, Tensor]:
        """Outputs `[rows, O]` of the dense model at the positions that each consumer is fitted at, by node."""
        return self._recorded.targets

    @cached_property
    def _recorded(self) -> _Recorder:
        recorder = _Recorder(self.structure.evaluation_graph(), self)
        with torch.no_grad():
            recorder.run(*self.inputs)
        return recorder

    def weights(self, direction: Direction) -> list[Tensor]:
        """Return the dense weights of one direction of a recurrent layer."""
        return [self.structure.tensors[name].detach() for name in direction.weights]

    def _steps_of(self, node: fx.Node, args: tuple[Any, ...], outputs: Tensor) -> tuple[Tensor, ...]:
        state = hidden_state(args)
        return tuple(self._sample(d.columns(args[0], state, outputs), node.name) for d in self.recurrent[node.name])

    def _sample(self, windows: Tensor, node: str, kept: Tensor | None = None) -> Tensor:
        """Sample the same positions of a node in the dense model and, of the kept ones, in every pruned model."""
        seed = [*self.consumers, *self.recurrent].index(node)
        windows = by_example(windows, self.examples)
        return sample_windows(windows, self._positions, torch.Generator().manual_seed(seed), kept)


class _Recorder(fx.Interpreter):
    """Runs the dense model and keeps the targets of every regression."""

    def __init__(self, module: fx.GraphModule, reconstruction: Reconstruction) -> None:
        super().__init__(module)
        self._reconstruction = reconstruction
        self.targets: dict[str, Tensor] = {}
        self.steps: dict[str, tuple[Tensor, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.name in self._reconstruction.consumers:
            self.targets[n.name] = self._reconstruction._sample(output_positions(n, output), n.name)
        if n.name in self._reconstruction.recurrent:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.steps[n.name] = self._reconstruction._steps_of(n, args, output[0])
        return output


class _Fitter(fx.Interpreter):
    """Runs the evaluation graph of a pruned model and repairs every touched layer before it is used."""

    def __init__(
        self, module: fx.GraphModule, reconstruction: Reconstruction, masks: Masks, influenced: Influence
    ) -> None:
        super().__init__(module)
        self._reconstruction = reconstruction
        self._masks = masks
        self._influence = influenced

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._influence.touched:
            args, _ = self.fetch_args_kwargs_from_env(n)
            if n.name in self._reconstruction.consumers:
                if n.name in self._influence.fed:
                    self._fit(n, args)
            elif n.name in self._reconstruction.recurrent:
                self._fit_recurrent(n, args)
            elif n.name in self._reconstruction._norms:
                x, dims = args[0], [0, *range(2, args[0].dim())]
                variance, mean = torch.var_mean(x, dims)
                args[3].copy_(mean)
                args[4].copy_(variance)
        return super().run_node(n)

    def _fit(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        reconstruction, consumer = self._reconstruction, self._reconstruction.consumers[node.name]
        windows, kept = input_windows(node, args), kept_positions(node, self._masks)
        rows = reconstruction._sample(windows, node.name, kept)
        target = reconstruction._targets[node.name]
        if kept is not None:
            is_kept = kept.expand(len(windows), -1)[:, :, None, None]
            target = target[reconstruction._sample(is_kept, node.name).flatten()]
        outputs = self._kept(consumer.weight, 1 - consumer.dim)
        if outputs is not None:
            target = target[:, outputs]
        if not len(rows):
            return  # none of the sampled positions is left
        weight, bias = weight_of(node, args), bias_of(node, args)
        missing = target - F.linear(rows, consumer.matrix(weight), bias)
        change, offset = _regression(rows, missing, centred=consumer.centred)
        if not bool(torch.isfinite(change).all()):
            raise TrialError(f"activations must be finite; the input of {consumer.weight!r} in the pruned model is not")
        consumer.add(weight, change)
        if consumer.bias is not None:
            bias.add_(offset)

    def _fit_recurrent(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Fit a recurrent layer to the dense model's pre-activations, with the dense model's kept hidden states."""
        reconstruction = self._reconstruction
        for direction, dense in zip(reconstruction.recurrent[node.name], reconstruction._steps[node.name], strict=True):
            mine, full = weights_of(direction, args), reconstruction.weights(direction)
            rows, hidden = (self._kept(direction.weights[1], dim) for dim in (0, 1))
            states = dense[:, full[0].shape[1] :]
            states = states if hidden is None else states[:, hidden]
            inputs = reconstruction._sample(direction.inputs(args[0])[:, :, None], node.name)
            columns = torch.cat([inputs, states], dim=1)
            size = mine[1].shape[1]
            for part in direction.parts:
                target = direction.sums(part, dense, full)
                if rows is not None:
                    first, last = part.first * full[1].shape[1], part.last * full[1].shape[1]
                    target = target[:, rows[(rows >= first) & (rows < last)] - first]
                missing = target - direction.sums(part, columns, mine)
                change, offset = _regression(direction.read(part, columns, mine), missing, centred=direction.centred)
                if not bool(torch.isfinite(change).all()):
                    raise TrialError(
                        f"activations must be finite; the input of {direction.weights[0]!r} in the pruned model is not"
                    )
                kept = direction.matrix(mine)[part.first * size : part.last * size]
                bias = direction.sums(part, torch.zeros_like(columns[:1]), mine)[0]
                direction.assign(part, direction.read(part, kept, mine) + change, bias + offset, mine)

    def _kept(self, weight: str, dim: int) -> Tensor | None:
        mask = self._masks.get(("parameter", weight, dim))
        return None if mask is None else torch.from_numpy(np.flatnonzero(mask))


def _regression(rows: Tensor, target: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Return the ridge regression of `target` `[R, O]` on `rows` `[R, D]`: weights `[O, D]` and an intercept `[O]`.

    The intercept is 0 unless `centred`. The ridge pulls the weights to 0, so a target of residuals changes weights only
    where the rows ask for it.
    """
    x, y = (each.mean(0) if centred else each.new_zeros(each.shape[1]) for each in (rows, target))
    inputs, outputs = rows - x, target - y
    second = ridged((inputs.T @ inputs / len(rows)).double(), _RIDGE)
    weight = torch.linalg.solve(second, (inputs.T @ outputs / len(rows)).double()).T.to(rows.dtype)
    return weight, y - weight @ x
