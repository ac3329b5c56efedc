"""2:4 weights in the form that some GPUs multiply faster; guarded, and never measured: no such device was at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.errors import UsageError
from autoprune.model.acceptance import unwrap
from autoprune.model.copying import copy_of
from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern

_PATTERN = Pattern(kept=2, of=4)
_REFUSALS = (RuntimeError, NotImplementedError, AssertionError, ValueError)
"""What torch raises for devices, types and shapes that it has no kernel for."""


def to_semi_structured(model: nn.Module, device: str | torch.device = "cuda") -> nn.Module:
    """Return a copy of a model on a device whose 2:4 linear layers use the device's 2:4 kernels.

    Which types and shapes a device takes is for PyTorch to say; layers that it refuses stay dense. GPUs take float16
    and bfloat16 best: convert the model before, such as `model.half()`.

    Args:
        model: a model with `nn.Linear` layers that have 2 of every 4 consecutive inputs, such as those of
            `sparsify(model, pattern="2:4")`; it is not changed.
        device: where the copy computes.

    Returns:
        The copy, in evaluation mode. Its sparse weights cannot be trained.

    Raises:
        UsageError: no linear layer has 2:4 weights, or the device has no kernel for any of them.

    Source:
        `torch.sparse.to_sparse_semi_structured`; Mishra et al. 2021, https://arxiv.org/abs/2104.08378.

    Example:
        >>> import autoprune, torch
        >>> model = autoprune.sparsify(torch.nn.Sequential(torch.nn.Linear(64, 64)), pattern="2:4")
        >>> try:
        ...     on_gpu = autoprune.to_semi_structured(model.half(), "cuda")
        ... except autoprune.errors.UsageError:
        ...     on_gpu = None  # no such device here
    """
    layers = unwrap(model).named_modules()
    names = [name for name, layer in layers if isinstance(layer, nn.Linear) and _is_2_of_4(layer.weight)]
    if not names:
        raise UsageError(
            "no nn.Linear of the model has 2:4 weights; make some with autoprune.sparsify(model, pattern='2:4'), or "
            "load the model with native=True"
        )
    refusals: list[BaseException] = []
    try:
        copy = copy_of(unwrap(model)).eval().to(device)
    except _REFUSALS as error:
        raise UsageError(_refused(device, error)) from error
    for name in names:
        layer = copy.get_submodule(name)
        try:
            sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())  # type: ignore[operator]
            layer.weight = nn.Parameter(sparse, requires_grad=False)
        except _REFUSALS as error:
            refusals.append(error)
    if len(refusals) == len(names):
        raise UsageError(_refused(device, refusals[0])) from refusals[0]
    return copy


def _is_2_of_4(weight: Tensor) -> bool:
    """Return whether 2 of every 4 consecutive inputs are zero, at least."""
    if weight.dim() != 2 or weight.shape[1] % _PATTERN.of:
        return False
    kept = weight.detach() != 0
    return not bool((kept & ~pattern_mask(kept.float(), _PATTERN)).any())


def _refused(device: str | torch.device, error: BaseException) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"PyTorch has no 2:4 kernel for these layers on {device} ({reason:.200}); name a device that has one, in "
        "float16 or bfloat16, or keep the model as it is: its zeros compute as other numbers"
    )
