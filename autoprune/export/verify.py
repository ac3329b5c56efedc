"""The proof of an ONNX file: it computes the same as the PyTorch model on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from autoprune.device.connect import make_target
from autoprune.device.timing import named_feeds, open_session
from autoprune.errors import VerificationError
from autoprune.onnxgraph.outputs import holds_nan, relative_difference, torch_outputs

PARITY_LIMIT = 1e-4
"""Largest output difference between PyTorch and ONNX Runtime, relative to the largest output."""

_BATCHES = (1, 3, 16)


def parity(
    model: nn.Module, onnx_path: str | Path, inputs: Sequence[torch.Tensor], *, limit: float = PARITY_LIMIT
) -> float:
    """Largest relative output difference (max |a - b| / max |a|) between `model` and its ONNX file.

    `inputs` are real examples, batch dimension first; batches of 1, 3, 16 and all of them are tried, as far as there
    are enough. Raises `VerificationError` beyond `limit`, for outputs that are not finite or of another shape, and
    where the PyTorch model itself gives NaN.
    """
    session = open_session(Path(onnx_path), make_target("ort-cpu"))
    available = len(inputs[0])
    differences: dict[int, float] = {}
    for batch in sorted({size for size in _BATCHES if size < available} | {available}):
        part = [x[:batch] for x in inputs]
        wanted = torch_outputs(model, part)
        if holds_nan(wanted):
            raise VerificationError(
                f"{onnx_path} cannot be proven: the PyTorch model itself gives NaN at batch {batch}, as of infinite "
                "values or of inputs that it is not made for. Give example inputs of which it gives numbers."
            )
        differences[batch] = relative_difference(wanted, _onnx_outputs(session, part))
    batch, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= limit:
        raise VerificationError(
            f"{onnx_path} computes something else than the PyTorch model: outputs differ by {worst:.2g} of the largest "
            f"one at batch {batch}, allowed is {limit:g}. Do not use the file, and please report the model."
        )
    return worst


def _onnx_outputs(session: ort.InferenceSession, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    feeds = named_feeds(session, [np.ascontiguousarray(x.numpy()) for x in inputs])
    return [np.asarray(output) for output in session.run(None, feeds)]
