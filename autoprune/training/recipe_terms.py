"""The terms that a recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from autoprune.task.recipe import Recipe, parse_term
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


def terms_of(recipe: Recipe) -> list[Term]:
    """Return new terms for one training by a recipe, in the recipe's order."""
    return [_MAKERS[name](strength) for name, strength in map(parse_term, recipe.terms)]
