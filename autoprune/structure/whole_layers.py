"""Recurrent layers as operators that know their output shapes, while a model is exported.

`torch.export` runs `aten.lstm`, `gru` and `rnn` step by step to learn the shapes of their outputs, though the graph
gets one node. That takes minutes for sequences of hundreds of steps. Within `whole_layers`, modules call *stand-ins*:
operators with the same arguments whose shapes are known without running them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_LAYERS: dict[str, Any] = {
    "lstm": aten.lstm.input, "gru": aten.gru.input, "rnn_tanh": aten.rnn_tanh.input, "rnn_relu": aten.rnn_relu.input,
}  # fmt: skip
_ARGUMENTS = (
    "Tensor[] weights, bool biased, int layers, float dropout, bool train, bool bidirectional, bool batch_first"
)


def _shapes(x: Tensor, states: Tensor | Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    """Return empty tensors shaped as the sequence of outputs and the final states."""
    given = [states] if isinstance(states, Tensor) else states
    width = given[0].shape[-1] * (2 if rest[-2] else 1)
    return x.new_empty((*x.shape[:2], width)), *(state.new_empty(state.shape) for state in given)


def _stand_in(name: str) -> Any:
    states, outputs = ("Tensor[]", "Tensor, Tensor, Tensor") if name == "lstm" else ("Tensor", "Tensor, Tensor")
    torch.library.define(f"autoprune::{name}", f"(Tensor x, {states} states, {_ARGUMENTS}) -> ({outputs})")
    torch.library.register_fake(f"autoprune::{name}", _shapes)
    return getattr(torch.ops.autoprune, name).default


STAND_INS: dict[Any, Any] = {_stand_in(name): layer for name, layer in _LAYERS.items()}
"""The layer that each stand-in stands for."""
_OF_LAYERS = {layer: stand_in for stand_in, layer in STAND_INS.items()}


def with_stand_ins(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a captured graph that calls stand-ins."""
    copied, new = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        new[node] = copied.node_copy(node, lambda n: new[n])
        new[node].target = _OF_LAYERS.get(node.target, node.target)
    return copied


@contextmanager
def whole_layers() -> Iterator[None]:
    """Let `nn.LSTM`, `nn.GRU` and `nn.RNN` call stand-ins; packed sequences still call the layers."""
    try:
        for stand_in, name in zip(STAND_INS, _LAYERS, strict=True):
            setattr(torch._VF, name, partial(_call, stand_in, getattr(torch._VF, name)))
        yield
    finally:
        for name in vars(torch._VF).keys() & _LAYERS.keys():
            delattr(torch._VF, name)


def _call(stand_in: Callable[..., Any], layer: Callable[..., Any], *args: Any) -> Any:
    packed = not isinstance(args[3], bool)  # a packed call has the sizes of steps second, and so the weights fourth
    return layer(*args) if packed else stand_in(*args)
