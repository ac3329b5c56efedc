"""Optuna's samplers over the levels of a space, and the projection of what they propose."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import unknown_name
from autoprune.records import Policy, SearchSpace
from autoprune.study.optuna_private import FIXED_PARAMETERS, StudyView, constraint_attribute, read_trials
from autoprune.study.spec import objectives
from autoprune.treatments import Treatment
from autoprune.trials import TrialResult

CONSTRAINT = "budget"
"""Name of the constraint that says how far a trial is beyond the loosest limit."""

GP_SECONDS = 60.0
"""One proposal of the Gaussian process took longer, among a hundred finished trials of thirty units."""

# A search has a few hundred trials: the default of 50 would leave a genetic algorithm two generations.
_POPULATION = 16

_REMEMBERED = 128
"""So many of the newest finished trials does TPE read, beside the front of the older ones."""

_READ = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
"""The states of trials that TPE asks for."""

Parameters = dict[str, Any]


def _recent(study: optuna.Study) -> list[FrozenTrial]:
    """The newest finished trials, the front of all older ones, and the trials that run, by number.

    TPE places a kernel at every trial that it reads, so each of its proposals took longer than the one before. The
    trials that are left out are old and beaten by others: a few of the many that say where not to look.
    """
    trials = read_trials(study, _READ)
    finished = [trial for trial in trials if trial.state != TrialState.RUNNING]
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    old, new = finished[:-_REMEMBERED], finished[-_REMEMBERED:]
    return sorted((*_front(old), *new, *running), key=lambda trial: trial.number)


def _front(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials with values that none of the others beats in both."""
    front, least = list[FrozenTrial](), math.inf
    for trial in sorted((trial for trial in trials if trial.values), key=lambda trial: trial.values):
        if trial.values[1] < least:
            front.append(trial)
            least = trial.values[1]
    return front


class _Tpe(TPESampler):
    """TPE whose proposals take little longer after thousands of trials than after hundreds."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Parameters:
        view = cast(optuna.Study, StudyView(study, _recent(study)))
        return super().sample_relative(view, trial, search_space)


def _tpe(seed: int) -> BaseSampler:
    return _Tpe(multivariate=True, constant_liar=True, seed=seed)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=_POPULATION, seed=seed)


def _gp(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(deterministic_objective=True, seed=seed, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "nsga2": _nsga2, "gp": _gp, "random": _random}


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Build a sampler by name; `UsageError` for an unknown one. `gp` takes seconds to minutes per proposal."""
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    return SAMPLERS[name](seed)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the parameter of every searched decision: the index of a unit's level, the name of a layer's treatment.

    Treatments are categories: of fp32, int8 and a low rank none is between two others.
    """
    layers = set(space.layer_names)
    return {
        name: CategoricalDistribution([str(level) for level in space.levels[name]])
        if name in layers
        else IntDistribution(0, len(space.levels[name]) - 1)
        for name in space.searched
    }


def encode(policy: Policy, space: SearchSpace) -> Parameters:
    """The parameters of a policy; `PolicyError` when it is not of this space."""
    known, layers = space.policy(policy.choices), set(space.layer_names)
    places = zip(space.searched, space.places(known), strict=True)
    return {name: str(space.levels[name][place]) if name in layers else place for name, place in places}


def decode(parameters: Mapping[str, Any], space: SearchSpace) -> Policy:
    """Inverse of `encode`; it also reads studies of versions in which treatments were indices of levels."""
    layers = set(space.layer_names)
    return space.at([_place(parameters[name], name, space, name in layers) for name in space.searched])


def _place(value: Any, name: str, space: SearchSpace, is_layer: bool) -> int:
    if is_layer and isinstance(value, str):
        return space.levels[name].index(Treatment.parse(value))
    return int(value)


def finished_trial(result: TrialResult, space: SearchSpace, beyond: float) -> FrozenTrial:
    """Return a result of another study as a trial of this one; `beyond` is its distance from the loosest limit."""
    assert result.measurement is not None
    return optuna.trial.create_trial(
        params=encode(result.policy, space),
        distributions=distributions(space),
        values=list(objectives(result.measurement)),
        user_attrs={"result": result.to_json(), "origin": "other limits", "digest": result.policy.digest()},
        system_attrs=constraint(beyond),
    )


def constraint(beyond: float) -> dict[str, float]:
    """The attribute of a trial in which Optuna keeps how far it is beyond the loosest limit."""
    return constraint_attribute(CONSTRAINT, beyond)


class Projected(BaseSampler):
    """A sampler whose proposals go through `project` before the study records them.

    The study then holds what is really evaluated, in one trial per policy. `moved` says whether the last proposal was
    changed. Trials that were enqueued keep their parameters.
    """

    def __init__(
        self,
        inner: BaseSampler,
        parameters: Mapping[str, BaseDistribution],
        project: Callable[[Parameters], Parameters],
    ) -> None:
        self._inner = inner
        self._parameters = dict(parameters)
        self._project = project
        self.moved = False

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters: a projection needs the whole policy."""
        return self._parameters

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Parameters:
        """Sample every parameter with the inner sampler, then project."""
        # Every trial of the study has all parameters: the inner sampler need not read them all to find out (a quarter
        # of its time). It also sees enqueued trials: NSGA-II assigns their generation here.
        sampled = self._inner.sample_relative(study, trial, search_space)
        if FIXED_PARAMETERS in trial.system_attrs:
            return {}
        for name, distribution in search_space.items():
            if name not in sampled:
                sampled[name] = self._inner.sample_independent(study, trial, name, distribution)
        projected = self._project(sampled)
        self.moved = projected != sampled
        return projected

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not reached for parameters of the space; part of the interface."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Forward to the inner sampler."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Forward to the inner sampler."""
        self._inner.after_trial(study, trial, state, values)
