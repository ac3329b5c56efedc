"""Whole numbers that modules hold (head counts, widths) and that follow the sizes of pruned tensors.

A module such as `Attention(num_heads=4)` reads `self.num_heads` in its forward. The attribute has no label, so its new
value is found by trying: an attribute whose value equals an old size near it may follow that size, and a trial says
how far the model gets with it. Attributes are decided for a whole class at a time, such as `Attention.num_heads`.

Numbers in lists, tuples, dictionaries and configuration objects count as well, and so do those of the module's class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from autoprune.records import Unit
from autoprune.structure.capture import module_tensors

_TRIALS = 32
_OPTIONS = 3
"""Sizes that are tried for one attribute."""
_DEEPEST, _MOST_ENTRIES = 3, 64
"""How deep numbers may be nested in a module, and how many entries a list may have."""
_PLAIN = set(vars(nn.Module())) | {"training"}
_NO_SETTINGS = (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType)

Steps = tuple[str | int, ...]
"""The way to a number: an attribute, then keys, indices and attributes."""
Key = tuple[str, Steps]
"""The class that holds a number, and the way to it."""
Source = tuple[Any, ...]
"""A key of `Sizes`, relative to a module."""
Score = tuple[float, float]
"""How much of a model runs, and minus the difference of its outputs."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model that a policy changes, `(old, new)`.

    - `tensors`: by name and dimension.
    - `units`: widths, by a member's parameter and dimension, the unit's kind, and the member's entries for a channel.
    """

    tensors: Mapping[tuple[str, int], tuple[int, int]]
    units: Mapping[tuple[str, int, str, int], tuple[int, int]]

    @classmethod
    def between(cls, dense: nn.Module, pruned: nn.Module, units: Sequence[Unit], widths: Mapping[str, int]) -> Sizes:
        """Return the sizes that differ between a dense model and its pruned form."""
        after = module_tensors(pruned)
        tensors = {
            (name, dim): (old, new)
            for name, tensor in module_tensors(dense).items()
            if name in after
            for dim, (old, new) in enumerate(zip(tensor.shape, after[name].shape, strict=True))
            if old != new
        }
        cut = {
            (member.parameter, member.dim, unit.kind, member.per_channel): (unit.width, widths[unit.name])
            for unit in units
            if 0 < widths[unit.name] < unit.width
            for member in unit.members
        }
        return cls(tensors, cut)

    def sources(self, prefix: str, value: int) -> dict[Source, int]:
        """Return what a number of a module may follow, with the new value: names are relative to the module."""
        sizes = {**self.units, **self.tensors}
        return {
            (key[0].removeprefix(prefix), *key[1:]): new
            for key, (old, new) in sizes.items()
            if old == value and key[0].startswith(prefix)
        }


@dataclass(frozen=True)
class Attribute:
    """One whole number of one module: the module's path, and the way from the module to the number."""

    path: str
    steps: Steps


Values = Mapping[Attribute, int]


def set_values(model: nn.Module, values: Values) -> None:
    """Set attributes of a model's modules, in place; those of removed modules are left out."""
    for attribute, value in values.items():
        try:
            _put(model.get_submodule(attribute.path), attribute.steps, value)
        except Exception:  # a setter of the user's may raise anything; the proof judges the model as it is then
            continue


def values_of(model: nn.Module, attributes: Iterable[Attribute]) -> dict[Attribute, int]:
    """Return the values of attributes that a model has; those of removed modules are left out."""
    values = {}
    for attribute in attributes:
        try:
            value: Any = model.get_submodule(attribute.path)
            for step in attribute.steps:
                value = _inner(value, step)
        except (AttributeError, LookupError, TypeError):
            continue
        values[attribute] = value
    return values


def _inner(holder: Any, step: Any) -> Any:
    return holder[step] if isinstance(holder, list | tuple | Mapping) else getattr(holder, str(step))


def _put(holder: Any, steps: Steps, value: int) -> Any:
    """Set a number within an object; return the object, or what stands for it where it is a tuple."""
    first, *rest = steps
    inner = _put(_inner(holder, first), tuple(rest), value) if rest else value
    if isinstance(holder, tuple):
        entries: Any = [inner if place == first else entry for place, entry in enumerate(holder)]
        return type(holder)(*entries) if hasattr(holder, "_fields") else type(holder)(entries)
    if isinstance(holder, list | dict):
        holder[first] = inner  # pyright: ignore[reportArgumentType, reportCallIssue]
    else:
        try:
            setattr(holder, str(first), inner)
        except AttributeError:  # a frozen dataclass, of which the copied model has its own
            vars(holder)[str(first)] = inner
    return holder


def is_copied(attribute: Attribute, model: nn.Module, copied: nn.Module) -> bool:
    """Return whether a number can be set in a copy of a model alone.

    Enum members, loggers and objects with a `__deepcopy__` of their own are the same objects in both. A tuple may be,
    because setting a number in it makes another tuple.
    """
    try:
        a: Any = model.get_submodule(attribute.path)
        b: Any = copied.get_submodule(attribute.path)
        for step in attribute.steps:
            if a is b and not isinstance(a, tuple):
                return False
            a, b = _inner(a, step), _inner(b, step)
    except Exception:  # a property of the user's may raise anything
        return False
    return True


