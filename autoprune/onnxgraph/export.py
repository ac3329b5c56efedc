"""ONNX files of PyTorch models, with weights under their state-dict names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from autoprune.errors import StructureError
from autoprune.model.outputs import with_plain_outputs
from autoprune.onnxgraph import attention as onnx_attention
from autoprune.onnxgraph.axes import name_axes
from autoprune.onnxgraph.names import input_names, name_outside
from autoprune.onnxgraph.recurrent import GATES, TRANSLATIONS, name_stacked
from autoprune.runfolder import write_atomic
from autoprune.structure import GraphModel
from autoprune.structure.capture import quiet
from autoprune.structure.input_sizes import InputSizes
from autoprune.structure.module import evaluating
from autoprune.structure.traceable import traceable

_TRANSPOSED = "_transposed"
_MOST_BYTES = 2**31 - 2**24
"""Weights that fit in a file of 2 GiB, the most that protobuf writes, beside the graph."""

_ADVICE = {
    "grouped_mm": 'Before pruning, call model.set_experts_implementation("batched_mm"): the same experts in operators '
    "that ONNX has",
}
"""What to do about operators that ONNX lacks, by a part of their name."""


def export_onnx(
    model: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    path: str | Path | None = None,
    *,
    dynamic_batch: bool = True,
    sizes: InputSizes | None = None,
) -> onnx.ModelProto:
    """Export `model` in eval mode, with constant weights under their state-dict names; write it to `path` if given.

    Inputs are named after the arguments of `forward`, outputs after the keys and fields of what it returns.
    The batch axis is named `batch`. With `sizes`, the free sizes of the inputs are axes with names, too: `x_2` is
    dimension 2 of the input `x`, or of another input that always has the same size; without, they are the examples'.
    Batch norm is folded into convolutions. The file is written atomically. The model is left as it was.
    Raises `StructureError` that names the operator when the exporter cannot translate the model, and for a model of
    more than 2 GB.
    """
    _require_size(sum(p.numel() * p.element_size() for p in model.parameters()))  # before minutes in the exporter
    inputs = tuple(batch_of_two(x) for x in example_inputs) if dynamic_batch else tuple(example_inputs)
    varargs = _takes_varargs(model)
    shapes = dynamic_shapes(inputs, varargs, sizes) if dynamic_batch else None
    try:
        with _quiet(), torch.no_grad(), traceable(model), evaluating(model):
            traced = with_plain_outputs(model.with_stand_ins() if isinstance(model, GraphModel) else model)
            program = torch.onnx.export(
                traced, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes,
                custom_translation_table=TRANSLATIONS | onnx_attention.TRANSLATIONS,
            )  # fmt: skip
    except Exception as error:
        reason = _reason(error)
        advice = next((text for name, text in _ADVICE.items() if name in reason), "Replace that operator")
        raise StructureError(
            f"the model cannot be exported to ONNX: {reason}. {advice}, or deploy PyTorch itself (--target torch-cpu)."
        ) from error
    assert program is not None
    proto = program.model_proto
    name_outside(proto.graph, input_names(model, len(inputs)), program.exported_program)
    _strip_metadata(proto)
    if sizes is not None:
        name_axes(proto.graph, sizes)
    name_stacked(proto.graph, model)
    _name_transposed(proto.graph, model)
    if path is not None:
        write_atomic(Path(path), serialized(proto))
    return proto


def serialized(model: onnx.ModelProto) -> bytes:
    """Content of the model's file; `StructureError` for more than 2 GB."""
    # Counted, because the sum of the parameters is not what a file holds: shared weights may be stored twice.
    _require_size(sum(math.prod(i.dims) * _bytes_of_one(i.data_type) for i in model.graph.initializer))
    return model.SerializeToString()


def _bytes_of_one(data_type: int) -> int:
    return helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _require_size(weight_bytes: int) -> None:
    if weight_bytes > _MOST_BYTES:
        raise StructureError(
            f"an ONNX file holds at most {_MOST_BYTES / 1e9:.2f} GB of weights, and this model has "
            f"{weight_bytes / 1e9:.2f} GB"
        )


def with_constant_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every floating-point weight holds one number, 1 / fan-in, so that a zip file of it is small.

    Dense kernels take as long for equal numbers as for others, and this number keeps activations in range.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for initializer in copied.graph.initializer:
        weight = numpy_helper.to_array(initializer)
        if weight.dtype.kind == "f" and weight.size > 1:
            value = 1 / max(1, int(np.prod(weight.shape[1:])))
            initializer.CopyFrom(numpy_helper.from_array(np.full_like(weight, value), initializer.name))
    return copied


def batch_of_two(x: torch.Tensor) -> torch.Tensor:
    """Repeat the first example, because the exporter turns a batch of one into a constant."""
    return x[:1].expand(2, *x.shape[1:]).contiguous() if x.dim() else x


def _takes_varargs(model: nn.Module) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return bool(kinds) and kinds[0] is inspect.Parameter.VAR_POSITIONAL


def dynamic_shapes(inputs: Sequence[torch.Tensor], varargs: bool, sizes: InputSizes | None) -> tuple[Any, ...]:
    """One shape for each input, nested like the arguments of `forward`: those of `*args` are one tuple."""
    batch = torch.export.Dim("batch")
    shapes: list[dict[int, Any]] = [{0: batch} if x.dim() else {} for x in inputs]
    for number, dim, _ in sizes.free() if sizes else ():
        if number < len(inputs) and dim < inputs[number].dim():  # else the export itself says what does not fit
            shapes[number][dim] = torch.export.Dim.AUTO
    return (tuple(shapes),) if varargs else tuple(shapes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress, logs and deprecation warnings; its errors still come as exceptions."""
    with quiet(), redirect_stdout(StringIO()):
        yield


def _reason(error: BaseException) -> str:
    """First line of the innermost error: the exporter wraps it in advice on how to debug the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces and annotations: they hold paths of the exporting machine."""
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]
    for part in [*proto.graph.node, *values]:
        del part.metadata_props[:]
        part.doc_string = ""


def plain_name(name: str) -> str:
    """State-dict name of a value, whether as it is, transposed, stacked, quantized, or out of a dequantization."""
    return _stored_name(name).removesuffix(_TRANSPOSED).removesuffix(GATES)


def is_transposed(name: str) -> bool:
    """Whether a value holds a weight with its two dimensions exchanged."""
    return _stored_name(name).endswith(_TRANSPOSED)


def _stored_name(name: str) -> str:
    return name.removesuffix("_DequantizeLinear_Output").removesuffix("_quantized")


def _name_transposed(graph: onnx.GraphProto, model: nn.Module) -> None:
    """Give weights that the exporter transposed in advance the name of the parameter that they hold."""
    known = {initializer.name for initializer in graph.initializer}
    weights = {n: p.detach().numpy().T for n, p in model.named_parameters() if p.dim() == 2 and n not in known}
    renamed, taken, again = {}, set(), []
    for initializer in graph.initializer:
        if len(initializer.dims) == 2 and weights:
            value = numpy_helper.to_array(initializer)
            equal = [n for n, weight in weights.items() if np.array_equal(weight, value)]
            name = next((n for n in equal if n not in taken), equal[0] if equal else None)
            if name is not None:
                again += [initializer] if name in taken else []  # a layer that is called twice
                taken.add(name)
                renamed[initializer.name] = name + _TRANSPOSED
                initializer.name = name + _TRANSPOSED
    for initializer in again:
        graph.initializer.remove(initializer)
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
