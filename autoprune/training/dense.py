"""The dense model: trained once from the task's recipe, kept as safetensors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autoprune.errors import TaskError
from autoprune.model.randomness import seeded
from autoprune.pruning.vocabulary import maps_of, with_maps
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.training.finetune import OnProgress, finetune


def train_dense(task: Task, *, seed: int = 0, on_progress: OnProgress | None = None) -> nn.Module:
    """Build the task's model, train it by the task's recipe (a model without a recipe is trained already), return it.

    The returned model is in evaluation mode, and depends on the seed and the number of threads alone.
    """
    model = build_dense(task, seed=seed)
    if task.recipe is not None:
        samples = max(1, round(task.dense_epochs * length(task.train_set)))
        finetune(model, task, recipe=task.recipe, samples=samples, seed=seed, on_progress=on_progress)
    return model


def build_dense(task: Task, *, seed: int = 0) -> nn.Module:
    """Build the task's model in evaluation mode, with initial weights drawn from `seed`."""
    with seeded(seed):
        return task.build_model().eval()


def draw_weights(model: nn.Module, seed: int) -> bool:
    """Draw new weights for every module that can, in place, and return whether any could."""
    resets = [reset for module in model.modules() if callable(reset := getattr(module, "reset_parameters", None))]
    with seeded(seed):
        for reset in resets:
            reset()
    return bool(resets)


def load_dense(task: Task, path: Path) -> nn.Module:
    """Build the task's model and load its weights from a safetensors file, with the maps of ids that it has.

    Raises:
        TaskError: the file is absent or damaged, or its weights do not have the names or shapes of the model's.
    """
    if not path.is_file():
        raise TaskError(f"there is no weights file {path}; give a .safetensors file of the dense model")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise TaskError(
            f"{path} is not a readable safetensors file: {error}. Restore it, or delete it if it is part of a "
            "run, which makes it again"
        ) from error
    model = with_maps(build_dense(task), maps_of(weights))
    require_same_shapes(model.state_dict(), weights, path)
    # Modules may ask for the version of their state, which a safetensors file does not hold.
    versioned: Any = OrderedDict(weights)
    versioned._metadata = getattr(model.state_dict(), "_metadata", {})
    model.load_state_dict(versioned)
    return model


def weights_to_bytes(model: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file of all parameters and buffers; tied tensors are stored once per name."""
    return save({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}, metadata)


def require_same_shapes(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    """Raise a `TaskError` that lists the differences when tensors of a file do not have a model's names and shapes."""
    problems = [f"{name} is absent" for name in own.keys() - given.keys()]
    problems += [f"{name} is not in the model" for name in given.keys() - own.keys()]
    for name in own.keys() & given.keys():
        if own[name].shape != given[name].shape:
            problems.append(f"{name} has {tuple(given[name].shape)}, the model {tuple(own[name].shape)}")
    if problems:
        listed = "; ".join(sorted(problems)[:3]) + ("; ..." if len(problems) > 3 else "")
        raise TaskError(f"the weights in {path} must fit the model; {len(problems)} do not: {listed}")
