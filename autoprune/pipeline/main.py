"""`search`: one call that starts or resumes a run and brings it to a verified front."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autoprune.allocation.limits import fastest
from autoprune.config import RunConfig
from autoprune.errors import TrialError
from autoprune.evaluation import DenseModel
from autoprune.executors.base import Executor
from autoprune.pipeline.baselines import dense_in_int8, uniform_baselines
from autoprune.pipeline.callbacks import OnTrial, Receivers, watchers
from autoprune.pipeline.channel_order import scoring_passes
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.document import front_document, rung_scores, to_json, unmet_budgets, write_front
from autoprune.pipeline.events import SEARCH, Events
from autoprune.pipeline.executors import executor_of
from autoprune.pipeline.exploration import Exploration, explore, search_passes, search_plan
from autoprune.pipeline.finalists import finish
from autoprune.pipeline.identity import note_workers
from autoprune.pipeline.latency_parts import keep_latency_parts
from autoprune.pipeline.measurer import Measurer
from autoprune.pipeline.opening import opened_run
from autoprune.pipeline.preparation import Prepared, prepare
from autoprune.pipeline.progress import announce, note_outcome
from autoprune.pipeline.recipe import recipe_passes, with_recipe
from autoprune.pipeline.run import Run
from autoprune.pipeline.score_budgets import ScoreSearch, next_budgets
from autoprune.pipeline.time_limit import allows, with_full_in_time
from autoprune.pipeline.time_watch import watch_export
from autoprune.pipeline.timed_events import timed
from autoprune.pipeline.verification import score_on_test
from autoprune.pipeline.warm_start import take_scores
from autoprune.records import SearchSpace
from autoprune.report import score_budget_lines
from autoprune.run_documents import read_front
from autoprune.runfolder import RunFolder, read_json
from autoprune.search.effort import Effort
from autoprune.search.strategies import Strategy
from autoprune.study.location import SharedStorage, StudyLocation
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.task.faults import task_faults
from autoprune.trials import FrontModel


def search(
    task: Task | str | None = None,
    *,
    run_dir: str | Path,
    config_file: str | Path | None = None,
    fresh: bool = False,
    events: Receivers | None = None,
    on_trial: OnTrial | None = None,
    measurer: Measurer | None = None,
    **options: Any,
) -> Run:
    """Search policies of a task under budgets; start, or resume the run that `run_dir` holds.

    Args:
        task: a `Task`, the name of a built-in one, or `package.module:function` / `path/to/file.py:function` (default:
            that of the run in the folder, else `mnist5k`). A `Task` object runs in this process
            (`executor="inline"`), because workers load tasks by name.
        run_dir: folder of the run. All results are there; the same call after an interruption goes on.
        config_file: YAML file with any of the options.
        fresh: refuse a folder that already holds a run.
        events: receives progress, or several that do (default: silent); `"console"` shows it as the command line does,
            those of `autoprune.trackers` log to TensorBoard, MLflow or Weights & Biases.
        on_trial: called with an `autoprune.trials.FinishedTrial` after every trial of this call.
        measurer: measures latencies (default: the device that `target` names).
        **options: fields of `autoprune.config.RunConfig`, such as `effort="small"`, or `budgets=["50%", "33%",
            "bytes:1MB"]`: budgets that limit latency are alternatives, each of which gives models; one that names no
            latency (but `params`, `macs`, `bytes` or `activation_bytes`) is added to every one of those; if none names
            latency, those that limit the same cost are. Several limits in one budget are joined by a comma.

    Raises:
        AutopruneError: with one clear message, for anything that cannot work.
        CallbackError: `events` or `on_trial` raised an exception. Finished trials are kept; the same call goes on.
    """
    told = watchers(events, on_trial)
    with (
        opened_run(task, run_dir, config_file, fresh=fresh, options=options) as run,
        task_faults(run.task),
        told.watching(run.folder.path, run.config),
        timed(told, run.folder, run.config.max_minutes) as watch,
    ):
        with run.kept_config():
            prepared = prepare(run.config, run.folder, run.task, watch, measurer)
        take_scores(run.config, run.folder, run.location, prepared.space, prepared.effort, watch)
        if isinstance(run.location, SharedStorage):
            run.folder.write_shared_study(run.location.url, run.location.run_id)
        search_prepared(run.config, run.location, prepared, watch)
        told.finish(read_front(run.folder))
    return Run.open(run_dir, run.own_task)


def search_prepared(
    config: RunConfig,
    location: StudyLocation,
    prepared: Prepared,
    events: Events,
    strategy: Strategy | None = None,
) -> None:
    """Search, fine-tune, prove and write `front.json`.

    Args:
        config: of the run.
        location: where its studies are kept.
        prepared: results of the stages before.
        events: receives progress.
        strategy: fills the cheapest rung, in place of the one that the configuration names.

    Raises:
        TrialError: when no model meets its budget.
    """
    dense_model, costs, deployment = prepared.dense_model, prepared.costs, prepared.deployment
    folder, effort = deployment.folder, prepared.effort
    dense_test_score = _dense_test_score(deployment, costs, events)  # first, to fail early on bad test data
    plan = search_plan(config, location, prepared.space, dense_model, costs, effort)
    dense_model = with_recipe(dense_model, plan, costs, folder, events)
    prepared = replace(prepared, dense_model=dense_model)
    events.stage(SEARCH)
    with executor_of(config, folder, prepared.evaluator) as executor:
        note_workers(folder, config.executor, executor.slots)
        announce(config, plan.space, dense_model, costs, effort, executor.slots, events, spent=_spent(folder))
        scores = _score_searches(config, prepared)
        exploration, models = _models(config, location, prepared, scores, executor, events, strategy)
        costs, outcome = exploration.costs, exploration.outcome
        channels = scoring_passes(config, folder, dense_model.task)
        passes = search_passes(outcome, effort, dense_model.task, executor.slots, channels) | recipe_passes(folder)
    in_int8 = dense_in_int8(plan, costs, deployment, events)
    keep_latency_parts(folder, costs, [*models, *([in_int8] if in_int8 else [])])
    document = front_document(
        models,
        dense_entry(prepared.dense_score, dense_test_score, dense_model, costs),
        metric=dense_model.task.metric_name,
        table=costs.table,
        cost=costs.compared,
        foreign=deployment.foreign,
    ) | {
        "budgets": list(config.budgets),
        "space_id": plan.space.id,
        **_layer_entries(plan.space, in_int8),
        "search_sample_passes": passes,
        "rungs": rung_scores(outcome.results, _names(effort), costs.limits, uniform_baselines(plan, costs)),
        "rank_correlations": [correlation.to_json() for correlation in outcome.correlations],
        "unmet_budgets": _unmet_budgets(_asked(config), models, events),
        **_score_entries(scores, models, dense_model.task, events),
        "finetune_recipe": asdict(dense_model.task.tuning_recipe),
        "form": {key: read_json(folder.form)[key] for key in ("name", "reason", "notes")},
        "not_reconstructed": dense_model.not_reconstructed if config.reconstruct else (),
    }
    write_front(folder, document)
    if not document["models"]:
        raise TrialError("no fine-tuned model meets its budget when measured: see `autoprune front`. Raise the budgets")


def _dense_test_score(deployment: Deployment, costs: CostModel, events: Events) -> float:
    """Export the dense model and return its score on the test data; the time of both is that of other models, about."""
    begun_s, exported = time.monotonic(), deployment.folder.dense_onnx.exists()
    deployment.dense()
    score = score_on_test(deployment.dense_model.module, deployment.dense_model)
    if not exported:
        watch_export(events, costs.dense_ms, time.monotonic() - begun_s)
    return score


def _models(
    config: RunConfig,
    location: StudyLocation,
    prepared: Prepared,
    scores: Sequence[ScoreSearch],
    executor: Executor,
    events: Events,
    strategy: Strategy | None,
) -> tuple[Exploration, list[FrontModel]]:
    """Search and verify the models of all budgets; budgets by score search one latency after the other."""
    dense_model, costs, deployment = prepared.dense_model, prepared.costs, prepared.deployment
    first = len(config.parsed_budgets())
    while True:
        begun_s = time.monotonic()
        plan = search_plan(config, location, prepared.space, dense_model, costs, prepared.effort)
        exploration = explore(plan, costs, deployment, executor, events, strategy)
        costs = exploration.costs
        note_outcome(exploration.outcome, events)
        effort = with_full_in_time(exploration.plan.effort, events, deployment.folder)
        models = finish(
            replace(exploration.plan, effort=effort), exploration.last_rung, costs, deployment, executor, events
        )
        more = next_budgets(scores, first, costs.latency_ratios, models)
        if not more or not allows(events, time.monotonic() - begun_s):
            return exploration, models
        events.note(f"for the budgets by score, {', '.join(map(str, more))} of the dense latency is searched next")
        events.stage(SEARCH)
        costs = costs.with_budgets([config.with_untimed(budget) for budget in more])


def _asked(config: RunConfig) -> list[str]:
    """Return the budgets that were asked for, without those by score and the latencies that these search."""
    return [] if config.by_score_alone else [str(budget) for budget in config.parsed_budgets()]


def _score_searches(config: RunConfig, prepared: Prepared) -> list[ScoreSearch]:
    floor = float(prepared.costs.predicted_ratios([fastest(prepared.space, prepared.costs.limited_costs)])[0])
    return [
        ScoreSearch(budget=budget, least=budget.least(prepared.dense_score), floor=floor)
        for budget in config.score_budgets()
    ]


def _layer_entries(space: SearchSpace, in_int8: FrontModel | None) -> dict[str, Any]:
    """Return the entries of `front.json` about treated layers; none where the space has only widths."""
    layers = len(space.layer_names)
    return ({"layers": layers} if layers else {}) | ({"dense_in_int8": to_json(in_int8)} if in_int8 else {})


def _score_entries(
    scores: Sequence[ScoreSearch], models: Sequence[FrontModel], task: Task, events: Events
) -> dict[str, Any]:
    """Return the entries of `front.json` about scores, and note the answer to every budget by score.

    `score_examples` says how many examples the scores are shares of; it is empty where they are no shares.
    """
    shares = task.metric is None and task.classifies  # the score is the share of examples that are classified right
    examples = {"validation": length(task.val_set), "test": length(task.test_set)} if shares else {}
    answers = [search.entry(models, examples.get("validation")) for search in scores]
    for line in score_budget_lines({"score_budgets": answers}):
        events.note(line)
    return {"score_budgets": answers, "score_examples": examples}


def _spent(folder: RunFolder) -> float:
    return sum(recipe_passes(folder).values())


def _names(effort: Effort) -> list[str]:
    return [fidelity.name for fidelity in effort.rungs]


def _unmet_budgets(budgets: Sequence[str], models: Sequence[FrontModel], events: Events) -> list[str]:
    unmet = unmet_budgets(budgets, models)
    if unmet:
        events.note(f"no fine-tuned model meets {', '.join(unmet)}: raise it, or search longer (--effort, --trials)")
    return unmet


def dense_entry(score: float, test_score: float, dense_model: DenseModel, costs: CostModel) -> dict[str, Any]:
    """Return the entry of the dense model in `front.json`."""
    sizes = dense_model.sizes(dense_model.structure.dense_policy())
    return {"score": score, "test_score": test_score, "latency_ms_measured": costs.dense_ms, **sizes}
