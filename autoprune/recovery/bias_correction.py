"""Bias correction: every layer gets back the mean outputs that it had before its weights became zero.

Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 (there for the errors of rounding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def correct_biases(model: nn.Module, dense: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> int:
    """Add to the biases of a model, in place and layer by layer, what the mean outputs of its layers lack.

    Args:
        model: with zeros among its weights, of the class of `dense`; in evaluation mode.
        dense: the model before.
        batches: inputs of some hundred training examples.

    Returns:
        The number of forward passes over the batches; 0 where no layer has a bias.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.dim() > 1  # type: ignore[union-attr]
    }
    if not layers:
        return 0
    wanted = _means(dense, list(layers), batches)
    for name, layer in layers.items():
        if name in wanted:
            with torch.no_grad():
                layer.bias += wanted[name] - _means(model, [name], batches)[name]  # type: ignore[operator]
    return 1 + len(layers)


def _means(model: nn.Module, names: Sequence[str], batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return the mean outputs of layers by channel, over examples and positions."""
    totals: dict[str, Tensor] = {}

    def hook(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        channels = layer.bias.numel()  # type: ignore[union-attr]

        def record(_: nn.Module, __: object, out: object) -> None:
            if isinstance(out, Tensor) and channels in out.shape:
                dim = out.dim() - 1 if isinstance(layer, nn.Linear) or out.shape[-1] == channels else 1
                mean = out.movedim(dim, 0).reshape(channels, -1).mean(1)
                totals[name] = totals.get(name, 0) + mean / len(batches)

        return layer.register_forward_hook(record)

    handles = [hook(name, model.get_submodule(name)) for name in names]
    try:
        with torch.no_grad():
            for inputs in batches:
                model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return totals
