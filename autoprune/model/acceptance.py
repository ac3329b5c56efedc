"""Models and inputs as people hand them over: unwrapped, or refused by one clear message before any tracing."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from autoprune.errors import StructureError

ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One tensor, tensors in the order of `forward`, or tensors by its keywords; the batch dimension is the first."""

_PARALLEL = (DataParallel, DistributedDataParallel)
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.", "bitsandbytes.")

# Old-style hooks that compute a weight before every call: a copy of such a module has no weight of its own.
_HOOKS: tuple[tuple[type, str, str], ...] = (
    (BasePruningMethod, "is masked", "torch.nn.utils.prune.remove(module, name)"),
    (WeightNorm, "has weight norm as a hook", "torch.nn.utils.remove_weight_norm(module)"),
    (SpectralNorm, "has spectral norm as a hook", "torch.nn.utils.remove_spectral_norm(module)"),
)


def unwrap(model: Any) -> Any:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, however nested."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def accepted(model: Any) -> nn.Module:
    """The module to prune, unwrapped; it is not changed.

    Raises `StructureError` for what is no module, is scripted, quantized, masked, uninitialised, or not on the CPU.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if inspect.isclass(model) else type(model).__name__
        raise StructureError(f"a model is an nn.Module; got {got}")
    if isinstance(model, torch.jit.ScriptModule):
        raise StructureError("a scripted or traced model cannot be traced again; pass the Python module it was made of")
    for name, module in model.named_modules():
        _refuse_module(name or "the model", module)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_complex():
            raise StructureError(
                f"{name} is complex ({tensor.dtype}); keep real and imaginary parts in two real tensors"
            )
        if tensor.is_quantized or (isinstance(tensor, nn.Parameter) and not tensor.dtype.is_floating_point):
            raise StructureError(f"{name} is quantized ({tensor.dtype}); prune the float model, then quantize it")
    devices = sorted({str(tensor.device) for _, tensor in tensors})
    if devices not in ([], ["cpu"]):
        hint = (
            "a module on `meta` has no values: build it on the CPU"
            if "meta" in devices
            else "move all of it there with model.cpu(); what comes back can be moved to any device"
        )
        raise StructureError(f"a model must be on the CPU as a whole; its tensors are on {', '.join(devices)}; {hint}")
    return model


def as_inputs(example_inputs: ExampleInputs) -> tuple[Tensor, ...]:
    """Example inputs as a tuple, by keyword ones in their order.

    Raises `StructureError` for what is no tensor, and for tensors without an example.
    """
    given = example_inputs
    values: Any = given.values() if isinstance(given, Mapping) else (given,) if isinstance(given, Tensor) else given
    found = tuple(values) if isinstance(values, Sequence) or isinstance(given, Mapping) else (values,)
    if not found or not all(isinstance(x, Tensor) for x in found):
        kinds = ", ".join(type(x).__name__ for x in found)
        raise StructureError(f"example inputs are a tensor, a tuple of tensors or a dict of them; got ({kinds})")
    for x in found:
        if x.dim() and not len(x):
            raise StructureError(f"example inputs hold at least one example; got shape {tuple(x.shape)}")
        if x.device.type != "cpu":
            raise StructureError(f"example inputs must be on the CPU, as the model; got one on {x.device}")
    return found


def users_line(error: BaseException, function: str | None = None) -> str:
    """Where in the user's own code an error came from: ` (model.py, line 8: `if x.sum() > 0:`)`, or nothing.

    With `function`, in the innermost one of that name.
    """
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*ours, "<"))]
    frames = [f for f in frames if function in (None, f.name)]
    if not frames:
        return ""
    last = frames[-1]
    return f" ({Path(last.filename).name}, line {last.lineno}: `{last.line}`)"


def _refuse_module(name: str, module: nn.Module) -> None:
    if type(module).__module__.startswith(_QUANTIZED):
        raise StructureError(f"{name} is quantized ({type(module).__name__}); prune the float model, then quantize it")
    if any(is_lazy(tensor) for tensor in [*module._parameters.values(), *module._buffers.values()]):
        raise StructureError(f"{name} is lazy and has no weights yet; call the model once before pruning it")
    for hook in module._forward_pre_hooks.values():
        for kind, what, remedy in _HOOKS:
            if isinstance(hook, kind):
                raise StructureError(f"{name} {what}; make its weight plain first: {remedy}")
