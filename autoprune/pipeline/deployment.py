"""A model in the form that its target runs (ONNX, quantized ONNX or PyTorch), and how long that takes there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from autoprune.device.timing import Feeds, Model, Timings
from autoprune.export.onnx_file import export_candidate
from autoprune.export.verify import measure
from autoprune.onnxgraph.export import serialized
from autoprune.onnxgraph.quantization import quantized
from autoprune.pipeline.prepare import Setup
from autoprune.profiling.policy_timer import finite_feeds
from autoprune.runfolder import write_atomic
from autoprune.task.batches import batches, length, sample_rows

_CALIBRATION_BATCHES, _CALIBRATION_EXAMPLES = 4, 32


def deployed(setup: Setup, model: nn.Module, path: Path) -> Model:
    """`model` as the target runs it; an ONNX file at `path`, beside it one in int8 if the target wants that.

    `path` is written for PyTorch targets too: the ONNX file is part of every result. Raises `StructureError` for a
    model that cannot be exported or quantized.
    """
    export_candidate(model, setup.dense_model.task.example_inputs, path)
    if setup.target.runtime == "torch":
        return model
    if setup.target.precision == "fp32":
        return path
    small = int8_path(path)
    write_atomic(small, serialized(quantized(path, *_calibration(setup))))
    return small


def int8_path(path: Path) -> Path:
    """Where the int8 form of an ONNX file is kept."""
    return path.with_suffix(".int8.onnx")


def deployed_dense(setup: Setup) -> Model:
    """The dense model as the target runs it, exported once."""
    path = setup.folder.dense_onnx
    if setup.target.runtime == "torch" and path.exists():
        return setup.dense_model.module
    wanted = path if setup.target.precision == "fp32" else int8_path(path)
    return wanted if wanted.exists() else deployed(setup, setup.dense_model.module, path)


def measure_beside_dense(setup: Setup, models: Sequence[Model]) -> Timings:
    """Time models interleaved with the dense one, on the target."""
    feeds = finite_feeds(setup.dense_model.structure, setup.target.batch)
    return measure(models, deployed_dense(setup), setup.target, feeds)


def _calibration(setup: Setup) -> list[Feeds]:
    """Training inputs that the activations' ranges are taken from."""
    task = setup.dense_model.task
    count = min(_CALIBRATION_BATCHES * _CALIBRATION_EXAMPLES, length(task.train_set))
    rows = sample_rows(length(task.train_set), count, seed=setup.config.seed)
    inputs = [task.split(batch)[0] for batch in batches(task.train_set, _CALIBRATION_EXAMPLES, rows=rows)]
    return [[np.ascontiguousarray(x.numpy()) for x in batch] for batch in inputs]
