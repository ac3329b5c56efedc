"""Accuracy levels of layers in `w8` and `w4`, measured before the latency table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from autoprune.device.timing import Protocol
from autoprune.latency.sampling import whole_models
from autoprune.onnxgraph.outputs import torch_outputs
from autoprune.pipeline.events import Events
from autoprune.profiling.journal import Journal
from autoprune.profiling.policy_timer import PolicyTimer
from autoprune.quantization.arithmetic import FP32_INPUTS, INT8_INPUTS, WEIGHT_ONLY, AccuracyLevels, Arithmetic
from autoprune.quantization.numbers import Quantization
from autoprune.quantization.twin import make_twin
from autoprune.records import SearchSpace
from autoprune.structure import Structure
from autoprune.treatments import Treatment

_LARGEST_ERROR = 3.0
"""Error of the outputs with inputs in int8, relative to that of rounded weights alone.

It is 1.0 to 1.9 in trained models; outliers among the inputs, which share a grid with 31 others, make it far larger.
"""

_FASTER = 0.98
"""Inputs stay in fp32 where they take at most this much longer: a smaller gain is noise, and not worth an error."""


def measured_accuracy_levels(
    space: SearchSpace, timer: PolicyTimer, journal: Journal, events: Events
) -> AccuracyLevels:
    """Return the accuracy level of every weight-only precision that a space offers, and note why.

    Inputs are in int8 where models are faster so, at their widths and at half of them together, and where that does not
    make the error of the outputs more than three times as large; else they stay in fp32.

    Args:
        space: of the latency table.
        timer: times models of the space.
        journal: keeps the times for a table that is interrupted.
        events: are told the times.

    Raises:
        LatencyError: a model cannot be timed.
        StructureError: a layer cannot be treated so.
    """
    levels: dict[str, int] = {}
    for precision in WEIGHT_ONLY:
        treated = _layers_in(precision, space)
        if not treated:
            continue
        rows = _rows(space, treated)
        fp32_ratio, int8_ratio = (
            _ratio(timer, rows, precision, level, journal) for level in (FP32_INPUTS, INT8_INPUTS)
        )
        error = relative_error(timer.structure, [*treated], precision)
        faster, close = int8_ratio < _FASTER * fp32_ratio, error <= _LARGEST_ERROR
        levels[precision] = INT8_INPUTS if faster and close else FP32_INPUTS
        reason = "" if close or not faster else f", but outputs err {error:.1f} times as much as by the weights alone"
        events.note(
            f"{precision} computes at accuracy level {levels[precision]}: with inputs in int8 (level {INT8_INPUTS}), "
            f"models take {int8_ratio / fp32_ratio:.2f} of their time with inputs in fp32 (level {FP32_INPUTS}){reason}"
        )
    return levels


def _layers_in(precision: str, space: SearchSpace) -> dict[str, Treatment]:
    """Return the layers that may have a precision, each with its largest such treatment."""
    of_layers = {name: [Treatment.of_code(code) for code in space.codes[name]] for name in space.layer_names}
    having = {n: [t for t in treatments if t.precision == precision] for n, treatments in of_layers.items()}
    return {name: treatments[-1] for name, treatments in having.items() if treatments}


def _rows(space: SearchSpace, treated: Mapping[str, Treatment]) -> np.ndarray:
    """Return rows `[2, U + L]` of treated models: at their widths, and at half of them."""
    codes = [treated[name].code if name in treated else space.codes[name][-1] for name in space.layer_names]
    widths = np.unique(whole_models(space)[:, : len(space.unit_names)], axis=0)
    return np.array([[*row, *codes] for row in widths])


def _ratio(timer: PolicyTimer, rows: np.ndarray, precision: str, level: int, journal: Journal) -> float:
    """Return the mean latency of rows at a level, relative to the dense model."""
    at_level = replace(timer, accuracy_levels={precision: level})
    measure = partial(at_level.time, rows, "comparing accuracy levels", Protocol())
    return float(np.mean(journal.timings(f"{precision} at accuracy level {level}", rows, measure).ratios))


def relative_error(structure: Structure, layers: list[str], precision: str) -> float:
    """Return the root mean square error of outputs with inputs in int8, relative to that with inputs in fp32.

    Weights of some layers are in a precision in both; the inputs of the model are the examples.
    """
    model = structure.shrink(structure.dense_policy(), prove=False).eval()
    placement, inputs = structure.placement_in(model.captures[False].graph), tuple(structure.example_inputs)
    local = dict.fromkeys(layers, Treatment(precision=precision))
    wanted = torch_outputs(model, inputs)

    def error(level: int) -> float:
        arithmetic = Arithmetic(accuracy_levels={precision: level})
        numbers = Quantization(ranges={}, weights={}, local=local, arithmetic=arithmetic)
        outputs = torch_outputs(make_twin(model, placement, numbers), inputs)
        # Masked outputs are the same infinity in both.
        differences = [a[a != b] - b[a != b] for a, b in zip(outputs, wanted, strict=True)]
        return float(np.linalg.norm(np.concatenate(differences)))

    return error(INT8_INPUTS) / max(error(FP32_INPUTS), 1e-12)
