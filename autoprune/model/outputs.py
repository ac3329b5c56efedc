"""Outputs of a model: tensors nested in tuples, dicts and dataclasses, their names, and the part that counts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.errors import TaskError

Selector = Callable[[Any], Tensor] | str | None
"""The part of a model's outputs that counts: a function of the outputs, or the name of an attribute or a key."""


@dataclasses.dataclass(frozen=True)
class SelectedOutput:
    """The selected part of outputs of a class that the exporter cannot take apart."""

    output: Any


torch.export.register_dataclass(SelectedOutput)


@dataclasses.dataclass(frozen=True)
class NamedOutputs:
    """A selector that names the outputs that count, in the words of `output_names`."""

    names: tuple[str, ...]

    def __call__(self, outputs: Any) -> Any:
        """Return the named tensors."""
        leaves, spec = pytree.tree_flatten(outputs)
        return [leaf for leaf, name in zip(leaves, output_names(spec), strict=True) if name in self.names]


def select(outputs: Any, selector: Selector) -> Any:
    """Return the part of a model's outputs that counts.

    Raises:
        TaskError: the outputs have no such part; the message lists the parts they have.
    """
    if isinstance(outputs, SelectedOutput):
        return outputs.output
    if selector is None:
        return outputs
    if callable(selector):
        return selector(outputs)
    part = outputs.get(selector) if isinstance(outputs, Mapping) else getattr(outputs, selector, None)
    if part is None:
        raise TaskError(f"the model's outputs have no {selector!r}; {described(outputs)}")
    return part


def described(outputs: Any) -> str:
    """Return the names of the tensors in structured outputs, for a message."""
    named = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {})
    names = [str(key) for key, value in named.items() if isinstance(value, Tensor)]
    return f"{type(outputs).__name__} has {', '.join(names) or 'no named tensors'}"


def with_plain_outputs(model: nn.Module, selector: Selector = None) -> nn.Module:
    """Return a shallow copy of a model that gives `plain` outputs; parameters and submodules are shared."""
    view = copy.copy(model)
    view._forward_hooks = view._forward_hooks.copy()
    view.register_forward_hook(lambda _, inputs, outputs: plain(outputs, selector))
    return view


def with_selected_output(model: nn.Module, selector: Selector) -> nn.Module:
    """Return a shallow copy of a model that returns the part of its outputs that counts, under its name if it has one.

    Without a selector, the outputs are `plain`.
    """
    if selector is None:
        return with_plain_outputs(model)
    view = copy.copy(model)
    view._forward_hooks = view._forward_hooks.copy()
    view.register_forward_hook(
        lambda _, inputs, outputs: (
            {selector: select(outputs, selector)} if isinstance(selector, str) else plain(select(outputs, selector))
        )
    )
    return view


def plain(outputs: Any, selector: Selector = None) -> Any:
    """Return outputs that the exporter can take apart: caches become `None`, and dataclasses are registered.

    Outputs of a class that cannot be taken apart are replaced by their selected part, where there is a selector.
    """
    leaves, spec = pytree.tree_flatten(outputs, is_leaf=_is_cache)
    for leaf in leaves:
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type) and type(leaf) not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(type(leaf))
            return plain(outputs, selector)
    if any(_is_cache(leaf) for leaf in leaves):
        outputs = pytree.tree_unflatten([None if _is_cache(leaf) else leaf for leaf in leaves], spec)
    elif selector is not None and not all(isinstance(leaf, _LEAVES) for leaf in leaves):
        return SelectedOutput(select(outputs, selector))
    return outputs


def output_names(spec: pytree.TreeSpec) -> list[str]:
    """Return a name for every leaf of outputs: the keys, fields and positions on the way to it, joined by `_`.

    A single tensor has the name "".
    """
    names = [""] * spec.num_leaves
    _name(pytree.tree_unflatten([_Leaf(number) for number in range(spec.num_leaves)], spec), "", names)
    return names


def selected_leaves(spec: pytree.TreeSpec, leaves: Sequence[Any], selector: Selector) -> frozenset[int]:
    """Return the numbers of the output tensors that a selector reads, which `leaves` are examples of.

    All of them without a selector. The selector runs on zeros of the same shapes and types.

    Raises:
        TaskError: the selector fails, or the outputs have no such part.
    """
    tensors = {number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    if selector is None or spec.num_leaves == 1:
        return frozenset(tensors)
    if isinstance(selector, NamedOutputs):
        return frozenset(number for number, name in enumerate(output_names(spec)) if name in selector.names)
    read: set[int] = set()
    watched = [_Watched.of(leaf, n, read) if n in tensors else leaf for n, leaf in enumerate(leaves)]
    try:
        selected = select(pytree.tree_unflatten(watched, spec), selector)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(
            f"`outputs`, a function of the model's outputs, failed: {type(error).__name__}: {error}"
        ) from error
    read.update(leaf.number for leaf in pytree.tree_leaves(selected) if isinstance(leaf, _Watched))
    if not read:
        raise TaskError("`outputs` must return a part of the model's outputs; it read none of their tensors")
    return frozenset(read)


_LEAVES = (Tensor, int, float, str, bool, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)


def _is_cache(value: Any) -> bool:
    """Return whether a value is a cache of keys and values, which transformers returns beside the outputs."""
    return any(c.__name__ == "Cache" and c.__module__.startswith("transformers.") for c in type(value).__mro__)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    number: int


def _name(value: Any, name: str, names: list[str]) -> None:
    """Write the names of all leaves of a value into `names`."""
    if isinstance(value, _Leaf):
        names[value.number] = name
        return
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif dataclasses.is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple | list):
        parts = list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    else:  # a class of its own that is registered with pytree
        parts = list(enumerate(pytree.tree_leaves(value))) if not pytree.tree_is_leaf(value) else []
    for key, part in parts:
        _name(part, f"{name}_{key}" if name else str(key), names)


class _Watched(Tensor):
    """A tensor of zeros that notes its number when anything is computed from it."""

    number: int
    read: set[int]

    @classmethod
    def of(cls, example: Tensor, number: int, read: set[int]) -> _Watched:
        """Make one of the shape and type of an example, in which symbolic sizes become numbers."""
        zeros = torch.zeros([int(size) for size in example.shape], dtype=example.dtype).as_subclass(cls)
        zeros.number, zeros.read = number, read
        return zeros

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs or {})):
            if isinstance(leaf, _Watched) and func not in _ABOUT:
                leaf.read.add(leaf.number)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


_ABOUT = {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")} | {Tensor.dim, Tensor.size}
"""Questions about a tensor that do not read its values."""
