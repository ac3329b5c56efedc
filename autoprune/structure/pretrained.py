"""Models with a configuration from which their class builds them again, as those of Hugging Face have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autoprune.structure.attributes import Attribute, Sizes, Values, numbers_of
from autoprune.structure.capture import module_tensors, quiet

_BUILDS = 48
STALE = (
    "no single value of each field of the configuration gives these sizes, so from_pretrained would refuse what "
    "save_pretrained writes: keep the model with autoprune.save and load it with autoprune.load(..., native=True)"
)


def has_configuration(model: nn.Module) -> bool:
    """Return whether a model can be built again from its configuration."""
    return hasattr(model, "save_pretrained") and hasattr(getattr(model, "config", None), "to_dict")


def configured(model: nn.Module, pruned: nn.Module, sizes: Sizes) -> Values | None:
    """Return the numbers of a configuration, and of all modules, at which the model's class has the pruned sizes.

    Args:
        model: the dense model in its own class.
        pruned: any form of the pruned model, for the shapes of its tensors.
        sizes: that differ.

    Returns:
        `None` where no configuration does: widths differ between layers, or the class has no field for them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module_tensors(pruned).items()}
    config = copy.deepcopy(model.config)
    built = _built(model, config)
    if built is None:
        return None
    wrong, left = _wrong(built, wanted), _BUILDS
    changed: dict[str, int] = {}
    while wrong and left > 0:
        better = None
        for name, value in numbers_of(model.config).items():
            for new in sorted({*sizes.sources("", value).values()}) if name not in changed else ():
                left -= 1
                trial = copy.deepcopy(config)
                setattr(trial, name, new)
                built = _built(model, trial) if left >= 0 else None
                if built is not None and (count := _wrong(built, wanted)) < wrong:
                    better, wrong = (name, new), count
        if better is None:
            return None
        changed[better[0]] = better[1]
        setattr(config, *better)
    built = _built(model, config) if not wrong else None
    return None if built is None else _values(model, built, changed)


def _values(model: nn.Module, built: nn.Module, changed: Mapping[str, int]) -> Values:
    """Return the changed fields, and the numbers of modules that differ in the built model."""
    values = {Attribute("", ("config", name)): new for name, new in changed.items()}
    modules = dict(built.named_modules())
    for path, module in model.named_modules():
        other = numbers_of(modules[path]) if path in modules else {}
        for name, value in numbers_of(module).items():
            if name in other and other[name] != value:
                values[Attribute(path, (name,))] = other[name]
    return values


def _built(model: nn.Module, config: Any) -> nn.Module | None:
    """Build a model of a configuration without memory for its tensors; `None` where its class refuses."""
    try:
        with quiet(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            return type(model)(config)
    except Exception:  # a class may check its configuration in any way
        return None


def _wrong(built: nn.Module, wanted: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of tensors that have other shapes than wanted."""
    own = {name: tuple(tensor.shape) for name, tensor in module_tensors(built).items()}
    return sum(own.get(name) != wanted.get(name) for name in own.keys() | wanted.keys())
