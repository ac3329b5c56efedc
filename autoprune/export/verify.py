"""The proof of an ONNX file: it computes the same as the PyTorch model on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from autoprune.device.connect import make_target
from autoprune.device.timing import named_feeds, open_session
from autoprune.errors import VerificationError
from autoprune.export.formats import PARITY_LIMIT
from autoprune.onnxgraph.outputs import holds_nan, relative_difference, torch_outputs
from autoprune.structure import GraphModel
from autoprune.structure.input_sizes import InputSizes, at_second

_ROUGHLY = 0.05
"""Relative output difference below which a file computes the same formula, also in float16."""

_BATCHES, _SECOND_BATCH = (1, 3, 16), 2


def parity(
    model: nn.Module,
    onnx_path: str | Path,
    inputs: Sequence[torch.Tensor],
    *,
    limit: float = PARITY_LIMIT,
    sizes: InputSizes | None = None,
) -> float:
    """Largest relative output difference (max |a - b| / max |a|) between `model` and its ONNX file.

    `inputs` are real examples, batch dimension first; batches of 1, 3, 16 and all of them are tried, as far as there
    are enough, and where the file takes other sizes, a batch of the second size of `sizes` (by default those that a
    captured model has). Raises `VerificationError` beyond `limit`, for outputs that are not finite or of another
    shape, and where the PyTorch model itself gives NaN.
    """
    session = open_session(Path(onnx_path), make_target("ort-cpu"))
    sizes = model.sizes if isinstance(model, GraphModel) else sizes
    second = None if sizes is None else at_second(sizes, [x[:_SECOND_BATCH] for x in inputs])
    if second is not None and not _takes(session, second):
        second = None
    return output_difference(
        model, lambda part: _onnx_outputs(session, part), inputs, source=onnx_path, limit=limit, second=second
    )


def output_difference(
    model: nn.Module,
    run: Callable[[Sequence[torch.Tensor]], list[np.ndarray]],
    inputs: Sequence[torch.Tensor],
    *,
    source: str | Path,
    limit: float = PARITY_LIMIT,
    second: Sequence[torch.Tensor] | None = None,
) -> float:
    """Largest relative output difference (max |a - b| / max |a|) between `model` and a file that was made of it.

    Args:
        model: in PyTorch.
        run: runs the file on inputs, and returns its outputs in order.
        inputs: real examples, batch dimension first; batches of 1, 3, 16 and all of them are tried.
        source: the file, for messages.
        limit: largest difference that is allowed.
        second: inputs of other sizes.

    Raises:
        VerificationError: beyond `limit`, for outputs that are not finite or of another shape, for a file that cannot
            run a batch, and where the model itself gives NaN.
    """
    available = len(inputs[0])
    batches = {
        f"at batch {batch}": [x[:batch] for x in inputs]
        for batch in sorted({size for size in _BATCHES if size < available} | {available})
    }
    if second is not None:
        batches[f"at shapes {', '.join(str(tuple(x.shape)) for x in second)}"] = list(second)
    differences = {}
    for which, part in batches.items():
        wanted = torch_outputs(model, part)
        if holds_nan(wanted):
            raise VerificationError(
                f"{source} cannot be proven: the PyTorch model itself gives NaN {which}, as of infinite "
                "values or of inputs that it is not made for. Give example inputs of which it gives numbers."
            )
        try:
            differences[which] = relative_difference(wanted, run(part))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            raise VerificationError(f"{source} does not run {which}: {reason}. Do not use the file.") from error
    which, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= limit:
        raise VerificationError(
            f"{source} computes something else than the PyTorch model: outputs differ by {worst:.2g} of the largest "
            f"one {which}, allowed is {limit:g}. Do not use the file, and please report the model."
        )
    return worst


def runs_at_second_size(
    model: nn.Module, onnx_path: str | Path, inputs: Sequence[torch.Tensor], sizes: InputSizes
) -> bool:
    """Return whether a file computes roughly what `model` does at the second size of its inputs, if it takes that.

    Translations of some operators hold numbers of the example, such as the windows of adaptive pools.
    """
    session = open_session(Path(onnx_path), make_target("ort-cpu"))
    second = at_second(sizes, [x[:_SECOND_BATCH] for x in inputs])
    if second is None or not _takes(session, second):
        return True
    wanted = torch_outputs(model, second)
    try:
        difference = relative_difference(wanted, _onnx_outputs(session, second))
    except Exception:  # the errors of ONNX Runtime have no class of their own that is public
        return False
    return holds_nan(wanted) or bool(difference < _ROUGHLY)


def _takes(session: ort.InferenceSession, inputs: Sequence[torch.Tensor]) -> bool:
    """Return whether a file takes inputs of these shapes: a dimension without a name has a number."""
    return all(
        not isinstance(known, int) or known == size
        for entry, x in zip(session.get_inputs(), inputs, strict=True)
        for known, size in zip(entry.shape, x.shape, strict=True)
    )


def _onnx_outputs(session: ort.InferenceSession, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    feeds = named_feeds(session, [np.ascontiguousarray(x.numpy()) for x in inputs])
    return [np.asarray(output) for output in session.run(None, feeds)]
