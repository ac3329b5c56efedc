"""Whole numbers that modules hold (head counts, widths) and that follow the sizes of pruned tensors.

A module such as `Attention(num_heads=4)` reads `self.num_heads` in its forward. The attribute has no label, so its new
value is found by trying: an attribute whose value equals an old size near it may follow that size, and a trial says
how far the model gets with it. Attributes are decided for a whole class at a time, such as `Attention.num_heads`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from autoprune.records import Unit
from autoprune.structure.capture import module_tensors

_TRIALS = 32
_OPTIONS = 3
"""Sizes that are tried for one attribute."""
_CONFIG = "config"
_PLAIN = set(vars(nn.Module())) | {"training"}

Key = tuple[str, str]
"""The class of modules and the attribute."""
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
    """One whole number of one module (or of its configuration), by path and name."""

    path: str
    name: str
    of_config: bool = False

    def holder(self, model: nn.Module) -> Any:
        """Return the object that has the attribute."""
        module = model.get_submodule(self.path)
        return getattr(module, _CONFIG) if self.of_config else module


Values = Mapping[Attribute, int]


def set_values(model: nn.Module, values: Values) -> None:
    """Set attributes of a model's modules, in place; those of removed modules are left out."""
    for attribute, value in values.items():
        try:
            holder = attribute.holder(model)
        except AttributeError:
            continue
        setattr(holder, attribute.name, value)


def values_of(model: nn.Module, attributes: Iterable[Attribute]) -> dict[Attribute, int]:
    """Return the values of attributes that a model has; those of removed modules are left out."""
    values = {}
    for attribute in attributes:
        try:
            values[attribute] = getattr(attribute.holder(model), attribute.name)
        except AttributeError:
            continue
    return values


def options(model: nn.Module, sizes: Sizes) -> dict[Key, list[dict[Attribute, int]]]:
    """Return for every attribute of a class the values that its modules may take, the most frequent source first."""
    collected: dict[Key, dict[Source, dict[Attribute, int]]] = {}
    for key, attribute, value in _numbers(model):
        path, sources = attribute.path, {}
        while not sources:
            sources = sizes.sources(f"{path}." if path else "", value)
            if not path:
                break
            path = path.rpartition(".")[0]
        for source, new in sources.items():
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
        for key in sorted(choices, key=lambda key: key[0] != _CONFIG):
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


def numbers_of(module: Any) -> dict[str, int]:
    """Return the whole numbers above 1 that an object holds in its attributes."""
    return {name: v for name, v in vars(module).items() if name not in _PLAIN and type(v) is int and v > 1}


def _numbers(model: nn.Module) -> Iterator[tuple[Key, Attribute, int]]:
    """Yield the whole numbers of all modules that are no layers of torch, and of the model's configuration."""
    if hasattr(getattr(model, _CONFIG, None), "__dict__"):
        for name, value in numbers_of(model.config).items():
            yield (_CONFIG, name), Attribute("", name, of_config=True), value
    for path, module in model.named_modules():
        own = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention)
        for name, value in ({} if own else numbers_of(module)).items():
            yield (type(module).__qualname__, name), Attribute(path, name), value
