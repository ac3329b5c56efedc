"""`search`: one call that starts or resumes a run and brings it to a verified front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoprune.allocation.promotion import best_within
from autoprune.budgets import Limit
from autoprune.errors import TrialError, UsageError
from autoprune.evaluation import additive_costs
from autoprune.executors.base import Executor
from autoprune.executors.cluster import check_address, check_resources
from autoprune.pipeline.channel_order import importance, importance_passes
from autoprune.pipeline.configuration import resolve, with_absolute_paths
from autoprune.pipeline.deployment import deployed_dense
from autoprune.pipeline.events import Events, Silent
from autoprune.pipeline.executors import executor_of
from autoprune.pipeline.finalists import finish
from autoprune.pipeline.prepare import Setup, check_names, open_task, place_of, prepare, seconds_per_pass
from autoprune.pipeline.refit import refitted, uniform_baselines, widened
from autoprune.pipeline.run import OBJECT_TASK, Run
from autoprune.pipeline.verification import front_document, score_on_test
from autoprune.runfolder import RunFolder, read_json, write_json
from autoprune.search.controller import Outcome, run_search
from autoprune.search.effort import proxy_passes
from autoprune.search.explore import SENSITIVITY, Search
from autoprune.search.rung import Progress
from autoprune.search.sensitivity import anchor_policies
from autoprune.search.strategies import Strategy
from autoprune.study.location import SharedStorage
from autoprune.study.samplers import GP_SECONDS
from autoprune.study.storage import check_storage, sole_controller
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.trials import FORWARD_SHARE, TrialResult


def search(
    task: Task | str | None = None,
    *,
    run_dir: str | Path,
    config_file: str | Path | None = None,
    fresh: bool = False,
    events: Events | None = None,
    **options: Any,
) -> Run:
    """Search policies of a task under budgets; start, or resume what `run_dir` holds.

    Args:
        task: a `Task`, the name of a built-in one, or `package.module:function` / `path/to/file.py:function` (default:
            that of the run in the folder, else `mnist5k`). A `Task` object runs in this process
            (`executor="inline"`), because workers load tasks by name.
        run_dir: folder of the run. All results are there; the same call after an interruption goes on.
        config_file: YAML file with any of the options.
        fresh: refuse a folder that already holds a run.
        events: receives progress (default: silent).
        **options: fields of `autoprune.config.RunConfig`, such as `effort="small"`, or `budgets=["50%", "33%",
            "bytes:1MB"]`: budgets that limit latency are alternatives, each of which gives models; one that names no
            latency (but `params`, `macs`, `bytes` or `activation_bytes`) is added to every one of those; if none names
            latency, all together form one budget. Several limits in one budget are joined by a comma.

    Raises an `AutopruneError` with one clear message for anything that cannot work.
    """
    events = events or Silent()
    own = task if isinstance(task, Task) else None
    named = {"task": OBJECT_TASK, "executor": "inline"} if own else {"task": task} if task else {}
    folder = RunFolder(Path(run_dir))
    config = resolve(
        folder, Path(config_file) if config_file else None, with_absolute_paths(options | named), fresh=fresh
    )
    if config.task == OBJECT_TASK and own is None:
        raise UsageError("this run was started with a Task object: pass it again as `task`")
    check_names(config)
    place = place_of(config, folder)
    check_storage(place, made=folder.has_study, begun=folder.has_results)
    if config.executor == "ray":
        check_address(config.ray_address)
        check_resources(config.ray_address, config.resources, config.workers, torch.cuda.device_count())
    ready = own or open_task(config)
    folder.create()
    with folder.locked(), sole_controller(place):
        before = folder.read_config()
        folder.write_config(config.model_dump(mode="json"))
        try:
            setup = prepare(config, folder, events, ready)
        except BaseException:
            if before and "budgets" in before:  # those that nothing was searched for are not kept
                folder.write_config(config.model_dump(mode="json") | {"budgets": before["budgets"]})
            raise
        if isinstance(place, SharedStorage):
            folder.write_shared_study(place.url, place.run_id)
        _run(setup, events)
    return Run.open(run_dir, own)


def _run(setup: Setup, events: Events) -> None:
    deployed_dense(setup)
    dense_test_score = score_on_test(
        setup, setup.dense_model.module
    )  # now, to know early when test data cannot be scored
    events.stage("Search")
    with executor_of(setup) as executor:
        slots = executor.slots
        workers = {"executor": setup.config.executor, "slots": slots}
        write_json(setup.folder.environment, read_json(setup.folder.environment) | {"workers": workers})
        _announce(setup, slots, events)
        setup, outcome = searched(setup, executor, events)
        results = outcome.results
        for name, rung in results.items():
            failed = [r for r in rung if r.status == "failed"]
            passes = sum(r.sample_passes for r in rung)
            events.note(
                f"{name}: {len(rung)} policies, {passes:,.0f} sample passes"
                + (f", {len(failed)} failed" if failed else "")
            )
        for line in (*outcome.notes, *map(str, outcome.correlations)):
            events.note(line)
        models = finish(setup, results[setup.effort.rungs[-1].name], executor, events)
    unmet = [budget for budget in setup.limits if not any(m.meets_budget and m.budget == budget for m in models)]
    if unmet:
        events.note(f"no fine-tuned model meets {', '.join(unmet)}: raise it, or search longer (--effort, --trials)")
    document = front_document(setup, models, dense_test_score)
    extra = {
        "budgets": list(setup.config.budgets),
        "space_id": setup.space.id,
        "search_sample_passes": search_passes(setup, outcome, slots),
        "rungs": rung_scores(setup, results),
        "rank_correlations": [correlation.to_json() for correlation in outcome.correlations],
        "unmet_budgets": unmet,
        "not_reconstructed": setup.dense_model.not_reconstructed if setup.config.reconstruct else (),
    }
    write_json(setup.folder.front, document | extra)
    if not document["models"]:
        raise TrialError(
            "no fine-tuned model meets its budget when measured: see `autoprune front`. Raise the budgets."
        )


def searched(
    setup: Setup, executor: Executor, events: Events, strategy: Strategy | None = None
) -> tuple[Setup, Outcome]:
    """Search; while the predictions of the best candidates are wrong, fit the table again and search on.

    `strategy` takes the place of the one that the configuration names.
    """
    matters = importance(setup.config, setup.dense_model.structure, setup.dense_model.task)
    while True:
        plan = Search(
            location=setup.place,
            space=setup.space,
            dense_widths=setup.dense_model.structure.full_widths,
            predict=setup.costs,
            limits=tuple(setup.limits.values()),
            effort=widened(setup.effort, setup.table.refits),
            run_seed=setup.config.seed,
            strategy=setup.config.strategy,
            sampler=setup.config.sampler,
            additive=additive_costs(setup.dense_model.structure, setup.predictor, setup.space),
            importance=matters,
        )
        outcome = run_search(plan, executor, _Watcher(setup, events), strategy)
        if outcome.sensitivities is not None:
            measured = _measured(setup, outcome.results[SENSITIVITY])
            table = {"divergence": _by_level(setup, outcome.sensitivities), "measured": measured}
            write_json(setup.folder.sensitivity, table)
        better = refitted(setup, outcome.results[setup.effort.rungs[-1].name], events)
        if better is None:
            return setup, outcome
        setup = better


def search_passes(setup: Setup, outcome: Outcome, slots: int) -> dict[str, float]:
    """Sample passes of every part of a search: each rung, the sensitivities, the scores of channels, the teacher.

    The teacher sees the batches of a rung once in each of the `slots` where trials ran.
    """
    passes = {name: sum(r.sample_passes for r in rung) for name, rung in outcome.results.items()}
    task = setup.dense_model.task
    distils = task.tuning_recipe.distill_weight > 0 or not task.trains
    shared = task.train_step is None and distils
    taught = sum(f.finetune_samples for f in setup.effort.rungs if shared and outcome.results[f.name])
    matters = importance_passes(setup.config, length(setup.dense_model.task.train_set))
    return passes | {
        "scores": read_json(setup.folder.order, "sample_passes")["sample_passes"] + matters,
        "teacher": FORWARD_SHARE * taught * slots,
    }


def _by_level(setup: Setup, table: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, dict[int, float]]:
    """Divergence by unit and width."""
    levels = setup.space.levels
    return {name: dict(zip(levels[name], values.tolist(), strict=True)) for name, values in table.items()}


def _measured(setup: Setup, apart: Sequence[TrialResult]) -> dict[str, list[int]]:
    """Widths at which a unit was scored alone; what it loses at its other widths is estimated from these."""
    levels = setup.space.levels
    found = {name: {r.policy.widths[name] for r in apart} - {levels[name][-1]} for name in setup.space.searched}
    return {name: sorted(widths) for name, widths in found.items()}


class _Watcher:
    """Turns the progress of a rung into events; a new rung is a new stage."""

    def __init__(self, setup: Setup, events: Events) -> None:
        self._events = events
        self._names = {limit: budget for budget, limit in setup.limits.items()}
        self._rung = ""

    def __call__(self, progress: Progress) -> None:
        if progress.rung != self._rung:
            self._rung = progress.rung
            self._events.stage(f"Rung {progress.rung}")
        best = [
            f"{self._names[limit]} {score:.3f} (divergence {progress.best_loss[limit]:.2f})"
            for limit, score in progress.best_score.items()
        ]
        self._events.advance(progress.done, progress.total, "best: " + ", ".join(best))


def _announce(setup: Setup, slots: int, events: Events) -> None:
    """Print what the effort means and how long it may take, before anything is spent."""
    effort, budgets = setup.effort, len(setup.limits)
    for fidelity, count in effort.trials_at(budgets).items():
        tuning = (
            f"{fidelity.finetune_samples:,} samples of fine-tuning" if fidelity.finetune_samples else "no fine-tuning"
        )
        events.note(f"{fidelity.name}: about {count} policies, {tuning}")
    examples = length(setup.dense_model.task.val_set)
    share = float(np.mean([_share(setup, limit) for limit in setup.limits.values()]))
    apart = len(anchor_policies(setup.space)) if setup.config.strategy == "guided" else 0
    if apart:
        events.note(f"{SENSITIVITY}: {apart} policies, in each of which one unit is narrower")
    passes = effort.expected_passes(budgets=budgets, val_examples=examples, share=share, apart=apart)
    each = seconds_per_pass(setup.dense_model.task, setup.dense_model.module)
    minutes = max(passes * each / slots / 60, 0.1)
    events.note(f"about {passes:,.0f} sample passes, {minutes:.1f} min on {slots} worker(s)")
    proxy_seconds = share * proxy_passes(effort, examples) * each / slots
    sampled = setup.config.strategy == "direct" and setup.config.sampler == "gp"
    if sampled and proxy_seconds < GP_SECONDS:
        events.note(
            f"the gp sampler takes a minute or more for a proposal in a large space, and workers finish one every "
            f"{proxy_seconds:.1g} s: they will wait for it. --sampler tpe keeps up."
        )


def _share(setup: Setup, limit: Limit) -> float:
    """What a policy on a limit costs at most, as a share of the dense model: its tightest maximum."""
    return min(1.0, *(most / dense for most, dense in zip(limit.most, setup.dense_costs, strict=True)))


def rung_scores(setup: Setup, results: Mapping[str, Sequence[TrialResult]]) -> list[dict[str, Any]]:
    """Best searched policy and uniform baseline of every budget at every rung, for the report."""
    uniform = uniform_baselines(setup)
    rows = []
    for rung in (fidelity.name for fidelity in setup.effort.rungs):
        found = results[rung]
        by_policy = {result.policy: result for result in found}
        for budget, limit in setup.limits.items():
            others = [r for r in found if r.policy not in set(uniform.values())]
            best = best_within(others, limit, 1)
            base = by_policy.get(uniform[budget]) if budget in uniform else None
            for strategy, result in (("searched", best[0] if best else None), ("uniform", base)):
                if result is not None and result.measurement is not None:
                    rows.append(
                        {
                            "rung": rung,
                            "budget": budget,
                            "strategy": strategy,
                            "digest": result.policy.digest(),
                            "score": result.measurement.score,
                            "divergence": result.measurement.loss,
                            "latency_ms_predicted": result.measurement.latency_ms,
                            "sample_passes": result.sample_passes,
                        }
                    )
    return rows
