"""Proving an ONNX file: equal to the PyTorch model on real inputs, and as fast as predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autoprune.errors import VerificationError
from autoprune.latency.device import time_models
from autoprune.latency.target import Target, make_target
from autoprune.latency.timing import Feeds, Model, Protocol, Timings, named_feeds, open_session

PARITY_LIMIT = 1e-4
"""Largest output difference between PyTorch and ONNX Runtime, relative to the largest output."""

_BATCHES = (1, 3, 16)
_MEASURE = Protocol(repeats=60)


def parity(
    model: nn.Module, onnx_path: str | Path, inputs: Sequence[torch.Tensor], *, limit: float = PARITY_LIMIT
) -> float:
    """Largest relative output difference (max |a - b| / max |a|) between `model` and its ONNX file.

    `inputs` are real examples, batch dimension first; batches of 1, 3, 16 and all of them are tried, as far as there
    are enough. Raises `VerificationError` beyond `limit` and for outputs that are not finite or of another shape.
    """
    session = open_session(Path(onnx_path), make_target("ort-cpu"))
    available = len(inputs[0])
    training = {module: module.training for module in model.modules()}
    try:
        differences = {
            batch: _difference(_torch_outputs(model.eval(), part), _onnx_outputs(session, part))
            for batch in sorted({size for size in _BATCHES if size < available} | {available})
            for part in [[x[:batch] for x in inputs]]
        }
    finally:
        for module, mode in training.items():
            module.training = mode
    batch, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= limit:
        raise VerificationError(
            f"{onnx_path} computes something else than the PyTorch model: outputs differ by {worst:.2g} of the largest "
            f"one at batch {batch}, allowed is {limit:g}. Do not use the file, and please report the model."
        )
    return worst


def measure(
    models: Sequence[Model], dense: Model, target: Target, feeds: Feeds, *, protocol: Protocol | None = None
) -> Timings:
    """Time models interleaved with the dense one; `feeds` are inputs at the target's batch.

    Raises `LatencyError` for a file that is no ONNX model or that the target cannot run.
    """
    return time_models(models, target, feeds, reference=dense, protocol=protocol or _MEASURE)


def _torch_outputs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = model(*inputs)
    return [leaf.numpy() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _onnx_outputs(session: ort.InferenceSession, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    feeds = named_feeds(session, [np.ascontiguousarray(x.numpy()) for x in inputs])
    return [np.asarray(output) for output in session.run(None, feeds)]


def _difference(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest relative difference over all outputs; infinite when shapes differ or one value alone is not finite."""
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        a, b = (x.astype(np.float64) if x.dtype == bool else x for x in (a, b))
        scale = max(np.abs(a[np.isfinite(a)]).max(initial=0), 1e-12)
        differ = a != b  # not where both are the same infinity, as of masked scores
        if not (np.isfinite(a[differ]).all() and np.isfinite(b[differ]).all()):
            return float("inf")
        worst = max(worst, float(np.abs(a[differ] - b[differ]).max(initial=0) / scale))
    return worst
