"""The search of a run as a problem for studies of one's own: an objective, a sampler, and what follows the search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.allocation.uniform import baselines
from autoprune.errors import UsageError, unknown_name
from autoprune.executors.base import guarded
from autoprune.pipeline.callbacks import Receivers, watchers
from autoprune.pipeline.events import Events
from autoprune.pipeline.exploration import search_plan
from autoprune.pipeline.main import search_prepared
from autoprune.pipeline.measurer import Measurer
from autoprune.pipeline.opening import OpenedRun, opened_run
from autoprune.pipeline.preparation import Prepared
from autoprune.pipeline.preparation import prepare as prepare_search
from autoprune.pipeline.recipe import with_recipe
from autoprune.pipeline.run import Run
from autoprune.search.explore import Explorer, Search, first_scored
from autoprune.search.guided import GuidedProposals
from autoprune.study.own_studies import PolicyObjective, ProblemSpec, scored_policies
from autoprune.study.pricing import Pricing
from autoprune.study.round_sampler import RoundSampler
from autoprune.study.spec import StudySpec
from autoprune.task.base import Task
from autoprune.trials import Fidelity, TrialResult

if TYPE_CHECKING:
    import optuna

STUDY = "study"
"""The strategy of models that were searched in a study of the user."""


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """What a run searches: policies of a space, scored against the dense model, under budgets. `prepare` makes one.

    Args:
        run: the run that the problem is of.
        prepared: results of the stages before the search.
        events: receives progress.
        rung: name of the fidelity at which policies are scored.

    Example:
        >>> import optuna
        >>> import autoprune
        >>> problem = autoprune.prepare("digits", budgets=["60%"], run_dir="runs/own")   # doctest: +SKIP
        >>> sampler = autoprune.GuidedSampler(problem)                                   # doctest: +SKIP
        >>> study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)    # doctest: +SKIP
        >>> study.optimize(problem.objective, n_trials=40)                               # doctest: +SKIP
        >>> run = problem.finish(study)                                                  # doctest: +SKIP
    """

    run: OpenedRun
    prepared: Prepared
    events: Events
    rung: str = "proxy"

    def at(self, rung: str) -> SearchProblem:
        """Return the problem with policies scored at another fidelity: `proxy`, `brief` or `longer`."""
        names = [fidelity.name for fidelity in self.prepared.effort.rungs]
        if rung not in names:
            raise unknown_name("rung", rung, names)
        return replace(self, rung=rung)

    @property
    def fidelity(self) -> Fidelity:
        """How a policy is scored."""
        return next(fidelity for fidelity in self.prepared.effort.rungs if fidelity.name == self.rung)

    @cached_property
    def plan(self) -> Search:
        """Everything that determines the search of the run."""
        ready = self.prepared
        return search_plan(
            self.run.config, self.run.location, ready.space, ready.dense_model, ready.costs, ready.effort
        )

    @cached_property
    def spec(self) -> ProblemSpec:
        """What every study of the problem must agree with."""
        plan, dense = self.plan, self.run.folder.dense
        study_spec = StudySpec(space=plan.space, fidelity=self.fidelity, limits=plan.limits, run_seed=plan.run_seed)
        return ProblemSpec(study_spec=study_spec, weights=hashlib.sha256(dense.read_bytes()).hexdigest()[:12])

    @cached_property
    def objective(self) -> PolicyObjective:
        """The objective of a study: the logarithm of the loss and the predicted milliseconds, both to be minimised."""
        prepared, costs = self.prepared, self.prepared.costs
        if self.fidelity.finetune_samples:
            tuned = with_recipe(prepared.dense_model, self.plan, costs, self.run.folder, self.events)
            prepared = replace(prepared, dense_model=tuned)
        return PolicyObjective(
            problem=self.spec,
            predict=costs.limited_costs,
            score=partial(guarded, prepared.evaluator()),
            dense_ms=costs.dense_ms,
            budgets=costs.limits,
        )

    def finish(self, study: optuna.Study) -> Run:
        """Fine-tune, export and measure the best policies of a study, as a search does with its own.

        For each budget the best go through the dearer fidelities; the run folder gets the front.

        Raises:
            UsageError: when the study has no scored policy, or is of another problem.
            TrialError: when no model meets its budget.
        """
        self.spec.check(study)
        results = scored_policies(study)
        if not results:
            raise UsageError(f"the study {study.study_name!r} has no scored policy: optimize `problem.objective` first")
        effort = self.prepared.effort
        first = effort.rungs.index(self.fidelity)
        rest = replace(effort, rungs=effort.rungs[first:], promoted=effort.promoted[first:])
        config = self.run.config.model_copy(update={"strategy": STUDY})
        prepared, strategy = replace(self.prepared, effort=rest), partial(_scored, results)
        with self.run.held():
            search_prepared(config, self.run.location, prepared, self.events, strategy)
        return Run.open(self.run.folder.path, self.run.own_task)


def _scored(results: Sequence[TrialResult], explorer: Explorer) -> None:
    """Take the policies of a study in place of a search, priced by today's table, beside the baselines."""
    search = explorer.search
    pricing = Pricing(
        StudySpec(space=search.space, fidelity=search.effort.rungs[0], limits=search.limits, run_seed=search.run_seed),
        search.predict,
    )
    explorer.results |= {result.policy: pricing.priced(result) for result in results}
    explorer.score({p: origin for p, origin in explorer.baselines.items() if p not in explorer.results})


