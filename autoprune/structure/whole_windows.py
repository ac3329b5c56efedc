"""Pools whose window is as large as their input: `F.avg_pool2d(x, x.shape[2:])`.

Windows of ATen's pools are plain numbers, so that such a call would fix the size of the input in an export. A pool
over everything is the adaptive pool to one entry, which has no size in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_ADAPTIVE: dict[Any, tuple[Callable[..., Any], int]] = {
    F.avg_pool1d: (F.adaptive_avg_pool1d, 1), F.avg_pool2d: (F.adaptive_avg_pool2d, 2),
    F.avg_pool3d: (F.adaptive_avg_pool3d, 3), F.max_pool1d: (F.adaptive_max_pool1d, 1),
    F.max_pool2d: (F.adaptive_max_pool2d, 2), F.max_pool3d: (F.adaptive_max_pool3d, 3),
}  # fmt: skip
"""The adaptive pool for each pool, and its number of dimensions."""

_AVERAGES = {F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
_FIRST = ("input", "kernel_size", "stride", "padding")
_OF_AVERAGES = (*_FIRST, "ceil_mode", "count_include_pad", "divisor_override")
_OF_MAXIMA = (*_FIRST, "dilation", "ceil_mode", "return_indices")
"""Parameters of the functions, in order; those that are compiled have no signature to ask for."""

_USUAL: dict[str, Any] = {"dilation": 1, "return_indices": False, "divisor_override": None}
"""Options of pools, and the values with which the adaptive pool is the same."""


class WholeWindows(TorchFunctionMode):
    """Replace pools over a whole input while a model is exported."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ADAPTIVE:
            names = _OF_AVERAGES if func in _AVERAGES else _OF_MAXIMA
            options = dict(zip(names, args, strict=False)) | (kwargs or {})
            adaptive, dims = _ADAPTIVE[func]
            if _covers(dims, options):
                return adaptive(options["input"], 1)
        return func(*args, **(kwargs or {}))


def _covers(dims: int, options: Mapping[str, Any]) -> bool:
    """Return whether a pool's window was computed as the size of its input, with nothing else that matters."""
    x, window, padding = options["input"], options["kernel_size"], options.get("padding", 0)
    window = list(window) if isinstance(window, (tuple, list)) else [window] * dims
    if not isinstance(x, torch.Tensor) or len(window) != dims or x.dim() <= dims:
        return False
    padded = any(padding) if isinstance(padding, (tuple, list)) else padding
    if padded or any(options.get(name, usual) not in (usual, (usual,) * dims) for name, usual in _USUAL.items()):
        return False
    return all(isinstance(k, torch.SymInt) and bool(k == s) for k, s in zip(window, x.shape[-dims:], strict=True))
