"""Values that cross a stage, and the words they are named with.

Glossary (one meaning each):

    task            model + example inputs + train / validation / test data + loss + metric
    dense model     the trained model of a task before anything is pruned; every ratio is a share of it
    unit            the smallest thing the search decides about: coupled channels (heads, hidden units, ...)
    width           how many channels (heads, ...) of a unit are kept; 0 removes the residual branch that the unit is in
    layer           an operator with weights; the weight's name is its name, and layers with tied weights are one
    treatment       precision, rank and pattern of zeros of a layer (see `treatments`)
    decision        a unit or a layer that the search decides about
    level           a width that the search may choose for a unit, or a treatment that it may choose for a layer
    space           which decisions the search has and the levels of each (a YAML file in `search_spaces/`)
    policy          one level for every decision of a space; `digest()` names it everywhere
    cut             which channels of every unit stay and which go, at the widths of one policy
    target          the measured device: runtime, provider, threads, precision, batch, host
    kit             a zip file of models and one script, for a device that cannot run autoprune
    geometry        all that the latency of one operator depends on; the key of a latency table
    latency table   measured latencies of geometries on one target, and the predictor built on them
    cost            one of `COSTS`: what running or shipping a model takes
    budget          what a model may cost on the target: `2.5ms`, `50%` of the dense model, `50%,bytes:1MB`
    limit           a budget in numbers: a maximum for every cost
    effort          what the search may spend: trials, minutes, sample passes
    fidelity        how expensively a policy is scored: proxy < brief < longer < full
    rung            the trials of one fidelity
    trial           one policy scored at one fidelity; an attempt is one try to run it
    study           the trials of one rung within some limits, as Optuna stores them
    recovery        repair of a pruned model: least squares, BN recalibration, fine-tuning, distillation
    sample pass     forward + backward of the dense model for one example: the unit of all reported search cost
    front           the models of a run that no other model beats in both latency and score

"Prune" means removing weights. Trials are stopped, never pruned.

All values are frozen and keyword-only, validate themselves and survive a JSON round trip (`to_json` / `from_json`).
Units of measure are part of the names. This module never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from types import MappingProxyType
from typing import Any

from autoprune.errors import PolicyError
from autoprune.treatments import DENSE, Level, Treatment, level_code, level_from_json, level_to_json, timed_levels

COSTS: tuple[str, ...] = ("latency_ms", "params", "macs", "bytes", "activation_bytes")
"""Costs of a model, in the order of every cost array `[K]`; `bytes` are of the weights, `activation_bytes` the peak."""


def digest_of(value: object, length: int = 12) -> str:
    """Hash a JSON value to `length` hex digits, the same in every process and Python version."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One dimension of one parameter that a unit cuts: `per_channel` indices for every channel of the unit."""

    parameter: str
    dim: int
    per_channel: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A set of coupled channels; `members` are the parameter dimensions that change together with its width.

    A `removable` unit may have width 0: the model then computes without the residual branch that the unit is in.
    """

    name: str
    kind: str
    width: int
    members: tuple[Member, ...]
    removable: bool = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise PolicyError(f"a unit has at least one channel; {self.name!r} has {self.width}")


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The levels of every decision; a unit or a layer that is not searched has one.

    `levels` maps every unit to its widths, ascending, and every layer that may be treated to its treatments, the
    dense one last. `id` names the structure and the levels together: policies of one space are refused by another.
    """

    id: str
    levels: Mapping[str, tuple[Level, ...]]

    def __post_init__(self) -> None:
        for name, levels in self.levels.items():
            if any(isinstance(level, Treatment) for level in levels):
                orders = [level.order for level in levels if isinstance(level, Treatment)]
                if len(orders) < len(levels) or orders != sorted(set(orders)) or levels[-1] != DENSE:
                    shown = ", ".join(map(str, levels))
                    raise PolicyError(f"treatments of {name!r} are distinct, the dense one is last; got {shown}")
            elif not levels or list(levels) != sorted(set(levels)) or levels[0] < 0:  # type: ignore[operator,type-var]
                raise PolicyError(f"levels of {name!r} must be ascending, distinct and not negative; got {levels}")
        object.__setattr__(self, "levels", MappingProxyType(dict(self.levels)))

    @cached_property
    def unit_names(self) -> tuple[str, ...]:
        """Names of all units, in the order of the structure."""
        return tuple(name for name, levels in self.levels.items() if not isinstance(levels[-1], Treatment))

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that may be treated, in the order of the structure."""
        return tuple(name for name, levels in self.levels.items() if isinstance(levels[-1], Treatment))

    @cached_property
    def codes(self) -> dict[str, tuple[int, ...]]:
        """Levels of every decision as the numbers of its column of rows: widths, and codes of treatments."""
        return {name: tuple(map(level_code, levels)) for name, levels in self.levels.items()}

    def widths_of(self, unit: str) -> tuple[int, ...]:
        """Return the widths of a unit, ascending."""
        return tuple(level for level in self.levels[unit] if not isinstance(level, Treatment))

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """Names of the decisions with more than one level, units first, in the order of the structure."""
        return tuple(name for name, levels in self.levels.items() if len(levels) > 1)

    @property
    def size(self) -> int:
        """Number of policies in the space."""
        return math.prod(len(levels) for levels in self.levels.values())

    def with_dense_layers(self) -> SearchSpace:
        """Return the same space with every layer dense, for strategies that decide about widths alone."""
        layers = set(self.layer_names)
        return SearchSpace(id=self.id, levels={n: ls[-1:] if n in layers else ls for n, ls in self.levels.items()})

    def timed(self) -> SearchSpace:
        """Return the space without patterns of zeros, as a latency table knows it; the space itself without any.

        A layer that only has patterns stays, with the dense level alone.
        """
        levels = {name: timed_levels(levels) for name, levels in self.levels.items()}
        same = levels == self.levels
        return self if same else SearchSpace(id=digest_of([self.id, "timed"]), levels=levels)

    def policy(self, choices: Mapping[str, Level]) -> Policy:
        """Build a policy of this space; decisions that are left out keep their last level, the largest or dense one.

        Args:
            choices: levels by the name of the decision: channels to keep of a unit, or the treatment of a layer.

        Raises:
            PolicyError: for a name or a level that the space does not have.
        """
        for name, level in choices.items():
            if name not in self.levels:
                raise PolicyError(f"the space has no unit or layer {name!r}; it has {', '.join(self.levels)}")
            if level not in self.levels[name]:
                shown = ", ".join(map(str, self.levels[name]))
                raise PolicyError(f"{level} is no level of {name!r}; its levels are {shown}")
        return self._of({n: choices.get(n, levels[-1]) for n, levels in self.levels.items()})

    def _of(self, choices: Mapping[str, Level]) -> Policy:
        policy = object.__new__(Policy)  # a search makes tens of thousands, and levels of a space need no checks
        widths = {name: level for name, level in choices.items() if not isinstance(level, Treatment)}
        treated = {name: level for name, level in choices.items() if isinstance(level, Treatment) and level != DENSE}
        vars(policy).update(space_id=self.id, widths=MappingProxyType(widths), treatments=MappingProxyType(treated))
        return policy

    def places(self, policy: Policy) -> list[int]:
        """Return the index of the level that each searched decision has in a policy: `[searched decisions]`."""
        return [self.levels[name].index(policy.level(name)) for name in self.searched]

    def at(self, places: Sequence[int]) -> Policy:
        """Build the policy of some level indices `[searched decisions]`: the inverse of `places`."""
        choices = {name: levels[-1] for name, levels in self.levels.items()}
        for name, place in zip(self.searched, places, strict=True):
            choices[name] = self.levels[name][place]
        return self._of(choices)

    def __reduce__(self) -> tuple[object, ...]:
        return (SearchSpace.from_json, (self.to_json(),))

    def neighbours(self, policy: Policy) -> Iterator[Policy]:
        """Yield the policies that differ in one decision, by one level down or up."""
        for name in self.searched:
            levels = self.levels[name]
            place = levels.index(policy.level(name))
            for near in (place - 1, place + 1):
                if 0 <= near < len(levels):
                    yield self.policy({**policy.choices, name: levels[near]})

    def largest(self) -> Policy:
        """Return the policy with every decision at its last level: the largest width, the dense layer."""
        return self.policy({})

    def smallest(self) -> Policy:
        """Return the policy with every decision at its first level: the smallest width, the cheapest treatment."""
        return self.policy({name: levels[0] for name, levels in self.levels.items()})

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value."""
        return {"id": self.id, "levels": {name: [*map(level_to_json, levels)] for name, levels in self.levels.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SearchSpace:
        """Build the value that `to_json` wrote."""
        levels = {name: tuple(map(level_from_json, levels)) for name, levels in value["levels"].items()}
        return cls(id=value["id"], levels=levels)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One width for every unit, and the treatments of layers: immutable, hashable, named everywhere by `digest()`.

    `treatments` holds the layers that are not dense; dense ones that are given are left out. A policy without
    treatments has the digest and the JSON value that it had before there were treatments.
    """

    space_id: str
    widths: Mapping[str, int]
    treatments: Mapping[str, Treatment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for given in (self.widths, self.treatments):
            if not isinstance(given, Mapping):
                raise PolicyError(f"widths and treatments are mappings by names; got {given!r}")
        for name, width in self.widths.items():
            if (type(width) is not int and (not isinstance(width, Integral) or isinstance(width, bool))) or width < 0:
                raise PolicyError(f"a width is a whole number, 0 or more; {name!r} has {width!r}")
        for name, treatment in self.treatments.items():
            if not isinstance(treatment, Treatment):
                raise PolicyError(f"a layer has a treatment; {name!r} has {treatment!r}. Treatment.parse reads a text")
            if name in self.widths:
                raise PolicyError(f"{name!r} names a unit and a layer; a policy needs distinct names")
        widths = {name: int(width) for name, width in self.widths.items()}
        treatments = {name: each for name, each in self.treatments.items() if each is not DENSE and each != DENSE}
        object.__setattr__(self, "widths", MappingProxyType(widths))
        object.__setattr__(self, "treatments", MappingProxyType(treatments))

    @property
    def is_rounded(self) -> bool:
        """Whether some layer computes in another precision than fp32."""
        return any(treatment.of_factors != DENSE for treatment in self.treatments.values())

    @property
    def timed(self) -> Policy:
        """The policy without patterns of zeros: no runtime skips zeros, so it has the same latency."""
        treatments = {name: treatment.timed for name, treatment in self.treatments.items()}
        return Policy(space_id=self.space_id, widths=self.widths, treatments=treatments)

    @property
    def choices(self) -> dict[str, Level]:
        """Level of every unit, and of every layer that is not dense."""
        return {**self.widths, **self.treatments}

    def level(self, name: str) -> Level:
        """Return the level of a decision; a layer that is not named is dense."""
        width = self.widths.get(name)
        return self.treatments.get(name, DENSE) if width is None else width

    def __hash__(self) -> int:
        return hash((self.space_id, frozenset(self.choices.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.space_id == other.space_id and self.choices == other.choices

    def __reduce__(self) -> tuple[object, ...]:
        return (Policy.from_json, (self.to_json(),))

    def digest(self) -> str:
        """Return twelve hex digits that name this policy, independent of the order of its decisions."""
        value = self.to_json()
        return digest_of({"space": value.pop("space_id"), **value})

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value."""
        value: dict[str, Any] = {"space_id": self.space_id, "widths": dict(self.widths)}
        if self.treatments:
            value["treatments"] = {name: str(treatment) for name, treatment in self.treatments.items()}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Policy:
        """Build the policy that `to_json` wrote; `PolicyError` when the value is not a policy."""
        try:
            treatments = {name: Treatment.parse(text) for name, text in value.get("treatments", {}).items()}
            return cls(space_id=value["space_id"], widths=dict(value["widths"]), treatments=treatments)
        except (KeyError, TypeError, AttributeError) as error:
            raise PolicyError(f"not a policy: {error!r}; expected {{'space_id': ..., 'widths': {{...}}}}") from error
