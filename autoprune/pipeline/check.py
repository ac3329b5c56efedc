"""`autoprune check`: every stage of a search once, on two batches, in the order in which a search meets them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Subset

from autoprune.config import RunConfig
from autoprune.device.timing import Protocol
from autoprune.export.onnx_file import export_candidate
from autoprune.export.verify import parity
from autoprune.model.copying import copy_of
from autoprune.pipeline.dense import affordable_examples, seconds_per_pass
from autoprune.pipeline.expected_work import (
    Timed,
    derived_effort,
    expected_work,
    run_seconds,
    start_seconds,
    usual_times,
)
from autoprune.pipeline.findings import Findings
from autoprune.pipeline.measurer import DeviceMeasurer, Measurer
from autoprune.pipeline.rehearsal import Rehearsed, rehearsed_times
from autoprune.pipeline.run import open_task
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.vocabulary import built_model, described_maps
from autoprune.profiling.duration import ProfileSize
from autoprune.profiling.policy_timer import finite_feeds
from autoprune.pruning.ranking import round_width
from autoprune.records import Policy, SearchSpace
from autoprune.report.checks import Estimate, Finding
from autoprune.report.durations import duration_text
from autoprune.search.effort import EFFORTS
from autoprune.search.trial_times import TrialTimes
from autoprune.structure import Structure, analyze, form_at_half
from autoprune.task.base import Task
from autoprune.task.batches import length, sample_rows, take
from autoprune.task.check import check_task
from autoprune.task.metric_direction import doubt
from autoprune.temporary import TemporaryFolder
from autoprune.training.finetune import finetune
from autoprune.training.scoring import evaluate, predict_outputs

_KEPT = 0.5
_BATCHES = 2
_FALLBACK_BATCH = 16
"""Examples of a batch where fine-tuning fails."""
_SCORED = 32
"""Examples to score at least, where steps are small to save memory: many metrics need some of each class."""
_QUICK = Protocol(repeats=8, reference_samples=1, retries=0)


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """Findings of every stage, the structure if there is one, and estimates of what a search takes."""

    findings: tuple[Finding, ...]
    structure: Structure | None
    estimates: tuple[Estimate, ...]

    @property
    def works(self) -> bool:
        """Whether no stage fails."""
        return all(finding.works is not False for finding in self.findings)


def check_up(
    config: RunConfig,
    measurer: Measurer | None = None,
    *,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Checkup:
    """Run every stage of a search of a task once; a stage that fails says why, and the others go on if they can.

    Args:
        config: the search.
        measurer: measures latencies (default: the device that the configuration names).
        on_stage: called with the name of each stage that begins.
        on_finding: called with the outcome of each stage when it ends.
    """
    import_s, findings = time.process_time(), Findings(on_stage, on_finding)
    task = findings.attempt("task", lambda: _open(config))
    findings.attempt("data, model, loss", lambda: _checked(task), task)
    dense = findings.attempt("dense model", lambda: _built(config, task), task)
    structure = findings.attempt("trace and units", lambda: _analyzed(dense, task), dense)
    small = findings.attempt("shrink", lambda: _shrunk(structure), structure)
    own = findings.attempt("form", lambda: _form(structure), small) if small is not None else dense
    model = dense if small is None else small
    batch = findings.attempt("fine-tuning", lambda: _tuned(own, dense, task), own) or _FALLBACK_BATCH
    findings.attempt("evaluation", lambda: _evaluated(model, dense, task, batch, shrunk=small is not None), model)
    with TemporaryFolder("check") as folder:
        path = findings.attempt("ONNX export", lambda: _exported(model, task, folder / "model.onnx"), structure)
        findings.attempt("equal outputs", lambda: _compared(model, path, task, batch), path)
        run_s = findings.attempt(
            "latency", lambda: _timed(config, model, dense, structure, path, measurer), structure, path
        )
    seconds = findings.attempt("time of a sample pass", lambda: _pass_time(task, dense), dense)
    estimates: tuple[Estimate, ...] = ()
    if structure is not None and seconds is not None:
        analysis_s = findings.seconds_of("trace and units")
        space = SpaceFile.read(config, structure).scanned()
        usual = usual_times(seconds, analysis_s)
        rehearsal = partial(_rehearsed, config, task, structure, space, dense, usual)
        rehearsed = findings.attempt("short trials", rehearsal) or Rehearsed(times=usual)
        timed = Timed(
            basis="",
            pass_s=seconds,
            run_s=run_s or run_seconds(structure, dense),
            profile=ProfileSize.of(structure, space),
            analysis_s=analysis_s,
            start_s=start_seconds(import_s, analysis_s),
            times=rehearsed.times,
            half_cost=rehearsed.half_cost,
            export_s=findings.seconds_of("ONNX export"),
        )
        estimates = _estimates(config, task, structure, space, timed)
    return Checkup(findings=tuple(findings), structure=structure, estimates=estimates)


def _open(config: RunConfig) -> tuple[Task, str]:
    task = open_task(config)
    sizes = " / ".join(f"{length(data):,}" for data in (task.train_set, task.val_set, task.test_set))
    return task, f"{task.name}: {sizes} examples to train, choose and test with; metric: {task.metric_name}"


def _checked(task: Task) -> tuple[None, str]:
    check_task(task)
    kind = "own train_step" if task.train_step else "own loss" if task.loss else "no labels: distils to the dense model"
    return None, f"finite, and of the shapes of example_inputs; training: {kind}"


def _built(config: RunConfig, task: Task) -> tuple[nn.Module, str]:
    dense = built_model(config, task)
    count = sum(p.numel() for p in dense.parameters())
    recipe = task.recipe
    trained = "weights of build_model" if recipe is None else f"to be trained for {task.dense_epochs:g} epochs"
    maps = described_maps(dense)
    return dense, f"{count:,} parameters; {trained}{f'; {maps}' if maps else ''}"


def _analyzed(dense: nn.Module, task: Task) -> tuple[Structure, str]:
    structure = analyze(dense, task.example_inputs, task.outputs)
    count, fixed = len(structure.units), len(structure.fixed)
    kept = "1 dimension keeps its" if fixed == 1 else f"{fixed} dimensions keep their"
    alone = f"; {kept} width (listed below)" if fixed else ""
    return structure, f"{count} unit{'s' if count > 1 else ''}{alone}"


def _shrunk(structure: Structure) -> tuple[nn.Module, str]:
    widths = {unit.name: round_width(_KEPT * unit.width, unit.width) for unit in structure.units}
    policy = Policy(space_id=structure.digest(), widths=widths)
    both = structure.widths([structure.dense_policy(), policy])
    params, macs = (cost[1] / max(cost[0], 1) for cost in (structure.params(both), structure.macs(both)))
    text = f"all units at half: {params:.0%} of the parameters, {macs:.0%} of the MACs; proven equal to the cut model"
    return structure.shrink(policy).eval(), text


def _form(structure: Structure) -> tuple[nn.Module, str]:
    form, small = form_at_half(structure)
    proven = "own classes, proven equal in outputs and gradients" if form.name == "native" else str(form)
    return small, "; ".join((proven, *form.notes))


def _tuned(model: nn.Module, dense: nn.Module, task: Task) -> tuple[int, str]:
    """Return the examples of a training step: those of the recipe, or fewer where they need much memory."""
    recipe, few = task.tuning_recipe, take(task.train_set, sample_rows(length(task.train_set), 2))
    batch = min(recipe.batch_size, affordable_examples(model, task.split(few)[0]))
    less = f" (a step has {batch}, not {recipe.batch_size}, to save memory)" if batch < recipe.batch_size else ""
    recipe = dataclasses.replace(recipe, batch_size=batch)
    given = None if task.finetune is not None else recipe
    tuning = finetune(copy_of(model), task, samples=_BATCHES * batch, seed=0, recipe=given, teacher=dense)
    loss = "own trainer" if given is None else f"loss {tuning.train_loss:.4g}"
    return batch, f"{tuning.samples} examples{less}; {loss}"


def _evaluated(model: nn.Module, dense: nn.Module, task: Task, batch: int, *, shrunk: bool) -> tuple[None, str]:
    count = max(_BATCHES * batch, min(_BATCHES * task.tuning_recipe.batch_size, _SCORED))
    rows = sample_rows(length(task.val_set), count)
    some = Subset(task.val_set, rows.tolist())
    dense_outputs = predict_outputs(dense, task, some)
    score = evaluate(model, task, some, dense_outputs=dense_outputs).score
    warning = None
    if task.metric is not None:
        dense_score = evaluate(dense, task, some, dense_outputs=dense_outputs, outputs=dense_outputs).score
        warning = doubt(task.metric_name, dense_score, score, trained=task.recipe is None)
    which = "shrunk model, neither repaired nor tuned" if shrunk else "dense model"
    return None, f"{task.metric_name} {score:.4f} of the {which}, on {len(rows)} examples" + (
        f". Beware: {warning}" if warning else ""
    )


def _exported(model: nn.Module, task: Task, path: Path) -> tuple[Path, str]:
    export_candidate(model, task.example_inputs, path)
    return path, f"{path.stat().st_size / 1e3:,.0f} kB"


def _compared(model: nn.Module, path: Path, task: Task, batch: int) -> tuple[None, str]:
    rows = sample_rows(length(task.val_set), batch)
    difference = parity(model, path, task.split(take(task.val_set, rows))[0])
    return None, f"ONNX Runtime differs by {difference:.1g} of the largest output"


def _timed(
    config: RunConfig,
    model: nn.Module,
    dense: nn.Module,
    structure: Structure,
    path: Path,
    measurer: Measurer | None,
) -> tuple[float, str]:
    """Return the seconds of one run of the dense model on the target."""
    measurer = measurer or DeviceMeasurer.of(config.model_copy(update={"precision": "fp32"}))
    target = measurer.target
    models: list[Any] = [model, dense]
    if target.runtime != "torch":
        models = [path, export_candidate(dense, structure.example_inputs, path.with_name("dense.onnx"))]
    feeds = finite_feeds(structure, target.batch)
    timings = measurer.timings(models[:1], models[1], feeds, protocol=_QUICK)
    dense_ms = timings.reference.median_ms
    times = f"{dense_ms:.3g} ms dense, {timings.ratios[0]:.0%} of it shrunk"
    return dense_ms / 1e3, f"{times}, on {config.target}, {target.threads} thread(s), batch {target.batch}"


def _pass_time(task: Task, dense: nn.Module) -> tuple[float, str]:
    seconds = seconds_per_pass(task, dense)
    return seconds, f"{seconds * 1e3:.3g} ms, forward and backward of one example, on one thread"


def _rehearsed(
    config: RunConfig, task: Task, structure: Structure, space: SearchSpace, dense: nn.Module, usual: TrialTimes
) -> tuple[Rehearsed, str]:
    """Return the times of trials that were tried, or the usual ones for models of which they take long."""
    rehearsed = rehearsed_times(config, task, structure, space, dense, None, usual)
    times = rehearsed.times
    if not times.rehearsed:
        return rehearsed, "not tried: they take long, or code of your own trains; sample passes are most of each"
    return rehearsed, (
        f"{duration_text(times.fixed_s)} each, {duration_text(times.tuned_fixed_s)} with fine-tuning, and "
        f"{times.pass_s * 1e3:.3g} ms for each sample pass"
    )


def _estimates(
    config: RunConfig, task: Task, structure: Structure, space: SearchSpace, timed: Timed
) -> tuple[Estimate, ...]:
    """Return estimates of a whole search for one budget at half of the dense cost."""
    config = config.model_copy(update={"budgets": (f"{_KEPT:.0%}",)})
    training = 0.0 if task.recipe is None else task.dense_epochs * length(task.train_set)
    estimates = []
    for name in EFFORTS:
        effort = derived_effort(config.model_copy(update={"effort": name, "trials": None}), task)
        work = expected_work(config, task, structure, space, effort, timed)
        passes = effort.expected_passes(budgets=1, val_examples=work.val_examples, share=work.share, apart=work.apart)
        estimates.append(
            Estimate(
                effort=name,
                policies=effort.trials + work.apart,
                sample_passes=passes + work.recipe_passes + training,
                seconds_by_part=work.estimate().remaining(0.0).seconds_by_part,
            )
        )
    return tuple(estimates)
