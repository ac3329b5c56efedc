"""Outputs of a PyTorch model, their difference from those of ONNX, and inputs on which they are finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autoprune.model.outputs import plain
from autoprune.structure.module import evaluating

_NOISE = 0.01
"""Relative noise on copies of an example: small enough to keep signs, so that logarithms and roots stay numbers."""


def torch_outputs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """All output tensors in evaluation mode, nested ones flattened; the model's mode is left as it was."""
    return [output.numpy() for output in _outputs(model, inputs)]


def _outputs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with evaluating(model), torch.no_grad():
        outputs = plain(model(*inputs))
    return [leaf.detach() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def relative_difference(wanted: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Largest difference over all outputs, relative to each one's largest value in `wanted`.

    Infinite when shapes differ and where values differ that are not finite: NaN differs from everything.
    """
    worst = 0.0
    for a, b in zip(wanted, outputs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        a, b = (x.astype(np.float64) if x.dtype == bool else x for x in (a, b))
        scale = max(np.abs(a[np.isfinite(a)]).max(initial=0), 1e-12)
        differ = a != b  # not where both are the same infinity, as of masked scores
        if not (np.isfinite(a[differ]).all() and np.isfinite(b[differ]).all()):
            return float("inf")
        worst = max(worst, float(np.abs(a[differ] - b[differ]).max(initial=0) / scale))
    return worst


def holds_nan(outputs: Sequence[np.ndarray]) -> bool:
    """Whether any value is no number, so that nothing can equal it."""
    return any(np.isnan(value).any() for value in outputs)


def finite_inputs(
    model: nn.Module, drawn: Sequence[torch.Tensor], examples: Sequence[torch.Tensor], generator: torch.Generator
) -> Sequence[torch.Tensor]:
    """Inputs on which the model's outputs are finite, if any are: `drawn`, `examples` with 1 % of noise, `examples`.

    Models may take positive numbers alone, of which they compute a logarithm. Where no outputs are finite, those
    without NaN will do, as masked scores are infinite on any input; where all have NaN, `drawn` is returned.
    """
    noisy = [
        x * (1 + _NOISE * torch.randn(x.shape, generator=generator)).to(x) if x.is_floating_point() else x
        for x in examples
    ]
    without_nan = None
    for inputs in (drawn, noisy, examples):
        outputs = _outputs(model, inputs)
        if all(bool(value.isfinite().all()) for value in outputs):
            return inputs
        if without_nan is None and not any(bool(value.isnan().any()) for value in outputs):
            without_nan = inputs
    return drawn if without_nan is None else without_nan
