"""Writing the ONNX file of a candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.device.connect import make_target
from autoprune.device.timing import named_feeds, open_session
from autoprune.errors import StructureError, UsageError
from autoprune.export.verify import parity, runs_at_second_size
from autoprune.model.acceptance import ExampleInputs, as_inputs
from autoprune.model.adapters import adapted, keywords_of
from autoprune.model.outputs import Selector, with_selected_output
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.names import renamed_file
from autoprune.onnxgraph.outputs import finite_inputs
from autoprune.runfolder import write_atomic
from autoprune.structure import GraphModel
from autoprune.structure.input_sizes import InputSizes
from autoprune.structure.modes import free_sizes
from autoprune.task.base import Task
from autoprune.temporary import TemporaryFolder

_EXAMPLES = 16
_HALF_LIMIT = 8 * torch.finfo(torch.float16).eps


def export_candidate(
    model: nn.Module,
    task: Task | Sequence[torch.Tensor],
    path: str | Path,
    *,
    sizes: InputSizes | None = None,
) -> Path:
    """Export `model` in eval mode to `path`: named axes for the batch and free sizes, constant weights.

    The file is written atomically; an older file is unchanged when the export fails.

    Args:
        model: any module.
        task: a task, or example inputs of the model.
        path: file to write.
        sizes: free sizes of the inputs; by default those that a captured model has, and the batch alone for others.

    Raises:
        StructureError: when the exporter cannot translate the model (the message names the operator).
        RunFolderError: when the file cannot be written.
    """
    example_inputs = task.example_inputs if isinstance(task, Task) else task
    sizes = model.sizes if isinstance(model, GraphModel) else sizes
    if sizes is not None and sizes.symbols():
        with suppress(StructureError):  # an operator that the exporter translates for fixed sizes alone
            export_onnx(model, example_inputs, path, sizes=sizes)
            if runs_at_second_size(model, path, example_inputs, sizes):
                return Path(path)
    export_onnx(model, example_inputs, path)
    return Path(path)


def export_verified(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | Path,
    *,
    outputs: Selector = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> Path:
    """Export any module to ONNX, and prove that ONNX Runtime computes the same on random inputs in several batches.

    Sizes of inputs that the model leaves free are named axes of the file (`x_2` for dimension 2 of the input `x`), and
    one batch of the proof has other sizes than the example.

    The file is written only after the proof; an older file stays unchanged otherwise. Floating-point inputs are random,
    whole-number inputs repeat the example. For a model that gives no finite numbers on random inputs, all inputs repeat
    the example with 1 % of noise.

    Args:
        model: any module.
        example_inputs: inputs of the model, in the forms that `prune` takes.
        path: file to write.
        outputs: the only part of the model's outputs that the file has (default: all of them): a function of the
            outputs, or the name of an attribute or a key.
        input_names: of the file's inputs in their order; by default the arguments of the model's `forward`.
        output_names: of its outputs in their order; by default the keys of what the model returns.

    Returns:
        The path.

    Raises:
        StructureError: when the exporter cannot translate the model (the message names the operator).
        VerificationError: when outputs differ by more than 1e-4 of the largest output (eight times the resolution of
            float16 for a float16 model), or are NaN in PyTorch already.
        RunFolderError: when the file cannot be written.
        UsageError: for bfloat16, which ONNX Runtime does not run, and for names that do not fit.

    Example:
        >>> import autoprune, torch
        >>> autoprune.export_onnx(torch.nn.Linear(4, 2), torch.randn(1, 4), "linear.onnx").name
        'linear.onnx'
    """
    types = {parameter.dtype for parameter in model.parameters()}
    if torch.bfloat16 in types:
        raise UsageError("ONNX Runtime does not run bfloat16: export model.float(), or model.half()")
    prove = partial(parity, limit=_HALF_LIMIT) if torch.float16 in types else parity
    view = with_selected_output(adapted(model, keywords_of(example_inputs)), outputs)
    inputs = as_inputs(example_inputs)
    generator = torch.Generator().manual_seed(0)
    with TemporaryFolder("export") as folder:
        sizes = view.sizes if isinstance(view, GraphModel) else free_sizes(view, inputs)
        made = export_candidate(view, inputs, folder / "model.onnx", sizes=sizes)
        if input_names or output_names:
            made.write_bytes(renamed_file(made.read_bytes(), input_names, output_names))
        repeated = [_repeated(x) for x in inputs]
        drawn = [_drawn(x, generator) for x in repeated]
        prove(view, made, finite_inputs(view, drawn, repeated, generator), sizes=sizes)
        write_atomic(Path(path), made.read_bytes())
    return Path(path)


def _repeated(example: torch.Tensor) -> torch.Tensor:
    """Return the examples repeated, until there are as many as are tried."""
    if not example.dim():
        return example
    return example.repeat(math.ceil(_EXAMPLES / len(example)), *[1] * (example.dim() - 1))[:_EXAMPLES]


def _drawn(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers in the place of floating-point ones, but of a single one."""
    return torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() and x.dim() else x


class OnnxModule(nn.Module):
    """An ONNX file as a module, to score it like any other: inputs and outputs are tensors, batch dimension first.

    Outputs nest as those of `model` where that is given, and are one tensor or a tuple otherwise.
    """

    def __init__(self, path: Path, model: GraphModel | None = None) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that its parameters are not those of the file
        self._session = open_session(path, make_target("ort-cpu"))

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        """Run the file on the CPU; inputs by position or by name."""
        inputs = (*inputs, *(named[entry.name] for entry in self._session.get_inputs()[len(inputs) :]))
        feeds = named_feeds(self._session, [np.ascontiguousarray(x.numpy()) for x in inputs])
        outputs = tuple(torch.from_numpy(np.asarray(value)) for value in self._session.run(None, feeds))
        if self._model[0] is not None:
            return self._model[0].nested(outputs)
        return outputs[0] if len(outputs) == 1 else outputs
