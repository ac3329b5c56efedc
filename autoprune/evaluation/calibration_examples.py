"""Training examples for all that is fitted without labels, and how the device of a run computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from autoprune import memory_limits
from autoprune.device.target import adds_in_16_bits
from autoprune.latency.stand_in import StandInTable
from autoprune.latency.table import LatencyTable
from autoprune.model.randomness import seeded
from autoprune.quantization.arithmetic import DEFAULT_ARITHMETIC, Arithmetic
from autoprune.quantization.grid import LARGEST_SATURATING_WEIGHT, LARGEST_WEIGHT
from autoprune.recovery.least_squares import Reconstruction
from autoprune.runfolder import RunFolder
from autoprune.structure import Structure
from autoprune.task.base import Task
from autoprune.task.batches import length, sample_rows, take

RECONSTRUCTION_EXAMPLES = 256
_FEWEST_EXAMPLES = 32
CALIBRATION_EXAMPLES = 128
"""Training examples that ranges and rounding are taken from."""

_LARGE, _MOST_EXAMPLES = 0.1, 1_024
"""A layer with this share of the weights is large; more examples cost more than they are worth."""


def reconstruction_of(task: Task, structure: Structure, seed: int) -> Reconstruction:
    """Return a reconstruction on as many training examples as its activations leave room for, at most 256."""
    return Reconstruction(structure=structure, inputs=reconstruction_inputs(task, structure, seed=seed))


def reconstruction_inputs(
    task: Task, structure: Structure, *, seed: int, most: int = RECONSTRUCTION_EXAMPLES
) -> tuple[Tensor, ...]:
    """Return the inputs of as many training examples as the activations of the model leave room for."""
    full = structure.widths([structure.dense_policy()])
    room = memory_limits.RECONSTRUCTION_ACTIVATION_BYTES // max(int(structure.peak_activation_bytes(full)[0]), 1)
    rows = sample_rows(length(task.train_set), max(_FEWEST_EXAMPLES, min(most, room)), seed=seed)
    with seeded(seed):
        return task.split(take(task.train_set, rows))[0]


def calibration_inputs(task: Task, structure: Structure, reconstruction: Reconstruction | None) -> tuple[Tensor, ...]:
    """Return the inputs of the first examples of a reconstruction, or as many of the training data without one."""
    if reconstruction is not None:
        return tuple(x[:CALIBRATION_EXAMPLES] for x in reconstruction.inputs)
    return reconstruction_inputs(task, structure, seed=0, most=CALIBRATION_EXAMPLES)


def more_inputs(task: Task, structure: Structure, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs that weights are fitted to: the given ones, or more where a large layer would have few rows.

    A linear layer that reads an example once has a row for each. With fewer rows than inputs their second moments say
    little about which weights can go, so there are as many examples as inputs, where 1,024 are enough for that.
    """
    nodes = {node.name: node for node in structure.captures[False].graph.nodes}
    total = sum(math.prod(shape) for layer in structure.layers for shape in layer.shapes)
    wanted = []
    for layer in structure.layers:
        if layer.op == "linear" and math.prod(layer.shapes[0]) >= _LARGE * total:
            rows = math.prod(nodes[layer.nodes[0]].args[0].meta["val"].shape[1:-1])
            wanted.append(math.ceil(layer.shapes[0][1] / rows))
    most = max((count for count in wanted if count <= _MOST_EXAMPLES), default=0)
    return given if most <= len(given[0]) else reconstruction_inputs(task, structure, seed=0, most=most)


def arithmetic_of(folder: RunFolder) -> Arithmetic:
    """Return the arithmetic of the device of a run: of its latency table, or of its dense latency alone."""
    if folder.table.exists():
        table = LatencyTable.load(folder.table)
        return replace(_of_target(table.target), accuracy_levels=table.accuracy_levels)
    if folder.dense_latency.exists():
        return _of_target(StandInTable.load(folder.dense_latency).target)
    return DEFAULT_ARITHMETIC


def _of_target(target: Mapping[str, Any]) -> Arithmetic:
    largest = LARGEST_SATURATING_WEIGHT if adds_in_16_bits(target) else LARGEST_WEIGHT
    return replace(DEFAULT_ARITHMETIC, largest_weight=largest)
