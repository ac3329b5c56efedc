"""The dense model of a run: built and analysed first, trained when everything that costs nothing was checked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune import memory_limits
from autoprune.config import RunConfig
from autoprune.errors import TaskError
from autoprune.manifest import Manifest, State
from autoprune.pipeline.events import DENSE, TASK, Events
from autoprune.pipeline.identity import claim
from autoprune.pipeline.vocabulary import built_model, described_maps
from autoprune.pruning.vocabulary import with_maps
from autoprune.runfolder import RunFolder
from autoprune.structure import Structure, analyze
from autoprune.task.base import Task
from autoprune.task.batches import batches
from autoprune.task.check import check_task
from autoprune.training.dense import load_dense, train_dense, weights_to_bytes

_FEW, _MOST_EXAMPLES, _STEP_SECONDS = 2, 64, 1.0
"""Examples of a timed training step at least and at most, and its seconds at most where there is a choice."""

_TIMING_SECONDS = 0.3
"""Short steps are repeated for so long: the first ones of a process take several times as long as later ones."""


_REASONS = {
    State.CHANGED: "is not what this run wrote",
    State.STALE: "was made from a file that was made anew since",
}


def untrained(config: RunConfig, folder: RunFolder, task: Task, events: Events) -> tuple[nn.Module, Structure]:
    """Return the untrained model of a task and its structure; the folder is claimed for them.

    Raises:
        ConfigError: where the space asks for a vocabulary and the model has no rows to lose.
        TaskError: for a task that does not fit together, or a model whose parameters are all frozen.
        StructureError: for a model without anything to prune.
        RunFolderError: when the folder holds the results of another task.
    """
    for file in Manifest(folder).settle():
        events.note(f"{file.name} {_REASONS[file.state]}; it is made again")
    events.stage(TASK)
    check_task(task)
    model = built_model(config, task, dense=[folder.dense], seed=config.seed)
    if maps := described_maps(model):
        events.note(f"without rows of ids that the data never use: {maps}. Sizes of the dense model are without them")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError("every parameter of the model is frozen: let `build_model` leave requires_grad as it is")
    structure = analyze(model, task.example_inputs, task.outputs)
    claim(folder, task, structure)
    return model, structure


def trained_dense(
    config: RunConfig, folder: RunFolder, task: Task, events: Events, maps: Mapping[str, Tensor]
) -> nn.Module:
    """Return the trained dense model: that of the folder, of the given file, or trained once by the task's recipe.

    Its embeddings have the rows of `maps` of ids, by name; training comes before.
    """
    if folder.dense.exists():
        return load_dense(task, folder.dense)
    events.stage(DENSE)
    if config.dense is not None:
        dense = load_dense(task, Path(config.dense))
        events.note(f"weights of {config.dense}, not trained")
    else:
        dense = train_dense(
            task,
            seed=config.seed,
            on_progress=lambda done, total, loss: events.advance(done, total, f"training, loss {loss:.3f}"),
        )
    Manifest(folder).write_again(folder.dense, weights_to_bytes(with_maps(dense, maps)))
    return load_dense(task, folder.dense)


def seconds_per_pass(task: Task, dense: nn.Module) -> float:
    """Return the seconds of one sample pass on one thread: the basis of time estimates.

    The fastest of at least three steps counts, each of as many examples, 2 to 64, as take about a second and as fit
    into `memory_limits.CHECK_STEP_BYTES`.
    """
    inputs, _ = task.split(next(batches(task.train_set, _MOST_EXAMPLES)))
    with _one_thread():
        affordable = affordable_examples(dense, inputs)
        first_s = _step_seconds(task, dense, inputs, _FEW)
        count = max(_FEW, min(affordable, len(inputs[0]), int(_FEW * _STEP_SECONDS / first_s)))
        steps = [_step_seconds(task, dense, inputs, count) for _ in range(3 if count > _FEW else 2)]
        while sum(steps) < _TIMING_SECONDS:
            steps.append(_step_seconds(task, dense, inputs, count))
    return min(steps) / min(count, len(inputs[0]))


def affordable_examples(model: nn.Module, inputs: Sequence[torch.Tensor]) -> int:
    """Return the number of examples, at least 2, whose training step fits into `memory_limits.CHECK_STEP_BYTES`.

    Tensors that autograd keeps for the backward pass of two examples are counted, weights apart.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    few = [_first(x, _FEW).clone() for x in inputs]  # a part would be kept with all of its storage
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = model(*few)
    del outputs
    each = sum(kept.values()) / len(few[0])
    return max(_FEW, int(memory_limits.CHECK_STEP_BYTES / max(each, 1)))


def _first(x: torch.Tensor, count: int) -> torch.Tensor:
    return x[:count] if x.dim() else x


def _step_seconds(task: Task, dense: nn.Module, inputs: Sequence[torch.Tensor], count: int) -> float:
    """Return the seconds of the gradients of a mean square over the first `count` examples."""
    start = time.perf_counter()
    outputs = task.select(dense(*(_first(x, count) for x in inputs)))
    weights = [p for p in dense.parameters() if p.requires_grad]
    torch.autograd.grad(outputs.square().mean(), weights, allow_unused=True)
    return time.perf_counter() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
