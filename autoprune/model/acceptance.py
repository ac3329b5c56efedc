"""Models and inputs as users hand them over: unwrapped, or refused with one clear message before any tracing."""

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
"""One tensor, tensors in the order of `forward`, or tensors by the keywords of `forward`; each with the batch first."""

_PARALLEL = (DataParallel, DistributedDataParallel)
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.", "bitsandbytes.")

_HOOKS: tuple[tuple[type, str, str], ...] = (
    (BasePruningMethod, "is masked", "torch.nn.utils.prune.remove(module, name)"),
    (WeightNorm, "has weight norm as a hook", "torch.nn.utils.remove_weight_norm(module)"),
    (SpectralNorm, "has spectral norm as a hook", "torch.nn.utils.remove_spectral_norm(module)"),
)
"""Old-style hooks that compute a weight before every call, the fault, and the remedy: the weight is no parameter."""


def unwrap(model: Any) -> Any:
    """Return the module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`, however nested."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def accepted(model: Any) -> nn.Module:
    """Return the module to prune, unwrapped and not changed.

    Raises:
        StructureError: the model is no module, or is scripted, quantized, complex, masked, lazy, or not on the CPU.
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
        _refuse_tensor(name, tensor)
    devices = sorted({str(tensor.device) for _, tensor in tensors})
    if devices not in ([], ["cpu"]):
        hint = (
            "a module on `meta` has no values: build it on the CPU"
            if "meta" in devices
            else "move all tensors there with model.cpu(); the pruned model can be moved to any device"
        )
        raise StructureError(f"all of a model must be on the CPU; its tensors are on {', '.join(devices)}; {hint}")
    return model


def as_inputs(example_inputs: ExampleInputs) -> tuple[Tensor, ...]:
    """Return example inputs as a tuple; inputs by keyword are in the order of the dict.

    Raises:
        StructureError: an input is no tensor, is not on the CPU, or has no example.
    """
    given = example_inputs
    values: Any = given.values() if isinstance(given, Mapping) else (given,) if isinstance(given, Tensor) else given
    inputs = tuple(values) if isinstance(values, Sequence) or isinstance(given, Mapping) else (values,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs)
        raise StructureError(f"example inputs are a tensor, a tuple of tensors or a dict of tensors; got ({kinds})")
    for x in inputs:
        if x.dim() and not len(x):
            raise StructureError(f"example inputs hold at least one example; got shape {tuple(x.shape)}")
        if x.device.type != "cpu":
            raise StructureError(f"example inputs must be on the CPU, as the model; got one on {x.device}")
    return inputs


def users_line(error: BaseException, function: str | None = None) -> str:
    """Return the line of the user's code that raised: ` (model.py, line 8: `if x.sum() > 0:`)`, or `""` if unknown.

    With `function`, only lines inside functions of that name count. The innermost line is taken.
    """
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*ours, "<"))]
    frames = [f for f in frames if function in (None, f.name)]
    if not frames:
        return ""
    last = frames[-1]
    return f" ({Path(last.filename).name}, line {last.lineno}: `{last.line}`)"


def _refuse_tensor(name: str, tensor: Tensor) -> None:
    if tensor.is_complex():
        raise StructureError(f"{name} is complex ({tensor.dtype}); keep real and imaginary parts in two real tensors")
    if tensor.is_quantized or (isinstance(tensor, nn.Parameter) and not tensor.dtype.is_floating_point):
        raise StructureError(f"{name} is quantized ({tensor.dtype}); prune the float model, then quantize it")


def _refuse_module(name: str, module: nn.Module) -> None:
    if type(module).__module__.startswith(_QUANTIZED):
        raise StructureError(f"{name} is quantized ({type(module).__name__}); prune the float model, then quantize it")
    if any(is_lazy(tensor) for tensor in [*module._parameters.values(), *module._buffers.values()]):
        raise StructureError(f"{name} is lazy and has no weights yet; call the model once before pruning it")
    for hook in module._forward_pre_hooks.values():
        for kind, fault, remedy in _HOOKS:
            if isinstance(hook, kind):
                raise StructureError(f"{name} {fault}; make its weight plain first: {remedy}")
