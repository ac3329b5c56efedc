"""Python and PyTorch as a model meets them while it is exported, so that more of it is captured.

- `len(x)` of a tensor is its first size, which stays free; a plain `len` would make a number of it.
- `torch.take_along_dim` is an expansion and a `gather`; its own kernel makes numbers of all sizes.
- An operator that PyTorch composes of others (`tile`, `hstack`, `inner`, `diff`) and that has no rule is captured as
  those others, which have rules.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode

from autoprune.structure.size_formulas import short_formulas
from autoprune.structure.whole_layers import whole_layers


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let layers stay whole and sizes stay free while `model` is exported."""
    with whole_layers(), short_formulas(), _Gathers(), _lengths_as_sizes(model):
        yield


@contextmanager
def composites_taken_apart(is_whole: Callable[[Any], bool]) -> Iterator[None]:
    """Capture the parts of composed operators in their place, but for those of which `is_whole` is true."""
    own = proxy_tensor.maybe_handle_decomp

    def handled(mode: Any, target: Any, args: Any, kwargs: Any) -> Any:
        if mode.pre_dispatch and isinstance(target, OpOverload) and not is_whole(target) and target._can_decompose():
            with mode:
                parts = target.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        return own(mode, target, args, kwargs)

    proxy_tensor.maybe_handle_decomp = handled
    try:
        yield
    finally:
        proxy_tensor.maybe_handle_decomp = own


class _Gathers(TorchFunctionMode):
    """Replace `take_along_dim` by operators that keep sizes free."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.take_along_dim, Tensor.take_along_dim) and "out" not in (kwargs or {}):
            return _taken_along(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _taken_along(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """Compute `torch.take_along_dim`: all dimensions but `dim` are broadcast."""
    if dim is None:
        return input.flatten().gather(0, indices.flatten())
    sizes = zip(input.shape, indices.shape, strict=True)
    both = [b if isinstance(a, int) and a == 1 else a for a, b in sizes]
    dim %= input.dim()
    of_input, of_indices = ([*both[:dim], x.shape[dim], *both[dim + 1 :]] for x in (input, indices))
    return input.expand(of_input).gather(dim, indices.expand(of_indices))


@contextmanager
def _lengths_as_sizes(model: nn.Module) -> Iterator[None]:
    """Let `len` in the files that define a model's modules return a size that stays free."""
    names = {part.__module__ for kind in {type(module) for module in model.modules()} for part in kind.__mro__}
    own = [
        sys.modules[name] for name in names if name in sys.modules and name.split(".")[0] not in ("torch", "builtins")
    ]
    own = [module for module in own if "len" not in vars(module)]
    try:
        for module in own:
            vars(module)["len"] = _length
        yield
    finally:
        for module in own:
            vars(module).pop("len", None)


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else builtins.len(x)
