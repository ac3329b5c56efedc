"""TorchScript, PyTorch programs (pt2) and OpenVINO files of a model, and runners that load and run such files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autoprune.errors import StructureError, UsageError
from autoprune.model.outputs import output_names, with_plain_outputs
from autoprune.onnxgraph.export import batch_of_two, dynamic_shapes
from autoprune.onnxgraph.names import input_names as names_of_inputs
from autoprune.structure import GraphModel
from autoprune.structure.capture import quiet
from autoprune.structure.input_sizes import InputSizes
from autoprune.structure.module import evaluating
from autoprune.structure.traceable import traceable

Runner = Callable[[Sequence[torch.Tensor]], list[np.ndarray]]
"""Runs a file on inputs and returns its outputs in order."""

# The guards of a program refuse sizes at which it was not traced, such as a batch of one where `b * n` divides by `n`.
# That it computes the same there is what `output_difference` proves.


_LOADERS: dict[str, Callable[[Path], Any]] = {
    "torchscript": torch.jit.load,
    "pt2": lambda path: torch.export.load(path).module(check_guards=False),
}


def write_torchscript(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    path: Path,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> None:
    """Trace a model of the user's own classes and write it; outputs keep their keys.

    Args:
        model: of the user's own classes.
        inputs: examples, batch dimension first.
        path: file to write.
        input_names: of the arguments of the file's `forward`; by default those of the model.
        output_names: keys of the outputs, which are a dict then.

    Raises:
        StructureError: when PyTorch cannot trace it.
    """
    try:
        with quiet(), torch.no_grad(), evaluating(model):
            view, examples = with_plain_outputs(model), tuple(map(batch_of_two, inputs))
            if input_names or output_names:
                view = _Named(view, input_names or names_of_inputs(model, len(inputs)), output_names).eval()
            traced = torch.jit.trace(view, examples, strict=False, check_trace=False)
            torch.jit.save(traced, path)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = _line(error)
        raise StructureError(f"the model cannot be traced to TorchScript: {reason}. Export pt2 or onnx") from error


class _Named(nn.Module):
    """A model whose `forward` has arguments of other names, and whose output tensors have the names that are given."""

    def __init__(self, model: nn.Module, input_names: Sequence[str], output_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model

        def forward(*inputs: torch.Tensor) -> Any:
            outputs = self.model(*inputs)
            tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
            return dict(zip(output_names, tensors, strict=True)) if output_names else outputs

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in input_names])
        forward.__signature__ = signature  # type: ignore[attr-defined]  (the tracer reads the names from it)
        self.forward = forward


def write_pt2(
    model: GraphModel,
    inputs: Sequence[torch.Tensor],
    path: Path,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> InputSizes | None:
    """Write the program of `torch.export`: inputs have the names of arguments, several outputs those of keys.

    Args:
        model: in the form of a graph.
        inputs: examples, batch dimension first.
        path: file to write.
        input_names: of the inputs; by default those of the model.
        output_names: keys of the outputs, which are a dict then.

    Returns:
        The sizes that the program leaves free besides the batch; `None` when they are the examples'.

    Raises:
        StructureError: when PyTorch cannot export it.
    """
    program, wide = _program(model, input_names, output_names), tuple(map(batch_of_two, inputs))
    if model.sizes.symbols():
        with suppress(StructureError):  # an operator that the exporter takes for fixed sizes alone
            return model.sizes if _write_program(program, model, wide, path, model.sizes) else None
    _write_program(program, model, wide, path, None)
    return None


def _write_program(
    program: fx.GraphModule, model: GraphModel, inputs: tuple[torch.Tensor, ...], path: Path, sizes: InputSizes | None
) -> bool:
    """Export and write a program; return whether all sizes that were to be free are."""
    try:
        with quiet(), torch.no_grad(), traceable(model):
            exported = torch.export.export(program, inputs, dynamic_shapes=dynamic_shapes(inputs, False, sizes))
            torch.export.save(exported, path)
        taken = exported.graph_signature.user_inputs
        shapes = [node.meta["val"].shape for node in exported.graph.nodes if node.name in taken]
        return not any(str(shapes[n][dim]).isdigit() for n, dim, _ in (sizes.free() if sizes else ()))
    except Exception as error:  # the exporter raises classes of its own that are not public
        raise StructureError(f"the model cannot be exported to pt2: {_line(error)}. Export onnx") from error


def write_openvino(onnx: Path, path: Path) -> None:
    """Convert an ONNX file, weights in full precision: `model.xml` and `model.bin` beside it.

    Raises:
        UsageError: when OpenVINO is not installed.
        StructureError: when OpenVINO cannot convert the file.
    """
    openvino = _openvino()
    try:
        openvino.save_model(openvino.convert_model(str(onnx)), str(path), compress_to_fp16=False)
    except Exception as error:  # the errors of OpenVINO have no class of their own that is public
        raise StructureError(f"OpenVINO cannot convert the model: {_line(error)}. Export onnx") from error


def runner_of(format: str, path: Path) -> Runner:
    """Load a file of a format other than ONNX, as a script that deploys it does."""
    if format == "openvino":
        compiled = _openvino().Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda inputs: [np.asarray(value) for value in compiled([x.numpy() for x in inputs]).values()]
    with quiet():
        return runner_of_module(_LOADERS[format](path))


def runner_of_module(module: Any) -> Runner:
    """Return a function that runs a module of PyTorch and returns the numbers of its outputs."""

    def run(inputs: Sequence[torch.Tensor]) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in pytree.tree_leaves(module(*inputs)) if isinstance(x, torch.Tensor)]

    return run


def _program(model: GraphModel, input_names: Sequence[str], outputs_as: Sequence[str]) -> fx.GraphModule:
    """Return the evaluation graph with one tensor, a tuple, or a dict of names as its output."""
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    graph.graph_copy(model.captures[False].graph, values)
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(arguments, input_names or model.input_names, strict=True):
        node.target = name
    (leaves,) = next(node for node in reversed(model.captures[False].graph.nodes) if node.op == "output").args
    names = output_names(model.captures[False].out_spec)
    named = {n: values[leaf] for n, leaf in zip(names, leaves, strict=True) if isinstance(leaf, fx.Node)}  # type: ignore[arg-type]
    if outputs_as:
        graph.output(dict(zip(outputs_as, named.values(), strict=True)))
    elif len(named) == 1:
        graph.output(next(iter(named.values())))
    else:
        graph.output(tuple(named.values()) if all(name.isdigit() for name in named) else named)
    return fx.GraphModule(model, graph).eval()


def _openvino() -> Any:
    try:
        import openvino  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
        raise UsageError("OpenVINO is not installed: `pip install 'autoprune[openvino]'`, or export onnx") from error
    return openvino


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
