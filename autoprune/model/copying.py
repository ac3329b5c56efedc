"""Copies of a user's module, also of one whose attributes hold what `copy.deepcopy` refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn

from autoprune.errors import StructureError

_REGISTERED = {"_parameters", "_buffers", "_modules"}


def copy_of(model: nn.Module, replaced: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a model, with the gradient hooks of its parameters.

    - Tensors that a pass left in attributes are copied without the history of their gradients.
    - An object that cannot be copied, such as a lock or an open file, is shared with the model.
    - A module whose `__deepcopy__` returns itself is copied all the same: what happens to the copy must not touch it.
    - Methods of the model that are hooks or attributes become methods of the copy, also where `model` is a view.

    Args:
        model: any module; it is left as it was.
        replaced: objects that the copy has in the place of others, by the `id` of the others.

    Raises:
        StructureError: the model cannot be copied even so.
    """
    try:
        copied = _separate_copy(model, replaced or {})
    except Exception:  # an attribute may raise anything
        try:
            copied = _separate_copy(model, {**_stand_ins(model), **(replaced or {})})
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StructureError(
                f"the model cannot be copied ({type(error).__name__}: {reason}). Let copy.deepcopy(model) work"
            ) from error
    own = dict(copied.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in own:
            _pass_on_hooks(parameter, own[name])
    return copied


def _separate_copy(model: nn.Module, replaced: Mapping[int, Any]) -> nn.Module:
    copied = _deep_copy(model, dict(replaced))
    forced = _copied_anyway(model, copied, dict(replaced))
    return _deep_copy(model, forced) if len(forced) > len(replaced) else copied


def _copied_anyway(model: nn.Module, copied: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Return `memo` with copies of the modules that a `__deepcopy__` returned themselves, or with their own tensors."""
    of_copy = {id(value) for value in (*copied.modules(), *copied.parameters(), *copied.buffers())}
    shared = [
        module
        for module in model.modules()
        if any(id(value) in of_copy for value in (module, *module._parameters.values(), *module._buffers.values()))
    ]
    memo |= {id(module): type(module).__new__(type(module)) for module in shared}
    for module in shared:
        memo[id(module)].__dict__.update(copy.deepcopy(module.__dict__, memo))
    return memo


def _deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a model; the module of which it is a view becomes the same copy."""
    bound_to = {id(value.__self__): value.__self__ for value in _attributes(model) if isinstance(value, MethodType)}
    viewed = [
        other
        for other in bound_to.values()
        if isinstance(other, nn.Module) and other is not model and other._modules is model._modules
    ]
    if not viewed:
        return copy.deepcopy(model, memo)
    new = type(model).__new__(type(model))
    memo |= {id(other): new for other in (model, *viewed)}
    new.__dict__.update(copy.deepcopy(model.__dict__, memo))
    return new


def _attributes(model: nn.Module) -> Iterator[Any]:
    """Yield what modules hold besides parameters, buffers and modules; the entries of dictionaries one by one."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                yield from value.values() if isinstance(value, dict) else (value,)


def _stand_ins(model: nn.Module) -> dict[int, Any]:
    """Return by `id` what stands for the attributes that `copy.deepcopy` refuses."""
    memo: dict[int, Any] = {}
    for value in _attributes(model):
        _add_stand_ins(value, memo)
    return memo


def _add_stand_ins(value: Any, memo: dict[int, Any]) -> None:
    if isinstance(value, Tensor) and not value.is_leaf:
        memo[id(value)] = value.detach().clone()
    elif isinstance(value, list | tuple | set | dict):
        for part in value.values() if isinstance(value, dict) else value:
            _add_stand_ins(part, memo)
    elif not isinstance(value, nn.Module | MethodType):
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:  # an attribute may raise anything
            memo[id(value)] = value


def _pass_on_hooks(source: Tensor, target: Tensor) -> None:
    """Register the gradient hooks of one tensor on another, because `copy.deepcopy` leaves them out."""
    if target is not source and target.requires_grad and not target._backward_hooks:
        for hook in (source._backward_hooks or {}).values():
            target.register_hook(hook)
