"""Named axes of an ONNX file: the sizes of its inputs that may differ from the examples'."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from autoprune.structure.input_sizes import InputSizes


def name_axes(graph: onnx.GraphProto, sizes: InputSizes) -> None:
    """Give free sizes the name of the first input and dimension that they are of, in place: `x_2`.

    Sizes of outputs that are computed from them, such as `x_2 // 4`, follow.
    """
    names: dict[str, str] = {}
    for number, dim, _ in sizes.free():
        value = graph.input[number]
        symbol = value.type.tensor_type.shape.dim[dim].dim_param
        if symbol.isidentifier():
            names.setdefault(symbol, f"{value.name}_{dim}")
    rename_axes(graph, names)


def rename_axes(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename the symbols in all sizes of a graph, in place."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), axis.dim_param)


def dynamic_axes(path: Path) -> dict[str, dict[str, str]]:
    """Read the named axes of every input of an ONNX file, such as `{"x": {"0": "batch", "2": "x_2"}}`."""
    return {value.name: dict(_named(value)) for value in onnx.load(path, load_external_data=False).graph.input}


def _named(value: onnx.ValueInfoProto) -> Iterator[tuple[str, str]]:
    for dim, axis in enumerate(value.type.tensor_type.shape.dim):
        if axis.dim_param:
            yield str(dim), axis.dim_param
