"""The stages before the search: task, dense model, units, space, channel order, latency table, limits, effort.

Each stage finds its result in the run folder when an earlier call finished it.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autoprune.allocation.additive import Additive
from autoprune.allocation.limits import Predict, require_reachable
from autoprune.budgets import Limit
from autoprune.config import RunConfig
from autoprune.device.connect import make_target
from autoprune.device.target import Target, check_target, differences
from autoprune.errors import RunFolderError, TaskError, unknown_name
from autoprune.evaluation import DenseModel, Evaluator, additive_costs, cost_matrix, sizes
from autoprune.latency.predictor import LatencyPredictor
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.channel_order import SCORES, make_dense_model
from autoprune.pipeline.events import Events
from autoprune.pipeline.tables import latency_table, space_of
from autoprune.records import COSTS, Policy, SearchSpace, digest_of
from autoprune.runfolder import RunFolder, read_json, write_atomic, write_json
from autoprune.search.effort import Effort
from autoprune.search.strategies import STRATEGIES
from autoprune.space import find_space, load_spec
from autoprune.structure import Structure, analyze
from autoprune.study.location import SharedStorage, StudyLocation
from autoprune.study.samplers import SAMPLERS
from autoprune.task.base import Task
from autoprune.task.batches import batches, length
from autoprune.task.check import check_task
from autoprune.task.load import load_task
from autoprune.training.dense import build_dense, load_dense, train_dense, weights_to_bytes
from autoprune.training.scoring import evaluate


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a search needs. `limits` maps every budget, as written, to its maxima.

    `foreign` says in what the target of the table differs from this one: then nothing measured here counts.
    """

    config: RunConfig
    folder: RunFolder
    dense_model: DenseModel
    space: SearchSpace
    target: Target
    foreign: tuple[str, ...]
    table: LatencyTable
    predictor: LatencyPredictor
    dense_score: float
    dense_costs: tuple[float, ...]
    limits: dict[str, Limit]
    effort: Effort

    def costs(self, policies: Sequence[Policy]) -> npt.NDArray[np.float64]:
        """Costs of policies `[P, K]` that the limits are about, latency as predicted; the others are 0."""
        limited = {name for limit in self.limits.values() for name in limit.limited}
        return cost_matrix(self.dense_model.structure, self.predictor, policies, {"latency_ms", *limited})

    def predict_ms(self, policy: Policy) -> float:
        """Predicted latency of one policy."""
        return float(self.predictor.predict([policy])[0])

    @property
    def place(self) -> StudyLocation:
        """Where the studies of the run are kept."""
        return place_of(self.config, self.folder)

    def evaluator(self) -> Evaluator:
        """The evaluator in this process."""
        return Evaluator(dense_model=self.dense_model, predict_ms=self.predict_ms)


def place_of(config: RunConfig, folder: RunFolder) -> StudyLocation:
    """Where the studies of a run are kept: in its folder, unless it says otherwise."""
    return SharedStorage(config.storage, config.run_id) if config.storage else folder.study


def check_names(config: RunConfig) -> None:
    """Refuse unknown names before anything costs time; each error lists the known ones."""
    known = {"strategy": STRATEGIES, "sampler": SAMPLERS, "scores": SCORES}
    for key, names in known.items():
        if getattr(config, key) not in names:
            raise unknown_name(key, getattr(config, key), names)
    load_spec(find_space(config.space))
    if config.dense and not Path(config.dense).is_file():
        raise TaskError(f"there is no weights file {config.dense}; give a .safetensors file of the dense model")
    check_target(config.target, config.precision)


def open_task(config: RunConfig) -> Task:
    """The task that a configuration names."""
    return load_task(config.task, config.model, Path(config.data_dir) if config.data_dir else None)


