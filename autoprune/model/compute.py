"""Where models compute while they are trained and scored: the one place that decides it and that moves them there.

Models, data and results of every other stage stay on the CPU. Code for GPUs is guarded and was never measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.errors import TaskError

CPU = torch.device("cpu")


def compute_device(wanted: str) -> torch.device:
    """Return the device of that name: `cpu`, `cuda`, `cuda:1`, or `auto` for `cuda` where there is one.

    Raises:
        TaskError: for another name, and for CUDA on a host that has none.
    """
    kind, colon, index = wanted.partition(":")
    if kind not in ("cpu", "cuda", "auto") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise TaskError(f"a task's device is cpu, cuda, cuda:N or auto; got {wanted!r}")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return CPU
    if int(index or 0) >= torch.cuda.device_count():
        raise TaskError(
            f"the task asks for the device {wanted!r}, and this host has {torch.cuda.device_count()} CUDA devices; "
            "say device='auto' to take one where there is one"
        )
    return torch.device("cuda" if kind == "auto" else wanted)


def moved(parts: Any, device: torch.device) -> Any:
    """Return nested data with all tensors on a device; anything else stays as it is."""
    if device == CPU and all(leaf.device == CPU for leaf in pytree.tree_leaves(parts) if isinstance(leaf, Tensor)):
        return parts
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), parts)


@contextmanager
def computing_on(device: torch.device, *models: nn.Module, results: torch.device | None = None) -> Iterator[None]:
    """Let models compute on a device, called with tensors of any device; at the end they go back to where they were.

    Args:
        device: where they compute; on the CPU nothing is done.
        models: all tensors of each are on one device.
        results: where outputs of the models are put (default: they stay on the device).
    """
    if device == CPU:
        yield
        return
    with ExitStack() as stack:
        for model in models:
            before = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), CPU)
            stack.callback(model.to, before)
            model.to(device)
            hook = model.register_forward_pre_hook(
                lambda _, inputs, named: (moved(inputs, device), moved(named, device)), with_kwargs=True
            )
            stack.callback(hook.remove)
            if results is not None:
                stack.callback(model.register_forward_hook(lambda _, inputs, out: moved(out, results)).remove)
        yield
