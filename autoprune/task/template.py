"""The file that `autoprune init` writes: a task that runs as it is, to be filled in."""

from __future__ import annotations

from pathlib import Path

from autoprune.errors import RunFolderError, UsageError

TEMPLATE = '''\
"""A task for autoprune. It runs as it is; put your model and data in. Then:

    autoprune check --task {file}:make_task       # does every stage work, and how long will a search take?
    autoprune units --task {file}:make_task       # which layers can be pruned, which cannot, and why
    autoprune search --task {file}:make_task --budget 50% --run-dir runs/mine
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import autoprune


def build_model() -> nn.Module:
    """Return your model with trained weights, on the CPU, in float32."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    # model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model


def data(examples: int) -> TensorDataset:
    """Return a map-style data set of (input, target) or of dicts, or a DataLoader over such a data set."""
    return TensorDataset(torch.randn(examples, 3, 32, 32), torch.randint(0, 10, (examples,)))


def make_task() -> autoprune.Task:
    return autoprune.Task(
        name="mine",
        build_model=build_model,
        # Batch dimension first. For a model that takes keywords: {{"input_ids": ids, "attention_mask": mask}}.
        example_inputs=(torch.zeros(1, 3, 32, 32),),
        train_set=data(512),
        val_set=data(128),  # chooses between policies
        test_set=data(128),  # used once, for the final numbers
        loss=F.cross_entropy,  # loss(outputs, target); leave it out to distil to the dense model's outputs
        # outputs="logits",  # for a forward that returns a dict, a dataclass or a tuple: a name, or a function
        # metric=my_metric,  # metric(model, data), higher is better; the default is accuracy
        # train_step=my_step,  # train_step(model, batch) -> loss, where loss(outputs, target) is not enough
        # target="labels",  # which key of dict items is the target
        # recipe=autoprune.Recipe(epochs=10),  # trains the dense model, if build_model returns untrained weights
        # finetune_recipe=autoprune.Recipe(optimizer="adamw", lr=1e-3, batch_size=32),  # trains the pruned models
    )
'''


def write_template(path: Path) -> None:
    """Write the template; `UsageError` for a path that exists or is no Python file."""
    if path.suffix != ".py":
        raise UsageError(f"a task is a Python file; got {path}. Write `autoprune init my_task.py`")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(TEMPLATE.format(file=path))
    except FileExistsError as error:
        raise UsageError(f"{path} exists and is not overwritten; choose another name") from error
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error
