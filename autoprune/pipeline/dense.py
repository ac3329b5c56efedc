"""The dense model of a run: built and analysed first, trained when everything that costs nothing was checked."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from autoprune.config import RunConfig
from autoprune.errors import TaskError
from autoprune.pipeline.events import Events
from autoprune.pipeline.identity import claim
from autoprune.runfolder import RunFolder, write_atomic
from autoprune.structure import Structure, analyze
from autoprune.task.base import Task
from autoprune.task.batches import batches
from autoprune.task.check import check_task
from autoprune.training.dense import build_dense, load_dense, train_dense, weights_to_bytes


def untrained(config: RunConfig, folder: RunFolder, task: Task, events: Events) -> tuple[nn.Module, Structure]:
    """Return the untrained model of a task and its structure; the folder is claimed for them.

    Raises:
        TaskError: for a task that does not fit together, or a model whose parameters are all frozen.
        StructureError: for a model without anything to prune.
        RunFolderError: when the folder holds the results of another task.
    """
    events.stage("Task and units")
    check_task(task)
    model = build_dense(task, seed=config.seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError("every parameter of the model is frozen: let `build_model` leave requires_grad as it is")
    structure = analyze(model, task.example_inputs, task.outputs)
    claim(folder, task, structure)
    return model, structure


def trained_dense(config: RunConfig, folder: RunFolder, task: Task, events: Events) -> nn.Module:
    """Return the trained dense model: that of the folder, of the given file, or trained once by the task's recipe."""
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


def seconds_per_pass(task: Task, dense: nn.Module) -> float:
    """Return the seconds of one sample pass on one thread, from three timed steps: the basis of time estimates."""
    inputs, _ = task.split(next(batches(task.train_set, 64)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            outputs = task.select(dense(*inputs))
            weights = [p for p in dense.parameters() if p.requires_grad]
            torch.autograd.grad(outputs.square().mean(), weights, allow_unused=True)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds) / len(inputs[0])