def prepare(config: RunConfig, folder: RunFolder, events: Events, task: Task) -> Setup:
    """Run every stage up to the search. Raises the error of the stage that cannot go on.

    Latency does not depend on weights, so budgets are checked before anything is trained.
    """
    events.stage("Task and units")
    check_task(task)
    dense = build_dense(task, seed=config.seed)
    if not any(parameter.requires_grad for parameter in dense.parameters()):
        raise TaskError("every parameter of the model is frozen: let `build_model` leave requires_grad as it is")
    structure = analyze(dense, task.example_inputs)
    _claim(folder, task, structure)
    structure.shrink(space_of(config, structure).smallest())  # the proof, before anything costs time
    events.note(f"{len(structure.units)} units")
    for op, nodes in structure.unsupported.items():
        events.note(f"operator {op} has no rule: what it touches keeps its width ({len(nodes)} places)")
    target = make_target(config.target, config.threads, config.batch, config.precision)
    table = latency_table(config, folder, structure, target, events)
    space = space_of(config, structure, table)
    searched = len(space.searched)
    size = f"{space.size:.3g}" if space.size < 1e300 else f"1e{len(str(space.size)) - 1}"
    events.note(f"{searched} units searched: {size} policies (space {config.space!r})")
    predictor = table.predictor(structure)
    dense_sizes = sizes(structure, structure.widths([structure.dense_policy()])) | {"latency_ms": [table.dense_ms]}
    dense_costs = tuple(float(dense_sizes[name][0]) for name in COSTS)
    additive = additive_costs(structure, predictor, space)
    limits = reachable_limits(config, space, partial(cost_matrix, structure, predictor), dense_costs, additive)
    trained = trained_dense(config, folder, task, events)
    dense.load_state_dict(trained.state_dict())
    dense_model = make_dense_model(config, folder, task, dense, structure, events)
    score = evaluate(dense, task, task.val_set, dense_outputs=dense_model.dense_outputs).score
    events.note(f"dense: {task.metric_name} {score:.4f} on validation data, {table.dense_ms * 1e3:.0f} us measured")
    effort = Effort.derive(
        config.effort, train_examples=length(task.train_set), val_examples=length(task.val_set), trials=config.trials
    )
    return Setup(
        config=config,
        folder=folder,
        dense_model=dense_model,
        space=space,
        target=target,
        foreign=tuple(differences(target.fingerprint(), table.target)),
        table=table,
        predictor=predictor,
        dense_score=score,
        dense_costs=dense_costs,
        limits=limits,
        effort=effort,
    )


def _claim(folder: RunFolder, task: Task, structure: Structure) -> None:
    """Note versions and the task; `RunFolderError` when the folder holds the results of another task."""
    fingerprint = task_fingerprint(task, structure)
    stored = read_json(folder.environment).get("task") if folder.environment.exists() else None
    if stored not in (None, fingerprint) and (folder.dense.exists() or folder.has_study):
        raise RunFolderError(
            f"{folder.path} holds a run of another task: its data, metric or model differ (task {task.name!r}), or it "
            "was made by another version of autoprune. "
            "Choose another --run-dir."
        )
    write_json(folder.environment, environment() | {"task": fingerprint})


def task_fingerprint(task: Task, structure: Structure) -> str:
    """Hash of the structure, the metric, and the size and first items of every data set.

    What a data set gives otherwise when it is asked again (it has a random generator of its own) is left out.
    """
    data = []
    for part in (task.train_set, task.val_set, task.test_set):
        first, again = (next(batches(part, 4)) for _ in range(2))
        same = [t for t, other in zip(first, again, strict=True) if torch.equal(t, other)]
        data.append([length(part), *(hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in same)])
    return digest_of([task.name, task.metric_name, structure.digest(), data])


def environment() -> dict[str, object]:
    """Versions and host, for the record."""
    packages = ("autoprune", "torch", "optuna", "numpy", "onnxruntime", "onnx")
    versions = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "platform": platform.platform(), "versions": versions}


def trained_dense(config: RunConfig, folder: RunFolder, task: Task, events: Events) -> nn.Module:
    """The trained dense model: cached in the folder, given as a file, or trained once by the task's recipe."""
    if folder.dense.exists():
        return load_dense(task, folder.dense)
    events.stage("Dense model")
    if config.dense is not None:
        dense = load_dense(task, Path(config.dense))
    else:
        dense = train_dense(
            task,
            seed=config.seed,
            on_progress=lambda done, total, loss: events.advance(done, total, f"training, loss {loss:.3f}"),
        )
    write_atomic(folder.dense, weights_to_bytes(dense))
    return load_dense(task, folder.dense)


def reachable_limits(
    config: RunConfig,
    space: SearchSpace,
    predict: Predict,
    dense_costs: Sequence[float],
    additive: Additive,
) -> dict[str, Limit]:
    """The maxima of every budget; `BudgetError` states the floors when no policy of the space can meet one."""
    found = {str(budget): budget.limit(dense_costs) for budget in config.parsed_budgets()}
    require_reachable(space, predict, found, additive)
    return found


def seconds_per_pass(task: Task, dense: nn.Module) -> float:
    """Seconds of one sample pass on one thread, from a few timed steps: the basis of the time estimate."""
    inputs, _ = task.split(next(batches(task.train_set, 64)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            outputs = dense(*inputs)
            weights = [p for p in dense.parameters() if p.requires_grad]
            torch.autograd.grad(outputs.square().mean(), weights, allow_unused=True)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds) / len(inputs[0])