def options(model: nn.Module, sizes: Sizes, copied: nn.Module) -> dict[Key, list[dict[Attribute, int]]]:
    """Return for every attribute of a class the values that its modules may take, the most frequent source first.

    Args:
        model: the dense model.
        sizes: that a policy changes.
        copied: a copy of the model; numbers that it shares with the model are left out.
    """
    collected: dict[Key, dict[Source, dict[Attribute, int]]] = {}
    for key, attribute, value in numbers_of_modules(model):
        path, sources = attribute.path, {}
        while not sources:
            sources = sizes.sources(f"{path}." if path else "", value)
            if not path:
                break
            path = path.rpartition(".")[0]
        for source, new in sources.items():
            if is_copied(attribute, model, copied):
                collected.setdefault(key, {}).setdefault(source, {})[attribute] = new
    ranked = {}
    for key, by_source in collected.items():
        counts = Counter[tuple[tuple[Attribute, int], ...]]()
        for values in by_source.values():
            counts[tuple(values.items())] += len(values)
        ranked[key] = [dict(items) for items, _ in counts.most_common(_OPTIONS)]
    return ranked


def follow(choices: Mapping[Key, Sequence[Mapping[Attribute, int]]], trial: Callable[[Values], Score]) -> Values:
    """Return the values with which a model gets furthest, by a bounded climb; those that are not needed are left out.

    Args:
        choices: of `options`.
        trial: how far the model gets with some values; `(1, 0)` or more is a pass within tolerance.
    """
    chosen: dict[Key, int] = dict.fromkeys(choices, 0)
    left = _TRIALS

    def score() -> Score:
        nonlocal left
        left -= 1
        return trial(merged(choices, chosen))

    best = score()
    for improve in (True, False):
        for key in choices:
            for option in [*range(1, len(choices[key])), -1] if improve else [-1]:
                if left <= 0 or (improve and best >= (1.0, 0.0)):
                    break
                before, chosen[key] = chosen[key], option
                if before != option and ((now := score()) > best or (not improve and now >= (1.0, 0.0))):
                    best = max(best, now)
                else:
                    chosen[key] = before
        if best < (1.0, 0.0):
            break
    return merged(choices, chosen)


def merged(choices: Mapping[Key, Sequence[Mapping[Attribute, int]]], chosen: Mapping[Key, int]) -> Values:
    """Return the values of the chosen options; -1 leaves an attribute as it is."""
    return {a: v for key, option in chosen.items() if option >= 0 for a, v in choices[key][option].items()}


def numbers_of(holder: Any) -> dict[str, int]:
    """Return the whole numbers above 1 that an object holds in its attributes."""
    return {str(steps[0]): value for steps, value in _numbers_in(holder, set(), 1)}


def numbers_of_modules(model: nn.Module) -> Iterator[tuple[Key, Attribute, int]]:
    """Yield the whole numbers of all modules but layers of torch; those of configurations come first."""
    of_modules = []
    seen = set[int]()
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.Unflatten):
            continue
        for steps, value in _numbers_in(module, seen, _DEEPEST):
            entry = (type(module).__qualname__, steps), Attribute(path, steps), value
            if isinstance(vars(module).get(str(steps[0])), int | None):
                of_modules.append(entry)
            else:
                yield entry
    yield from of_modules


def _numbers_in(holder: Any, seen: set[int], depth: int) -> Iterator[tuple[Steps, int]]:
    """Yield the whole numbers above 1 within an object, with the way to each; an object that was `seen` has none."""
    if id(holder) in seen or depth == 0:
        return
    if not isinstance(holder, tuple):
        seen.add(id(holder))
    for step, value in _entries(holder):
        if type(value) is int:
            if value > 1:
                yield (step,), value
        elif isinstance(value, list | tuple | dict) or _is_settings(value):
            yield from (((step, *steps), number) for steps, number in _numbers_in(value, seen, depth - 1))


def _entries(holder: Any) -> list[tuple[str | int, Any]]:
    if isinstance(holder, list | tuple):
        return list(enumerate(holder)) if len(holder) <= _MOST_ENTRIES else []
    if isinstance(holder, dict):
        return list(holder.items()) if len(holder) <= _MOST_ENTRIES or all(isinstance(k, str) for k in holder) else []
    entries = {name: value for name, value in vars(holder).items() if name not in _PLAIN}
    if isinstance(holder, nn.Module):
        own = type(holder).__mro__[: type(holder).__mro__.index(nn.Module)]
        of_class = {name: v for kind in own for name, v in vars(kind).items() if type(v) is int and name[:1] != "_"}
        entries = of_class | entries
    return list(entries.items())


def _is_settings(value: Any) -> bool:
    """Return whether an object is one with attributes of its own, such as a configuration."""
    return hasattr(value, "__dict__") and not isinstance(value, _NO_SETTINGS) and not callable(value)
