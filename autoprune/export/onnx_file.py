"""Writing the ONNX file of a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autoprune.latency.onnx_model import export_onnx
from autoprune.latency.target import make_target
from autoprune.latency.timing import named_feeds, open_session
from autoprune.task.base import Task


def export_candidate(model: nn.Module, task: Task | Sequence[torch.Tensor], path: str | Path) -> Path:
    """Export `model` in eval mode to `path`: dynamic batch axis, constant weights, written atomically.

    `task` is a task or its example inputs. Raises `StructureError` that names the operator when the exporter cannot
    translate the model, `RunFolderError` when the file cannot be written; an older file is unchanged then.
    """
    example_inputs = task.example_inputs if isinstance(task, Task) else task
    export_onnx(model, example_inputs, path)
    return Path(path)


class OnnxModule(nn.Module):
    """An ONNX file as a module, to score it like any other: inputs and outputs are tensors, batch dimension first."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = open_session(path, make_target("ort-cpu"))

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the file on the CPU; inputs by position or by name."""
        inputs = (*inputs, *(named[entry.name] for entry in self._session.get_inputs()[len(inputs) :]))
        feeds = named_feeds(self._session, [np.ascontiguousarray(x.numpy()) for x in inputs])
        outputs = tuple(torch.from_numpy(np.asarray(value)) for value in self._session.run(None, feeds))
        return outputs[0] if len(outputs) == 1 else outputs
