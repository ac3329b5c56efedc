"""Proving an ONNX file: equal to the PyTorch model on real inputs, and as fast as predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from autoprune.errors import LatencyError, VerificationError
from autoprune.latency.target import Target, make_target
from autoprune.latency.timing import Feeds, Protocol, Timings, named_feeds, open_session, time_models
from autoprune.records import LatencySample

PARITY_LIMIT = 1e-4
"""Largest output difference between PyTorch and ONNX Runtime, relative to the largest output."""

_BATCHES = (1, 3, 16)
_MEASURE = Protocol(repeats=60)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What is proven about one exported model.

    `measured` and `dense` are the raw samples of both models, taken interleaved; `ratio` compares their quiet
    latencies, and `dense_ms` is the quiet latency of the dense model (see `autoprune.latency.timing`).
    """

    relative_difference: float
    measured: LatencySample
    dense: LatencySample
    ratio: float
    dense_ms: float
    predicted_ms: float


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
    onnx_paths: Sequence[str | Path], dense_onnx: str | Path, target: Target, *, protocol: Protocol | None = None
) -> Timings:
    """Time exported models interleaved with the dense one, on random inputs at the target's batch.

    Compare `ratios` or `latencies_ms`, not the medians of `samples`: on a shared machine medians of the same model
    differ by 3 % from call to call, quiet latencies by 0.5 % (measured). Raises `LatencyError` for an unreadable file.
    """
    paths = [Path(path) for path in onnx_paths]
    feeds = _random_feeds(Path(dense_onnx), target.batch)
    return time_models(paths, target, feeds, reference=Path(dense_onnx), protocol=protocol or _MEASURE)


def verify(
    model: nn.Module,
    onnx_path: str | Path,
    dense_onnx: str | Path,
    inputs: Sequence[torch.Tensor],
    target: Target,
    predicted_ms: float,
    *,
    protocol: Protocol | None = None,
) -> Verification:
    """Prove parity, then time the file beside the dense model. Raises like `parity` and `measure`."""
    difference = parity(model, onnx_path, inputs)
    timings = measure([onnx_path], dense_onnx, target, protocol=protocol)
    return Verification(
        relative_difference=difference,
        measured=timings.samples[0],
        dense=timings.reference,
        ratio=timings.ratios[0],
        dense_ms=timings.reference_ms,
        predicted_ms=predicted_ms,
    )


def _torch_outputs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = model(*inputs)
    return [t.numpy() for t in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)]


def _onnx_outputs(session: ort.InferenceSession, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    feeds = named_feeds(session, [np.ascontiguousarray(x.numpy()) for x in inputs])
    return [np.asarray(output) for output in session.run(None, feeds)]


def _difference(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest relative difference over all outputs; infinite when shapes differ or a value is not finite."""
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        worst = max(worst, float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-12)))
    return worst


def _random_feeds(path: Path, batch: int) -> Feeds:
    """Standard normal inputs (zeros for whole numbers) of the shapes that an ONNX file declares."""
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:
        raise LatencyError(f"{path} is not a readable ONNX file: {error}") from error
    rng = np.random.default_rng(0)
    feeds = []
    for entry in graph.input:
        tensor = entry.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else batch for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        values = rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds.append(values.astype(dtype))
    return feeds
