"""A measurer without a device: a model costs what an additive machine says, read off the exported file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from autoprune.device import timing
from autoprune.device.connect import make_target
from autoprune.device.target import Target
from autoprune.device.timing import Feeds, Model, Timings
from autoprune.latencies import LatencySample
from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from tests.machines import AdditiveMachine, SimulatedTimer, simulated_timer, stairs
from tests.pipeline import tiny

Slowness = Callable[[Mapping[str, int]], float]
"""Factor on the milliseconds of a model, from the widths of its units."""


class SimulatedMeasurer:
    """Takes no time, and gives the same milliseconds on every machine that runs tests.

    A profile sees the machine with a little noise. Candidates take exactly what the machine says, times `slowness`;
    `slowness` may be replaced between two calls. `asked` holds the widths of all models of every call of `timings`.
    """

    def __init__(
        self,
        target: Target | None = None,
        *,
        slowness: Slowness = lambda widths: 1.0,
        error: Exception | None = None,
        int8_is_faster: bool = False,
    ) -> None:
        self.target = target or make_target("ort-cpu")
        self.slowness, self.error = slowness, error
        self.int8_is_faster = int8_is_faster
        self.clock = 1.0
        self.asked: list[list[dict[str, int]]] = []
        self._structure: Structure | None = None

    def machine(
        self, structure: Structure, *, noise: float = 0.0, seed: int = 0, layers: Sequence[str] = ()
    ) -> AdditiveMachine:
        """The simulated device for one model; the treatments of other layers change nothing."""
        cost = stairs(4)
        return AdditiveMachine(
            structure, lambda g: cost(g) / 500, remainder_ms=0.001, noise=noise, seed=seed, layers=layers
        )

    def policy_timer(
        self, structure: Structure, *, layers: Sequence[str] = (), seed: int, on_progress: Any = None
    ) -> SimulatedTimer:
        """Time policies with 0.4 % of noise."""
        self._structure = structure
        faster = layers if self.int8_is_faster else ()
        machine = self.machine(structure, noise=0.004, seed=seed, layers=faster)
        timer = simulated_timer(machine, self.target, on_progress=on_progress, seed=seed)
        return replace(timer, layers=tuple(layers))

    def timings(
        self, models: Sequence[Model], reference: Model, feeds: Feeds, *, protocol: timing.Protocol | None = None
    ) -> Timings:
        """Read the widths of every model off its weights, and give the machine's milliseconds."""
        if self.error is not None:
            raise self.error
        machine = self.machine(self.structure)
        widths = [self.widths(model) for model in models]
        self.asked.append(widths)
        rows = np.array([[row[unit.name] for unit in self.structure.units] for row in widths])
        ratios = machine.ms(rows) / machine.dense_ms * [self.slowness(row) for row in widths]
        dense_ms = machine.dense_ms * self.clock
        return Timings(
            samples=tuple(_sample(ratio * dense_ms) for ratio in ratios),
            ratios=tuple(map(float, ratios)),
            reference=_sample(dense_ms),
            reference_ms=dense_ms,
            drift=0.0,
            repeated_blocks=0,
            noise=0.0,
        )

    @property
    def structure(self) -> Structure:
        """That of the profiled model, or of the tiny task."""
        if self._structure is None:
            task = tiny.make_task()
            self._structure = analyze(task.build_model().eval(), task.example_inputs)
        return self._structure

    def widths(self, model: Model | Policy) -> dict[str, int]:
        """Output channels of the layer that every unit is named after; a simulated timer makes no model of a policy."""
        if isinstance(model, Policy):
            return dict(model.widths)
        shapes = _shapes(model)
        names = [unit.name for unit in self.structure.units]
        return {name: shapes[name if name in shapes else f"{name}.1"] for name in names}  # or of its second factor


def _sample(ms: float) -> LatencySample:
    return LatencySample(median_ms=ms, p10_ms=ms, p90_ms=ms, runs=1)


def _shapes(model: Model) -> dict[str, int]:
    """First dimension of every weight, by the name of its layer; also of int8 weights."""
    if isinstance(model, nn.Module):
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    else:
        shapes = {entry.name: tuple(entry.dims) for entry in onnx.load(str(Path(model))).graph.initializer}
    layers = {name.removesuffix("_quantized").removesuffix(".weight"): shape for name, shape in shapes.items()}
    return {name: int(shape[0]) for name, shape in layers.items() if len(shape) > 1}
