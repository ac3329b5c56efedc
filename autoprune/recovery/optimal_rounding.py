"""Rounding of weights by the second moments of what they multiply with: each rounding error is made up for by others.

The columns of a weight are rounded one after the other. What a column lost is added, in the share that least squares
gives, to the columns that are not rounded yet, so that the outputs of the layer change least, not its weights.

Source: Frantar and Alistarh 2022 (OBQ), https://arxiv.org/abs/2208.11580; Frantar et al. 2022 (GPTQ: the order is the
same in all rows, and the inverse is factored once), https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autoprune.quantization.grid import BLOCK, LARGEST_WEIGHT, Array, rounded, rounded_blocks
from autoprune.recovery.consumers import groups_of
from autoprune.recovery.moments import Moments
from autoprune.recovery.regression import ridged
from autoprune.recovery.windows import input_windows, position_dims, sample_windows
from autoprune.structure import GraphModel, module_tensors
from autoprune.structure.placement import Placement

_MOST_COLUMNS = 2304
"""A layer with more columns is rounded to the nearest steps: its inverse would take longer than a fine-tuning."""

_ROWS_PER_COLUMN = 8
_DAMPING = 1e-2
"""Added to the diagonal of a second moment, as a share of the mean of that diagonal."""

_FITTED = 0.75
"""Share of the inputs that weights are rounded for; the others say whether this is better than the nearest steps."""


@dataclass(frozen=True, kw_only=True)
class InputMoments:
    """Moments of the input columns of a layer by group: of most inputs, and of the held-out others."""

    fitted: Moments
    held_out: Moments


def input_moments(node: fx.Node, args: tuple[Any, ...], generator: torch.Generator) -> InputMoments | None:
    """Return the moments of what a convolution or linear layer reads; `None` where it has too many columns.

    Args:
        node: of the layer.
        args: arguments of the node: input, weight, bias and so on.
        generator: draws the positions that are looked at.
    """
    groups, windows = groups_of(node, args), input_windows(node, args)
    dims = position_dims(windows)
    columns = math.prod(windows.shape[1 + dims :]) // groups
    if columns > _MOST_COLUMNS:
        return None
    count = min(math.ceil(_ROWS_PER_COLUMN * columns / len(windows)), math.prod(windows.shape[1 : 1 + dims]))
    rows = sample_windows(windows, count, generator)
    rows = rows.unflatten(1, (groups, -1)).transpose(0, 1)
    fitted = math.ceil(_FITTED * rows.shape[1])
    return InputMoments(fitted=_moments(rows[:, :fitted]), held_out=_moments(rows[:, fitted:]))


class MomentRounding:
    """Looks at what layers read, and rounds their weights by its moments.

    The positions that are looked at are drawn at random, the same in every run.
    """

    def __init__(self) -> None:
        self._moments: dict[str, InputMoments] = {}
        self._generator = torch.Generator().manual_seed(0)

    def observe(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Take the moments of what a convolution or linear layer reads; the last arguments `args` of a node count."""
        moments = input_moments(node, args, self._generator)
        self._moments |= {} if moments is None else {node.name: moments}

    def rounded(
        self, node: str, weight: Array, scales: Array, *, centred: bool, largest_weight: int = LARGEST_WEIGHT
    ) -> Array:
        """Return the steps of a layer's weight, int8 `[O, ...]`; the nearest ones where its inputs were not looked at.

        Arguments are those of `rounded_by_moments`; `node` is the name of the layer's node.
        """
        moments = self._moments.get(node)
        if moments is None:
            return rounded(weight, scales)
        return rounded_by_moments(weight, scales, moments, centred=centred, largest_weight=largest_weight)


def _moments(rows: Tensor) -> Moments:
    """Return the moments of rows `[G, R, D]`.

    Products are those of rows without their means: where inputs hardly vary, the covariance would else be smaller than
    the rounding errors of fp32, and could not be inverted.
    """
    count = max(rows.shape[1], 1)
    mean = rows.sum(1) / count
    varying, mean = rows - mean[:, None], mean.double()
    return Moments(mean=mean, raw=(varying.mT @ varying / count).double() + mean[:, :, None] * mean[:, None, :])


def rounded_by_moments(
    weight: Array, scales: Array, moments: InputMoments, *, centred: bool, largest_weight: int = LARGEST_WEIGHT
) -> Array:
    """Return a weight on the grid of its channels, rounded by moments where held-out outputs then change less.

    Args:
        weight: `[O, ...]`.
        scales: of the output channels, float32 `[O]`.
        moments: of the layer's inputs.
        centred: whether the layer has a bias, which takes up what rounding moves the mean of its outputs.
        largest_weight: outermost step of the grids.

    Returns:
        The steps, int8 in the shape of the weight.
    """
    groups, columns = moments.fitted.mean.shape
    matrix = torch.from_numpy(weight).double().reshape(groups, -1, columns)
    steps = torch.from_numpy(scales).double().reshape(groups, -1, 1).expand_as(matrix)
    nearest = torch.from_numpy(rounded(weight, scales)).double().reshape(matrix.shape)
    grid = _Grid(steps=steps, lowest=-largest_weight, highest=largest_weight, kept=torch.zeros_like(nearest).bool())
    return _best(matrix, nearest, grid, moments, centred=centred).reshape(weight.shape).numpy().astype(np.int8)