class GuidedSampler(RoundSampler):
    """The guided search of autoprune as a sampler of Optuna, for studies of `SearchProblem.objective`.

    It scores the baselines of every budget, measures the sensitivities, and then refines every budget beside the
    others; with one process it proposes what `autoprune.search` does. All that it knows is in the study: a
    study may be interrupted at any moment, and several processes may share one.

    Args:
        problem: what is searched.
        seed: of the random steps (default: that of the run).

    Raises:
        UsageError: while proposing, when the study is of another problem.

    Example:
        >>> import autoprune
        >>> problem = autoprune.prepare("digits", budgets=["60%"], run_dir="runs/own")   # doctest: +SKIP
        >>> sampler = autoprune.GuidedSampler(problem, seed=0)                           # doctest: +SKIP
    """

    def __init__(self, problem: SearchProblem, seed: int | None = None) -> None:
        plan = problem.plan if seed is None else replace(problem.plan, run_seed=seed)
        uniform = baselines(plan.space, plan.dense_widths, plan.predict, plan.limits)
        super().__init__(
            problem.spec, partial(GuidedProposals, plan, first_scored(plan, uniform), endless=True), plan.run_seed
        )


def prepare(
    task: Task | str | None = None,
    *,
    run_dir: str | Path,
    config_file: str | Path | None = None,
    events: Receivers | None = None,
    measurer: Measurer | None = None,
    **options: Any,
) -> SearchProblem:
    """Run every stage before the search, and return what is to be searched, for a study of Optuna of one's own.

    The dense model is trained and its latency table measured, unless the run folder has them; then this takes seconds.
    Trials run in this process; with `executor="process"` the fine-tunings of `SearchProblem.finish` get workers, and
    a script then needs `if __name__ == "__main__":`, because workers import it.

    Args:
        task: as for `search`.
        run_dir: folder of the run.
        config_file: YAML file with any of the options.
        events: receives progress, as for `search`.
        measurer: measures latencies (default: the device that `target` names).
        **options: those of `search`, such as `budgets=["50%", "33%"]`.

    Raises:
        AutopruneError: with one clear message, for anything that cannot work.

    Example:
        >>> import autoprune
        >>> problem = autoprune.prepare("digits", budgets=["60%"], run_dir="runs/own")   # doctest: +SKIP
    """
    told = watchers(events)
    with (
        opened_run(task, run_dir, config_file, fresh=False, options={"executor": "inline"} | options) as run,
        run.kept_config(),
    ):
        prepared = prepare_search(run.config, run.folder, run.task, told, measurer)
    return SearchProblem(run=run, prepared=prepared, events=told)
