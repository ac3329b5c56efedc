"""The terms that a recipe or a call of `sparsify` names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from autoprune.task.recipe import parse_term
from autoprune.training.group_lasso import GroupLasso
from autoprune.training.hard_concrete import HardConcrete
from autoprune.training.terms import Term
from autoprune.training.weight_terms import Clipping, Decay, SoftThreshold

_MAKERS: Mapping[str, Callable[[float], Term]] = MappingProxyType(
    {
        "l1": SoftThreshold,
        "l2": Decay,
        "growing": lambda strength: Decay(strength, grows=True),
        "clip": Clipping,
        "group-lasso": GroupLasso,
        "l0": HardConcrete,
        "l0-units": lambda strength: HardConcrete(strength, units=True),
    }
)


def terms_named(texts: Iterable[str]) -> list[Term]:
    """Return new terms for one training, such as `l1:0.001`, in the order of their texts."""
    return [_MAKERS[name](strength) for name, strength in map(parse_term, texts)]