def on_block_grids(weight: Array, bits: int, moments: InputMoments) -> Array:
    """Return a weight `[O, I]` in grids that `rounded_blocks` finds again, by moments where outputs then change less.

    The largest number of every block stays, because it makes the block's grid. Moments are raw ones: no bias takes up
    what rounding moves the means. Arguments are those of `rounded_by_moments`, and `bits` of a step.
    """
    blocks, middle, (outputs, inputs) = rounded_blocks(weight, bits), 2 ** (bits - 1), weight.shape
    steps = np.repeat(blocks.scales, BLOCK, axis=1)[None, :, :inputs]
    numbers = blocks.steps.reshape(1, outputs, -1)[..., :inputs].astype(np.float64) - middle
    nearest = torch.from_numpy(numbers)
    grid = _Grid(steps=torch.from_numpy(steps).double(), lowest=-middle, highest=middle - 1, kept=nearest == -middle)
    best = _best(torch.from_numpy(weight).double()[None], nearest, grid, moments, centred=False)
    return (best.numpy().astype(np.float32) * steps)[0]


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Grid of a weight: `steps` are sizes `[G, O, D]`; numbers of steps lie between `lowest` and `highest`.

    `kept` are the places whose number is the lowest one, bool `[G, O, D]`.
    """

    steps: Tensor
    lowest: int
    highest: int
    kept: Tensor

    def ordered(self, order: Tensor) -> _Grid:
        """Return the grid of columns in another order `[G, 1, D]`."""
        return replace(self, steps=self.steps.take_along_dim(order, 2), kept=self.kept.take_along_dim(order, 2))

    def numbers(self, values: Tensor, column: int) -> Tensor:
        """Return how many steps the values of a column are, `[G, O]`."""
        numbers = (values / self.steps[..., column]).round().clamp(self.lowest, self.highest)
        return torch.where(self.kept[..., column], float(self.lowest), numbers)


def _best(weight: Tensor, nearest: Tensor, grid: _Grid, moments: InputMoments, *, centred: bool) -> Tensor:
    """Return adapted numbers of steps, or the nearest ones where the held-out outputs change no less: `[G, O, D]`."""
    adapted = _column_by_column(weight, grid, moments.fitted.second(centred=centred))
    second = moments.held_out.second(centred=centred)
    errors = [_output_error(weight - numbers * grid.steps, second) for numbers in (adapted, nearest)]
    return adapted if errors[0] < errors[1] else nearest


def _output_error(change: Tensor, second: Tensor) -> float:
    """Return the mean squared change of the outputs for a change of the weights `[G, O, D]`."""
    return float((change @ second * change).sum())


def _column_by_column(weight: Tensor, grid: _Grid, second: Tensor) -> Tensor:
    """Return the numbers of steps of a weight `[G, O, D]`, the columns with the largest inputs first.

    Args:
        weight: the weight.
        grid: of the weight.
        second: second moment of the inputs, `[G, D, D]`.
    """
    order = second.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    second = second.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridged(second, _DAMPING)))
    gains = torch.linalg.cholesky(inverse, upper=True)
    order = order[:, None, :]
    left, ordered, whole = weight.take_along_dim(order, 2), grid.ordered(order), torch.empty_like(weight)
    zeros = left == 0  # of a pattern: they make up for nothing
    for column in range(weight.shape[2]):
        whole[..., column] = ordered.numbers(left[..., column], column).masked_fill(zeros[..., column], 0.0)
        missing = left[..., column] - whole[..., column] * ordered.steps[..., column]
        change = missing / gains[:, column, column, None]
        left[..., column + 1 :] -= change[..., None] * gains[:, None, column, column + 1 :]
    return whole.take_along_dim(order.argsort(2), 2)


def round_in_blocks(model: GraphModel, placement: Placement, bits: Mapping[str, int], inputs: Sequence[Tensor]) -> None:
    """Round weights of linear layers to the grids of their blocks, in place, by the moments of what they read.

    Layers that run several times, or share their weight with another operator, stay as they are.

    Args:
        model: repaired, in evaluation mode.
        placement: of its evaluation graph.
        bits: of the steps, by the names of layers.
        inputs: of the model, `[N, ...]` each.
    """
    tensors, readers = module_tensors(model), Counter[int]()
    for node in model.captures[False].graph.nodes:
        if node.op == "get_attr":
            readers[id(tensors[str(node.target)])] += len(node.users)
    alone = {
        name: step.layer
        for name, step in placement.steps.items()
        if step.layer in bits and readers[id(tensors[step.layer])] == 1
    }
    observer = _Observer(model, alone)
    with torch.no_grad():
        observer.run(*inputs)
        for layer, moments in observer.seen:
            weight = tensors[layer]
            rounded = on_block_grids(weight.numpy(), bits[layer], moments)
            weight.copy_(torch.from_numpy(rounded))


class _Observer(fx.Interpreter):
    """Runs a model; `seen` are the layers and the moments of their inputs."""

    def __init__(self, model: GraphModel, layers: Mapping[str, str]) -> None:
        super().__init__(model.evaluation_graph())
        self._layers, self._generator = layers, torch.Generator().manual_seed(0)
        self.seen: list[tuple[str, InputMoments]] = []

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._layers:
            moments = input_moments(n, self.fetch_args_kwargs_from_env(n)[0], self._generator)
            if moments is not None:
                self.seen.append((self._layers[n.name], moments))
        return super().run_node(n)
