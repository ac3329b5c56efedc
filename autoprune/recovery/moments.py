"""Second moments of the inputs of every consumer of prunable channels, on calibration data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autoprune.errors import TaskError
from autoprune.recovery.consumers import Consumer, find_consumers
from autoprune.recovery.recurrent import Direction, find_directions, hidden_state
from autoprune.recovery.windows import by_example, input_windows, position_dims, sample_windows
from autoprune.structure import EvaluationGraph, Structure

_POSITIONS = (64, 256)
"""Least and most positions of one example that are sampled, others for each: neighbours are much alike."""

_ENTRIES = 200_000
"""Numbers of one example that are sampled, within the bounds on positions."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean `[D]` and raw second moment `[D, D]` of the input columns of a consumer, float64.

    A convolution in G groups has those of each group, `[G, D]` and `[G, D, D]`.
    """

    mean: Tensor
    raw: Tensor

    def second(self, *, centred: bool) -> Tensor:
        """Return the covariance when `centred`, else the raw second moment, in the shape of `raw`."""
        return self.raw - self.mean[..., :, None] * self.mean[..., None, :] if centred else self.raw


def collect_moments(structure: Structure, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Moments]:
    """Return the moments of every consumer over batches of model inputs, by the name of its (first) weight.

    Raises:
        TaskError: an activation is not finite.
    """
    consumers = find_consumers(structure)
    by_node = {node: consumer for consumer in consumers for node in consumer.nodes}
    reader = _MomentReader(structure.evaluation_graph(), by_node, find_directions(structure))
    with torch.no_grad():
        for inputs in batches:
            reader.read(inputs)
    for name, (_, raw, _) in reader.sums.items():
        if not bool(torch.isfinite(raw).all()):
            raise TaskError(
                f"activations must be finite on calibration data; the input of {name!r} is not. "
                "Check the weights and the data for NaN and infinity."
            )
    return {name: Moments(mean=total / count, raw=raw / count) for name, (total, raw, count) in reader.sums.items()}


class _MomentReader(fx.Interpreter):
    def __init__(
        self,
        module: EvaluationGraph,
        consumers: Mapping[str, Consumer],
        recurrent: Mapping[str, Sequence[Direction]],
    ) -> None:
        super().__init__(module)
        self._consumers = consumers
        self._recurrent = recurrent
        self._examples = 1
        self._generator = torch.Generator().manual_seed(0)
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def read(self, inputs: tuple[Tensor, ...]) -> None:
        """Add a batch of model inputs."""
        self._examples = max((len(x) for x in inputs if x.dim()), default=1)
        self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._consumers:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self._add(self._consumers[n.name], by_example(input_windows(n, args), self._examples))
        output = super().run_node(n)
        for direction in self._recurrent.get(n.name, ()):
            args, _ = self.fetch_args_kwargs_from_env(n)
            self._add(direction, direction.columns(args[0], hidden_state(args), output[0]))
        return output

    def _add(self, reader: Consumer | Direction, windows: Tensor) -> None:
        name = reader.weight if isinstance(reader, Consumer) else reader.weights[0]
        count = int(np.clip(_ENTRIES // math.prod(windows.shape[1 + position_dims(windows) :]), *_POSITIONS))
        columns = sample_windows(windows, count, self._generator).double()
        rows = len(columns)
        if isinstance(reader, Consumer):
            columns = reader.split(columns, reader.groups)
        total, raw = columns.sum(-2), columns.mT @ columns
        if name in self.sums:
            before = self.sums[name]
            total, raw, rows = total + before[0], raw + before[1], rows + before[2]
        self.sums[name] = (total, raw, rows)
