"""Outputs of single layers: a pruned model learns to write in them what the dense model writes in the same layers.

Outputs of the whole model alone say little about what a layer in the middle should do, so that a short fine-tune
profits from being told. Distances are squared errors relative to the variance of the dense outputs over examples and
positions, averaged over the layers.

Source: hints from hidden layers, Romero et al. 2015 (FitNets), https://arxiv.org/abs/1412.6550; here without a
regressor, because the channels that a pruned model keeps are channels of the dense model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class LayerOutputs:
    """The layers that are compared.

    Args:
        channels: dimension of the channels in the outputs of a module, by its name.
        kept: indices along dimensions of the dense outputs that the pruned model keeps, int64 by dimension; dimensions
            of which everything stays are left out.
    """

    channels: Mapping[str, int]
    kept: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)

    @contextmanager
    def recorded(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Yield a mapping to which every pass through the model writes the outputs of these layers, by their names."""
        outputs: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        hooks = [
            modules[name].register_forward_hook(_write(outputs, name)) for name in self.channels if name in modules
        ]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def of_kept(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return outputs of the dense model without what the pruned model lacks."""
        return {name: _selected(output, self.kept.get(name, {})) for name, output in dense.items()}

    def distance(self, outputs: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> Tensor | None:
        """Return the mean distance of outputs from those of the dense model, `[]` in float32.

        Layers whose shapes differ do not count; `None` where none does.
        """
        distances = [
            _distance(outputs[name].float(), of_dense.float(), self.channels[name])
            for name, of_dense in dense.items()
            if name in outputs and outputs[name].shape == of_dense.shape
        ]
        return torch.stack(distances).mean() if distances else None


def _write(outputs: dict[str, Tensor], name: str) -> Any:
    def write(module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs
        if isinstance(output, Tensor):
            outputs[name] = output

    return write


def _selected(output: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, indices in kept.items():
        output = output.index_select(dim, indices.to(output.device))
    return output


def _distance(output: Tensor, dense: Tensor, channels: int) -> Tensor:
    others = [dim for dim in range(dense.dim()) if dim != channels % dense.dim()]
    variance = (dense - dense.mean(others, keepdim=True)).square().mean()
    return (output - dense).square().mean() / variance.clamp_min(_TINY)
