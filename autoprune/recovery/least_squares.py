"""Least-squares reconstruction: after channels go, the weights that read them make up for the loss.

Layer after layer, in the order of the graph: with X the input windows of a consumer in the *pruned* model, on
calibration data, and Y what the dense model puts out at the same places, its new weights are the ridge regression of Y
on X, with an intercept where the layer has a bias or feeds a batch norm. The ridge pulls towards the kept weights of
the dense model, so that they stay what they were where the data says nothing. So each layer also makes up for the
errors of those before it. Batch norms take the statistics of the same data as they are passed. No labels, no gradients.

The regression onto dense outputs is that of channel pruning (He et al. 2017) and OSSCAR (Meng et al. 2024).
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
from autoprune.recovery.consumers import (
    Consumer,
    adapted_norms,
    covered_units,
    find_consumers,
    input_windows,
    living_places,
    output_places,
    some_places,
)
from autoprune.recovery.influence import Influence, influence
from autoprune.recovery.prefix import PrefixCache
from autoprune.recovery.recurrent import Direction, find_directions, hidden_state, weights_of
from autoprune.recovery.ridge import ridged
from autoprune.structure import GraphModel, Structure

Array = np.ndarray
Masks = Mapping[tuple[str, str, int], Array]

_RIDGE = 1e-3
"""Added to the diagonal of X^T X, as a share of its mean."""

_POSITIONS = 32
"""Positions of one example that a layer is fitted at, fewer where their targets take too much memory."""

_FEWEST_POSITIONS = 4


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Repairs pruned models of one dense model on some of its training inputs (`inputs`: tensors `[N, ...]`)."""

    structure: Structure
    inputs: tuple[Tensor, ...]

    @cached_property
    def consumers(self) -> Mapping[str, Consumer]:
        """What is fitted, by its node in the evaluation graph."""
        return {consumer.node: consumer for consumer in find_consumers(self.structure)}

    @cached_property
    def recurrent(self) -> Mapping[str, tuple[Direction, ...]]:
        """Recurrent layers that are fitted, by their node."""
        return find_directions(self.structure)

    @property
    def covered(self) -> frozenset[int]:
        """Units of which every reader is reconstructed or needs it not (depthwise layers)."""
        return covered_units(self.structure, self.consumers.values(), itertools.chain(*self.recurrent.values()))

    @property
    def examples(self) -> int:
        """Number of calibration examples: each costs a forward pass of every model that is repaired."""
        return len(self.inputs[0])

    def apply(self, model: GraphModel, masks: Masks) -> set[str]:
        """Repair a shrunk model with living `masks`, in place, from its dense weights; returns the nodes that were run.

        Weights and batch norms that no removed channel influences are left alone, and what comes before the first of
        them is the dense model's. Raises `TrialError` when activations are not finite.
        """
        graph = model.evaluation_graph()
        found = influence(self.structure, graph.graph, masks)
        fitter = _Fitter(graph, self, masks, found)
        starts = self._prefix.starts(graph.graph, found.touched)
        with torch.no_grad():
            if starts is None:
                fitter.run(*self.inputs)
                return {node.name for node in graph.graph.nodes}
            for start in starts:
                fitter.run(initial_env=start)
        return found.touched

    def touched(self, graph: fx.Graph, masks: Masks) -> set[str]:
        """Nodes of a shrunk graph whose value some removed channel or branch changes."""
        return influence(self.structure, graph, masks).touched

    @cached_property
    def _prefix(self) -> PrefixCache:
        return PrefixCache(structure=self.structure, batches=(self.inputs,))

    @cached_property
    def _norms(self) -> set[str]:
        return adapted_norms(self.structure)

    @cached_property
    def _positions(self) -> int:
        outputs = sum(len(self.structure.tensors[c.weight]) for c in self.consumers.values())
        wanted = 4 * outputs * self.examples * _POSITIONS
        affordable = _POSITIONS * memory_limits.RECONSTRUCTION_TARGET_BYTES // max(wanted, 1)
        return max(_FEWEST_POSITIONS, min(_POSITIONS, affordable))

    @property
    def _steps(self) -> Mapping[str, tuple[Tensor, ...]]:
        """What recurrent layers of the dense model read, `[rows, C + H]` for each direction."""
        return self._recorded.steps

    @property
    def _targets(self) -> Mapping[str, Tensor]:
        """Outputs of the dense model `[rows, O]` at the places that each consumer is fitted at."""
        return self._recorded.found

    @cached_property
    def _recorded(self) -> _Recorder:
        recorder = _Recorder(self.structure.evaluation_graph(), self)
        with torch.no_grad():
            recorder.run(*self.inputs)
        return recorder

    def weights(self, direction: Direction) -> list[Tensor]:
        """Dense weights of one direction of a recurrent layer."""
        return [self.structure.tensors[name].detach() for name in direction.weights]

    def _steps_of(self, node: fx.Node, args: tuple[Any, ...], outputs: Tensor) -> tuple[Tensor, ...]:
        state = hidden_state(args)
        return tuple(self._some(d.columns(args[0], state, outputs), node.name) for d in self.recurrent[node.name])

    def _some(self, windows: Tensor, node: str, living: Tensor | None = None) -> Tensor:
        """Always the same places for the same node, in the dense and, of those that live, in every pruned model."""
        place = [*self.consumers, *self.recurrent].index(node)
        return some_places(windows, self._positions, torch.Generator().manual_seed(place), living)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, reconstruction: Reconstruction) -> None:
        super().__init__(module)
        self._reconstruction = reconstruction
        self.found: dict[str, Tensor] = {}
        self.steps: dict[str, tuple[Tensor, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.name in self._reconstruction.consumers:
            self.found[n.name] = self._reconstruction._some(output_places(n, output), n.name)
        if n.name in self._reconstruction.recurrent:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.steps[n.name] = self._reconstruction._steps_of(n, args, output[0])
        return output


class _Fitter(fx.Interpreter):
    """Runs the evaluation graph of a pruned model and repairs every touched layer before it is used."""

    def __init__(self, module: fx.GraphModule, reconstruction: Reconstruction, masks: Masks, found: Influence) -> None:
        super().__init__(module)
        self._reconstruction = reconstruction
        self._masks = masks
        self._influence = found

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
        windows, living = input_windows(node, args), living_places(node, self._masks)
        rows = reconstruction._some(windows, node.name, living)
        target = reconstruction._targets[node.name]
        if living is not None:
            places = living.expand(len(windows), -1)[:, :, None, None]
            target = target[reconstruction._some(places, node.name).flatten()]
        alive = self._alive(consumer.weight, 0)
        if alive is not None:
            target = target[:, alive]
        if not len(rows):
            return  # of the few places that are looked at, none is left
        missing = target - F.linear(rows, args[1].flatten(1), *args[2:3])
        change, offset = _regression(rows, missing, centred=consumer.centred)
        if not bool(torch.isfinite(change).all()):
            raise TrialError(f"what {consumer.weight!r} reads in the pruned model is not finite")
        args[1].add_(change.reshape(args[1].shape))
        if consumer.bias is not None:
            args[2].add_(offset)

    def _fit_recurrent(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Onto the dense model's pre-activations, as if the hidden states that are kept were the dense model's."""
        reconstruction = self._reconstruction
        for direction, dense in zip(reconstruction.recurrent[node.name], reconstruction._steps[node.name], strict=True):
            mine, full = weights_of(direction, args), reconstruction.weights(direction)
            rows, hidden = (self._alive(direction.weights[1], dim) for dim in (0, 1))
            states = dense[:, full[0].shape[1] :]
            states = states if hidden is None else states[:, hidden]
            inputs = reconstruction._some(direction.inputs(args[0])[:, :, None], node.name)
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
                    raise TrialError(f"what {direction.weights[0]!r} reads in the pruned model is not finite")
                kept = direction.matrix(mine)[part.first * size : part.last * size]
                bias = direction.sums(part, torch.zeros_like(columns[:1]), mine)[0]
                direction.assign(part, direction.read(part, kept, mine) + change, bias + offset, mine)

    def _alive(self, weight: str, dim: int) -> Tensor | None:
        mask = self._masks.get(("parameter", weight, dim))
        return None if mask is None else torch.from_numpy(np.flatnonzero(mask))


def _regression(rows: Tensor, target: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Weights `[O, D]` and intercept `[O]` (0 unless `centred`) that map `rows` `[R, D]` to `target` `[R, O]`.

    The ridge pulls the weights to 0: give what is missing as the target, and they change no more than the rows ask for.
    """
    x, y = (each.mean(0) if centred else each.new_zeros(each.shape[1]) for each in (rows, target))
    inputs, outputs = rows - x, target - y
    second = ridged((inputs.T @ inputs / len(rows)).double(), _RIDGE)
    weight = torch.linalg.solve(second, (inputs.T @ outputs / len(rows)).double()).T.to(rows.dtype)
    return weight, y - weight @ x
