"""The memory layout that a model is trained in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.task.base import Task

_BLOCK: Mapping[str, int] = {"AVX2": 8}
"""Channels that oneDNN computes with at once, by what the CPU can do; 16 for all others."""


def to_channels_last(model: nn.Module, task: Task) -> None:
    """Store filters channels last, which is faster on CPUs, where the model still runs that way and safely.

    A model that calls `view` on a map does not, and filters of three dimensions cannot be stored so. And in oneDNN 3.12
    (torch 2.13) the gradient of a 1x1 convolution with stride that reads fewer channels than a block is written beside
    its workspace when maps are channels last: the process dies, or computes something else
    (https://github.com/uxlfoundation/oneDNN/issues/6035). Pruned nets with projections have such convolutions.

    Args:
        model: is left in evaluation mode.
        task: has the example that is run.
    """
    model.eval()
    strided = _NarrowStrided()
    try:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        with torch.no_grad(), strided:
            model(*task.example_inputs)
    except RuntimeError:
        strided.found = True
    if strided.found:
        model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


class _NarrowStrided(TorchDispatchMode):
    """Looks for 1x1 convolutions with stride that read fewer channels than a block."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self._block = _BLOCK.get(torch.backends.cpu.get_cpu_capability(), 16)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            weight, strides = args[1], args[3]
            self.found |= _is_pointwise(weight) and max(strides) > 1 and weight.shape[1] < self._block
        return func(*args, **(kwargs or {}))


def _is_pointwise(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[2:].numel() == 1
