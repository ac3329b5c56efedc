"""ONNX files: exported from PyTorch once, then resized to any policy without the exporter."""

from __future__ import annotations

import inspect
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from autoprune.errors import LatencyError, StructureError
from autoprune.latency import onnx_attention
from autoprune.latency.onnx_branches import remove_branches
from autoprune.latency.onnx_recurrent import GATES, TRANSLATIONS, name_stacked, set_hidden_sizes
from autoprune.latency.onnx_sizes import LearnedSizes
from autoprune.records import Policy
from autoprune.runfolder import write_atomic
from autoprune.structure import GraphModel, Structure
from autoprune.structure.whole_layers import whole_layers

_TRANSPOSED = "_transposed"
_SMALLEST = 1e-30
"""Weights below are set to 0: arithmetic on denormals is up to 100 times slower and would be taken for a latency."""


def export_onnx(
    model: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    path: str | Path | None = None,
    *,
    dynamic_batch: bool = True,
) -> onnx.ModelProto:
    """Export `model` in eval mode, with constant weights under their state-dict names; write it to `path` if given.

    Batch norm is folded into convolutions. The file is written atomically. The model is left as it was.
    Raises `StructureError` that names the operator when the exporter cannot translate the model.
    """
    training = {module: module.training for module in model.modules()}
    inputs = tuple(_batch_of_two(x) for x in example_inputs) if dynamic_batch else tuple(example_inputs)
    varargs = _takes_varargs(model)
    shapes = _dynamic_shapes(inputs, varargs) if dynamic_batch else None
    names = list(model.input_names) if isinstance(model, GraphModel) else None
    try:
        with _quiet(), torch.no_grad(), whole_layers():
            traced = model.with_stand_ins() if isinstance(model, GraphModel) else model.eval()
            program = torch.onnx.export(
                traced, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes, input_names=names,
                custom_translation_table=TRANSLATIONS | onnx_attention.TRANSLATIONS,
            )  # fmt: skip
    except Exception as error:
        raise StructureError(
            f"the model cannot be exported to ONNX: {_reason(error)}. Replace that operator, or deploy "
            "PyTorch itself (--target torch-cpu)."
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    assert program is not None
    proto = program.model_proto
    _strip_metadata(proto)
    name_stacked(proto.graph, model)
    _name_transposed(proto.graph, model)
    if path is not None:
        write_atomic(Path(path), proto.SerializeToString())
    return proto


def with_constant_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every floating-point weight holds one number, 1 / fan-in, so that a zip file of it is small.

    Dense kernels take as long for equal numbers as for others, and this number keeps activations in range.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for initializer in found.graph.initializer:
        weight = numpy_helper.to_array(initializer)
        if weight.dtype.kind == "f" and weight.size > 1:
            value = 1 / max(1, int(np.prod(weight.shape[1:])))
            initializer.CopyFrom(numpy_helper.from_array(np.full_like(weight, value), initializer.name))
    return found


class Resizer:
    """Builds the ONNX file of any policy by slicing the weights of the dense export; milliseconds per policy.

    The kept channels are the first of every unit, so that `structure.shrink(policy)` is the same function.
    `sizes` are numbers in the graph that follow widths. Raises `LatencyError` when the dense export holds a weight that
    cannot be traced back to the state dict.
    """

    def __init__(self, dense: onnx.ModelProto, structure: Structure, sizes: LearnedSizes | None = None) -> None:
        self._structure = structure
        self._weights = {i.name: _without_denormals(numpy_helper.to_array(i)) for i in dense.graph.initializer}
        self._graph = onnx.ModelProto()
        self._graph.CopyFrom(dense)
        self._sizes = sizes
        self._places = {place: f"size_{place[0]}_{place[1]}" for place in (sizes.alone if sizes else ())}
        for (number, place), name in self._places.items():
            self._graph.graph.node[number].input[place] = name  # a constant may serve several nodes
        _free_reshapes(self._graph.graph, self._weights)
        del self._graph.graph.initializer[:]
        del self._graph.graph.value_info[:]  # shapes of the dense model
        self._owners = _bias_owners(self._graph.graph, self._weights)
        self._parameters = structure.tensors.keys()
        self._groups = {name: o.groups for o in structure.operators if o.op.startswith("conv") for name in o.parameters}

    def resize(self, policy: Policy) -> bytes:
        """Serialised ONNX model of `policy`."""
        kept = self._structure.kept(policy)
        widths = self._structure.widths([policy])
        proto = onnx.ModelProto()
        proto.CopyFrom(self._graph)
        for node in proto.graph.node:
            groups = self._groups.get(plain_name(node.input[1])) if node.op_type.startswith("Conv") else None
            if groups is not None:
                _set_groups(node, int(groups(widths)[0]))
        dead = {name for name in self._weights if self._is_dead(name, kept)}
        sliced = {name: self._sliced(name, w, kept) for name, w in self._weights.items() if name not in dead}
        proto.graph.initializer.extend(numpy_helper.from_array(weight, name) for name, weight in sliced.items())
        for place, name in self._places.items():
            assert self._sizes is not None
            proto.graph.initializer.append(numpy_helper.from_array(self._sizes.at(place, widths[0]), name))
        set_hidden_sizes(proto.graph, sliced)
        if dead:
            remove_branches(proto.graph, dead)
        return proto.SerializeToString()

    def _is_dead(self, name: str, kept: Mapping[str, tuple[np.ndarray | None, ...]]) -> bool:
        """Whether a weight is of a removed branch."""
        owner, _ = self._owners.get(name, (plain_name(name), 0))
        return owner in self._parameters and owner not in kept

    def _sliced(self, name: str, weight: np.ndarray, kept: Mapping[str, tuple[np.ndarray | None, ...]]) -> np.ndarray:
        if name in self._owners:
            owner, dim = self._owners[name]
            indices: tuple[np.ndarray | None, ...] = kept.get(owner, (None,) * (dim + 1))[dim : dim + 1]
        else:
            indices = kept.get(plain_name(name), ())
            indices = indices[::-1] if is_transposed(name) else indices
            indices = _stacked(indices, weight) if name.endswith(GATES) else indices
        if len(indices) not in (0, weight.ndim):
            raise LatencyError(
                f"the weight {name!r} has {weight.ndim} dimensions in ONNX but {len(indices)} in the model"
            )
        for dim, index in enumerate(indices):
            if index is not None:
                weight = weight.take(index, axis=dim)
        return np.ascontiguousarray(weight) if weight.ndim else weight


def _stacked(indices: tuple[np.ndarray | None, ...], weight: np.ndarray) -> tuple[np.ndarray | None, ...]:
    """Indices of a recurrent weight with a dimension of directions before its own; biases are two in one dimension.

    Every gate keeps the same hidden units, so that the order of the gates does not matter.
    """
    if weight.ndim == 3 or not indices or indices[0] is None:
        return (None, *indices) if indices else ()
    return None, np.concatenate([indices[0], indices[0] + weight.shape[1] // 2])


def _batch_of_two(x: torch.Tensor) -> torch.Tensor:
    """Repeat the first example, because the exporter turns a batch of one into a constant."""
    return x[:1].expand(2, *x.shape[1:]).contiguous() if x.dim() else x


def _takes_varargs(model: nn.Module) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return bool(kinds) and kinds[0] is inspect.Parameter.VAR_POSITIONAL


def _dynamic_shapes(inputs: Sequence[torch.Tensor], varargs: bool) -> tuple[Any, ...]:
    """One shape for each input, nested like the arguments of `forward`: those of `*args` are one tuple."""
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if x.dim() else {} for x in inputs)
    return (shapes,) if varargs else shapes


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress, logs and deprecation warnings; its errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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


def _without_denormals(weight: np.ndarray) -> np.ndarray:
    return np.where(np.abs(weight) < _SMALLEST, np.zeros_like(weight), weight) if weight.dtype.kind == "f" else weight


def _free_reshapes(graph: onnx.GraphProto, weights: dict[str, np.ndarray]) -> None:
    """Make reshapes fit every policy: leading dimensions that stay are copied, and `[batch, features]` is inferred."""
    shapes = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    for node in list(graph.node):
        shape = weights.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None:
            continue
        before, after = (shapes.get(plain_name(name), []) for name in (node.input[0], node.output[0]))
        merges = before and after and before[0] != after[0]  # its first dimension is not that of its input
        if shape.shape == (2,) and (shape[0] <= 0 < shape[1] or tuple(shape) == (0, -1)) and not merges:
            sizes = [0, -1]
        else:
            same = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
            if len(same) < 2:
                continue
            sizes = [0] * len(same) + shape.tolist()[len(same) :]
        # A constant may serve several reshapes of different inputs.
        node.input[1] = f"{node.output[0]}_shape"
        weights[node.input[1]] = np.array(sizes, dtype=np.int64)
        del node.attribute[:]  # `allowzero` would read the 0 as an empty dimension, not as a copy


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
    missing = {n: p.detach().numpy().T for n, p in model.named_parameters() if p.dim() == 2 and n not in known}
    renamed = {}
    for initializer in graph.initializer:
        if len(initializer.dims) == 2 and missing:
            value = numpy_helper.to_array(initializer)
            name = next((n for n, weight in missing.items() if np.array_equal(weight, value)), None)
            if name is not None:
                del missing[name]
                renamed[initializer.name] = name + _TRANSPOSED
                initializer.name = name + _TRANSPOSED
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)


def _bias_owners(graph: onnx.GraphProto, weights: Mapping[str, np.ndarray]) -> dict[str, tuple[str, int]]:
    """Biases that batch-norm folding created, with the weight and the dimension whose indices they belong to."""
    stored = {plain_name(name): name for name in weights}
    nodes = [n for n in graph.node if n.op_type in {"Conv", "Gemm", "ConvTranspose"} and len(n.input) > 2]
    found = {stored.get(plain_name(n.input[2])): (plain_name(n.input[1]), _rows(n)) for n in nodes}
    return {bias: owner for bias, owner in found.items() if bias is not None}


def _rows(node: onnx.NodeProto) -> int:
    """Which dimension of a weight has an index for each output (none has in grouped transposed convolutions)."""
    return 1 if node.op_type == "ConvTranspose" else 0


def _set_groups(node: onnx.NodeProto, groups: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = groups
