"""Modules of a user's own class whose forward is a graph, because dense sizes are written in it.

An attention that computes `C // num_heads` cannot have heads that are together narrower than the stream, whatever its
numbers are. Its part of the pruned graph can. So the module keeps its class, its place and its parameters, and
computes this part instead of its own forward; everything around it stays the user's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.errors import UsageError
from autoprune.structure.module import converted_graph, kinds
from autoprune.structure.traced_parts import Part

_ANY, _ABSENT = object(), object()
"""A leaf that may be any tensor or number, and an argument that is not given."""


class Traced(nn.Module):
    """A module of the user's class that computes a part of the pruned graph, one for each mode."""

    parts: Mapping[bool, Part]

    def forward(self, *args: Any, **named: Any) -> Any:
        """Return what the own forward returns.

        Raises:
            UsageError: the call has other arguments than the calls in a pass of the dense model.
        """
        part = self.parts[self.training]
        leaves, arguments = pytree.tree_flatten((args, named))
        if arguments != part.arguments or any(
            type(leaves[n]) is not type(v) or leaves[n] != v for n, v in part.fixed.items()
        ):
            raise UsageError(_refusal(type(self).__mro__[2].__name__, part, args, named))
        outputs = iter(part.run(self, *(leaves[n] for n in part.taken)))
        return pytree.tree_unflatten([next(outputs) if name else None for name in part.output_names], part.result)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Traced:
        before = {name: kinds(tensor) for name, tensor in _tensors(self).items()}
        super()._apply(fn, recurse)
        pairs = (zip(before[name], kinds(tensor), strict=True) for name, tensor in _tensors(self).items())
        converted = {old: new for pair in pairs for old, new in pair if old != new}
        if converted:
            new = {
                mode: replace(part, graph=converted_graph(part.graph, converted)) for mode, part in self.parts.items()
            }
            self.parts = new
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return the parts first, which copies share and which refuse to be pickled."""
        function, arguments, *rest = super().__reduce_ex__(protocol)
        return _made, (self.parts, function, arguments), *rest


def _made(_: Mapping[bool, Part], function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    return function(*arguments)


def _refusal(kind: str, part: Part, args: Sequence[Any], named: Mapping[str, Any]) -> str:
    """Return why a call is refused: the arguments that differ from those in a pass of the dense model."""
    values: list[Any] = [part.fixed.get(n, _ANY) for n in range(part.arguments.num_leaves)]
    usual_args, usual = pytree.tree_unflatten(values, part.arguments)
    usual_named = {**dict(enumerate(usual_args)), **usual}
    given = {**dict(enumerate(args)), **named}
    differing = [
        f"argument {name}" if isinstance(name, int) else name
        for name in dict.fromkeys((*given, *usual_named))
        if not _alike(given.get(name, _ABSENT), usual_named.get(name, _ABSENT))
    ]
    others = ", ".join(differing) or "the nesting of an argument"
    cache = any("past" in name or "cache" in name for name in differing)
    advice = "Call generate with use_cache=False" if cache else "Prune with example inputs of such calls"
    return (
        f"the forward of this {kind} is a traced graph, which takes the arguments that it had in a pass of the dense "
        f"model alone; {others} is another one. {advice}, or prune with native=False"
    )


def _alike(given: Any, usual: Any) -> bool:
    if usual is _ANY:
        return isinstance(given, Tensor | int | float)
    return type(given) is type(usual) and (given is usual or isinstance(given, list | tuple | dict) or given == usual)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def trace(module: nn.Module, parts: Mapping[bool, Part]) -> None:
    """Let a module compute parts of a graph, in place; its class becomes a subclass of `Traced` and its own class."""
    own = type(module)
    module.__class__ = type(f"Traced{own.__name__}", (Traced, own), {"__module__": own.__module__})
    module.__dict__["parts"] = dict(parts)
    for part in parts.values():
        for name, tensor in part.constants.items():
            module.register_buffer(name, tensor.clone(), persistent=False)
