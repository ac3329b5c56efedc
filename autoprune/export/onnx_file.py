"""Writing the ONNX file of a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from autoprune.latency.onnx_model import export_onnx
from autoprune.task.base import Task


def export_candidate(model: nn.Module, task: Task | Sequence[torch.Tensor], path: str | Path) -> Path:
    """Export `model` in eval mode to `path`: dynamic batch axis, constant weights, written atomically.

    `task` is a task or its example inputs. Raises `StructureError` that names the operator when the exporter cannot
    translate the model, `RunFolderError` when the file cannot be written; an older file is unchanged then.
    """
    example_inputs = task.example_inputs if isinstance(task, Task) else task
    export_onnx(model, example_inputs, path)
    return Path(path)
