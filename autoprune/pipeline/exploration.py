"""The search of a run: rungs of trials, again with a corrected latency table while predictions are wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy.typing as npt

from autoprune.budgets import Limit
from autoprune.config import RunConfig
from autoprune.evaluation import DenseModel
from autoprune.executors.base import Executor
from autoprune.manifest import Manifest
from autoprune.pipeline.baselines import shared_out_zeros
from autoprune.pipeline.channel_order import importance
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.events import MEASURING, Events
from autoprune.pipeline.progress import RungWatcher
from autoprune.pipeline.table_correction import corrected_costs, widened
from autoprune.pipeline.time_limit import allows
from autoprune.records import Policy, SearchSpace
from autoprune.search.controller import Outcome, run_search
from autoprune.search.effort import Effort
from autoprune.search.explore import SENSITIVITY, Search
from autoprune.search.strategies import Strategy
from autoprune.study.location import StudyLocation
from autoprune.task.base import Task
from autoprune.treatments import level_to_json
from autoprune.trials import FORWARD_SHARE, TrialResult


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """The outcome of a search, the plan that it followed, and the costs, whose table it may have corrected."""

    plan: Search
    costs: CostModel
    outcome: Outcome

    @property
    def last_rung(self) -> Sequence[TrialResult]:
        """Results of the dearest rung."""
        return self.outcome.results[self.plan.effort.rungs[-1].name]


def search_plan(
    config: RunConfig,
    location: StudyLocation,
    space: SearchSpace,
    dense_model: DenseModel,
    costs: CostModel,
    effort: Effort,
) -> Search:
    """Return everything that determines the search of a run."""
    return Search(
        location=location,
        space=space,
        dense_widths=dense_model.structure.full_widths,
        predict=costs.limited_costs,
        cautious=costs.cautious_costs,
        limits=tuple(costs.limits.values()),
        effort=effort,
        run_seed=config.seed,
        strategy=config.strategy,
        sampler=config.sampler,
        additive=costs.additive(space),
        importance=importance(config, dense_model.structure, dense_model.task),
        shared_out={policy: strategy for _, strategy, policy in shared_out_zeros(space, costs, dense_model.module)},
    )


def explore(
    plan: Search,
    costs: CostModel,
    deployment: Deployment,
    executor: Executor,
    events: Events,
    strategy: Strategy | None = None,
) -> Exploration:
    """Search; while predictions of the best proxies are wrong, correct the table and search on.

    Args:
        plan: the search by the table as it is; its effort grows with every correction.
        costs: predicts the costs of policies.
        deployment: measures the best candidates; its run folder keeps sensitivities and corrected tables.
        executor: runs the trials.
        events: receives the progress of every rung.
        strategy: takes the place of the one that the plan names.
    """
    effort = plan.effort
    while True:
        plan = replace(
            plan,
            predict=costs.limited_costs,
            cautious=costs.cautious_costs,
            additive=costs.additive(plan.space),
            effort=widened(effort, costs.table.refits),
        )
        measured = _MeasuredCandidates(plan=plan, costs=costs, deployment=deployment, events=events)
        outcome = run_search(plan, executor, RungWatcher(costs.limits, events), strategy, measured)
        if outcome.sensitivities is not None:
            folder, record = deployment.folder, _sensitivity_record(plan.space, outcome, outcome.sensitivities)
            Manifest(folder).write_json(folder.sensitivity, record, sources=[folder.dense, folder.order])
        if measured.corrected is None:
            measured.note()
            return Exploration(plan=plan, costs=costs, outcome=outcome)
        costs = measured.corrected


@dataclass(kw_only=True)
class _MeasuredCandidates:
    """Measures the candidates of a search (`search.measured.Measured`); `corrected` are the costs to search on with."""

    plan: Search
    costs: CostModel
    deployment: Deployment
    events: Events
    begun_s: float = field(default_factory=time.monotonic)
    corrected: CostModel | None = None
    missed: set[tuple[Policy, str]] = field(default_factory=set)
    met: set[tuple[Policy, str]] = field(default_factory=set)

    def as_predicted(self, proxies: Sequence[TrialResult]) -> bool:
        """Return whether predictions are right; if not, the table is fitted again."""
        self.events.stage(MEASURING)
        if not allows(self.events, time.monotonic() - self.begun_s):
            return True  # there is no time to search again
        self.corrected = corrected_costs(self.plan, proxies, self.costs, self.deployment, self.events)
        return self.corrected is None

    def meets(self, policies: Sequence[Policy], limit: Limit) -> list[bool]:
        """Return which policies meet a limit when measured."""
        budget = next(budget for budget, other in self.costs.limits.items() if other == limit)
        ratios = self.deployment.ratios(policies, self.costs).tolist()
        pairs = zip(policies, ratios, strict=True)
        met = [self.costs.meets(budget, policy, ratio, tolerance=0.0) for policy, ratio in pairs]
        for policy, inside in zip(policies, met, strict=True):
            (self.met if inside else self.missed).add((policy, budget))
        return met

    def note(self) -> None:
        """Note how many candidates were measured beyond the budget that they were predicted to meet."""
        if self.missed:
            self.events.note(
                f"{len(self.missed)} of {len(self.missed) + len(self.met)} candidates for a rung are over their budget "
                "when measured; the next best took their place"
            )


def search_passes(outcome: Outcome, effort: Effort, task: Task, slots: int, channel_passes: float) -> dict[str, float]:
    """Return the sample passes of every part of a search: each rung, the sensitivities, channel scores, the teacher.

    Args:
        outcome: of the search.
        effort: its rungs.
        task: says whether the dense model teaches.
        slots: places where trials ran; the teacher sees the batches of a rung once in each.
        channel_passes: what the scores of channels took.
    """
    passes = {name: sum(r.sample_passes for r in rung) for name, rung in outcome.results.items()}
    distils = task.tuning_recipe.distill_weight > 0 or not task.trains
    shared = task.train_step is None and distils
    taught = sum(f.finetune_samples for f in effort.rungs if shared and outcome.results[f.name])
    return passes | {"scores": channel_passes, "teacher": FORWARD_SHARE * taught * slots}


def _sensitivity_record(
    space: SearchSpace, outcome: Outcome, divergence: Mapping[str, npt.NDArray]
) -> dict[str, dict[str, object]]:
    """Return the divergence by decision and level, and the levels that were measured; the others are estimated."""
    alone = [result.policy for result in outcome.results.get(SENSITIVITY, ())]
    by_level, measured = {}, {}
    for name, values in divergence.items():
        levels = space.levels[name]
        by_level[name] = dict(zip(map(level_to_json, levels), values.tolist(), strict=True))
        chosen = {policy.level(name) for policy in alone}
        measured[name] = [level_to_json(level) for level in levels[:-1] if level in chosen]
    return {"divergence": by_level, "measured": measured}
