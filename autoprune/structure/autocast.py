"""Blocks of `torch.autocast` in a forward, as explicit casts: the graph computes the same outside any such block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


_INSIDE = "autocast"
"""Key of a node's `meta`: its casts are explicit, or an inner block turned autocast off."""

_CONVERSIONS = {aten.to, aten._to_copy, aten.type_as}


def cast_inputs(nodes: Sequence[fx.Node], device: str, dtype: torch.dtype | None, *, enabled: bool = True) -> None:
    """Insert the casts that `torch.autocast(device, dtype, enabled)` makes before each of some nodes of a graph.

    Nodes of an inner block, whose casts were inserted before, are left as they are.
    """
    for node in nodes:
        if node.op != "call_function" or _INSIDE in node.meta:
            continue
        node.meta[_INSIDE] = True
        for source, to in (_casts(node, device, dtype) if enabled else {}).items():
            with node.graph.inserting_before(node):
                cast = node.graph.call_function(aten.to.dtype, (source, to))
            with _fake_mode(source):
                cast.meta |= {"val": source.meta["val"].to(to), _INSIDE: True}
            node.replace_input_with(source, cast)


def _casts(node: fx.Node, device: str, dtype: torch.dtype | None) -> dict[fx.Node, torch.dtype]:
    """Return the types to which autocast brings the inputs of a node, by running the node on empty tensors."""
    sources = {id(n.meta["val"]): n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    if not sources or not isinstance(node.target, OpOverload) or node.target.overloadpacket in _CONVERSIONS:
        return {}
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    recorder = _Recorder()
    # Weights would be cast once for all their readers, and later readers would show no cast.
    region = torch.autocast(device, dtype, cache_enabled=False)
    with torch.no_grad(), _fake_mode(next(iter(sources.values()))), recorder, region:
        node.target(*args, **kwargs)
    return {sources[number]: to for number, to in recorder.casts.items() if number in sources}


def _fake_mode(node: fx.Node) -> Any:
    """Return the mode in which the values of a captured graph were made."""
    return node.meta["val"].fake_mode


class _Recorder(TorchDispatchMode):
    """Record of the casts that come before the first other operator: the identity of a tensor, and its new type."""

    def __init__(self) -> None:
        super().__init__()
        self.casts: dict[int, torch.dtype] = {}
        self._begun = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and not self._begun and kwargs.get("dtype") is not None:
            self.casts[id(args[0])] = kwargs["dtype"]
        elif func.namespace != "prim":  # which ask for the device
            self._begun = True
        return func(*args, **kwargs)
