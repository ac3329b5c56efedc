"""Placement: which tensors of a model are int8, given which of its layers are.

One function for the ONNX writer, the fake-quantized twin and the latency model. The rule:

- A layer in int8 reads int8: its input is quantized. A convolution in int8 writes int8, too; a linear layer turns its
  sums into fp32 where no other layer reads them in int8. Any other tensor is fp32.
- A tensor is quantized once, by its producer. It keeps its scale through steps that only select or move numbers
  (relu, max pooling, reshaping), so that a tensor and what follows through such steps are one *tensor* here.
- A join (addition, concatenation) computes in int8 when all that it reads and its output are int8.
- Every other step computes in fp32.

So a tensor that an fp32 step writes costs a quantization, and one that an fp32 step reads costs a dequantization:
its *boundaries*.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Array = np.ndarray
Kind = Literal["input", "layer", "moves", "join", "other", "output"]

_ALL: Mapping[str, Array] = {}
"""No step is missing in any policy."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a graph: what it is, the names of the steps that it reads, and the name of its layer.

    Kinds: an `input` of the model; a `layer` that can be int8; `moves`, which selects or moves numbers; a `join`;
    any `other` step, also a layer that cannot be int8; `output`, which reads what the model returns.

    A `fused` step moves on its way out of the step before it (relu, a folded batch norm, a bias): between the two,
    nothing is quantized unless another step reads it. `writes_fp32` marks layers that can write fp32 without a
    conversion.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...] = ()
    layer: str = ""
    fused: bool = False
    writes_fp32: bool = False


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """A possible conversion of one tensor: `quantize` (fp32 to int8) or `dequantize` (int8 to fp32)."""

    tensor: str
    direction: Literal["quantize", "dequantize"]
    layers: tuple[str, ...]
    """Layers whose treatments decide whether the conversion takes place."""


class Placement:
    """The tensors of a graph, and how the treatments of layers decide about each.

    Masks are bool arrays `[P]`, one value for each of P policies; `int8` maps names of layers to masks, and layers
    that are left out are fp32. A tensor has the name of the step that made it.

    Example:
        >>> steps = [Step(name="x", kind="input"), Step(name="a", kind="layer", inputs=("x",), layer="a")]
        >>> placement = Placement([*steps, Step(name="y", kind="output", inputs=("a",))])
        >>> sorted(placement.int8_tensors({"a"}))
        ['a', 'x']
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = {step.name: step for step in steps}
        self._tensor: dict[str, str] = {}
        for step in self.steps.values():
            self._tensor[step.name] = self._tensor[step.inputs[0]] if step.kind == "moves" else step.name
        self._readers: dict[str, list[Step]] = {}
        self._direct: dict[str, list[Step]] = {}
        for step in self.steps.values():
            for name in dict.fromkeys(step.inputs):
                self._direct.setdefault(name, []).append(step)
                if step.kind != "moves":
                    self._readers.setdefault(self._tensor[name], []).append(step)

    def tensor_of(self, step: str) -> str:
        """Return the tensor that a step writes: its own, or the one that it moves."""
        return self._tensor[step]

    def quantized_at(self, tensor: str) -> tuple[str, ...]:
        """Return the steps of an int8 tensor whose outputs are quantized: all but those that a fused step alone reads.

        They have one scale, so that all but the first change nothing.
        """
        of_tensor = [step for step, its_tensor in self._tensor.items() if its_tensor == tensor]
        direct = {step: self._direct.get(step, []) for step in of_tensor}
        return tuple(step for step in of_tensor if not (len(direct[step]) == 1 and direct[step][0].fused))

    def keys(self, int8: Collection[str]) -> Mapping[str, str]:
        """Return the name of every tensor that an int8 layer touches: `conv1.weight.output`.

        A tensor that no int8 layer writes is the input of the first, by name, that reads it. Where a layer is called
        again, later calls are numbered: `conv1.weight.2.output`. Other layers have no part in the names: graphs of one
        model may differ in what they take for a layer.
        """
        calls: dict[str, str] = {}
        for step in self.steps.values():
            if step.kind == "layer" and step.layer in int8:
                count = sum(self.steps[name].layer == step.layer for name in calls)
                calls[step.name] = f"{step.layer}.{count + 1}" if count else step.layer
        keys = {}
        for tensor in self.layers_of:
            reading = sorted(calls[reader.name] for reader in self._readers.get(tensor, ()) if reader.name in calls)
            if tensor in calls:
                keys[tensor] = f"{calls[tensor]}.output"
            elif reading:
                keys[tensor] = f"{reading[0]}.input"
        return keys

    @cached_property
    def layers_of(self) -> Mapping[str, tuple[str, ...]]:
        """Layers whose treatments make each tensor int8, when one of them is int8: its readers, mostly its writer."""
        return {tensor: self._layers_of(tensor) for tensor in dict.fromkeys(self._tensor.values())}

    def _layers_of(self, tensor: str) -> tuple[str, ...]:
        writer = self.steps[tensor]
        sides = [*([] if writer.writes_fp32 else [writer]), *self._readers.get(tensor, ())]
        return tuple(dict.fromkeys(step.layer for step in sides if step.kind == "layer"))

    def is_int8(self, tensor: str, int8: Mapping[str, Array]) -> Array:
        """Return whether a tensor is int8, `[P]`."""
        return _any([int8[layer] for layer in self.layers_of[tensor] if layer in int8], int8)

    def runs_in_int8(self, step: Step, int8: Mapping[str, Array], exists: Mapping[str, Array] = _ALL) -> Array:
        """Return whether a layer or a join computes in int8, `[P]`; all other steps never do.

        `exists` holds masks of the steps that some policies lack; a join ignores the inputs that are not there.
        """
        if step.kind == "layer":
            return _any([int8[step.layer]] if step.layer in int8 else [], int8)
        if step.kind != "join":
            return _any([], int8)
        touched = [(~self.is_int8(self._tensor[name], int8), name) for name in (*step.inputs, step.name)]
        return ~_any([fp32 & exists.get(name, True) for fp32, name in touched], int8)

    def meets_fp32(
        self, tensor: str, sides: Iterable[Step], int8: Mapping[str, Array], exists: Mapping[str, Array] = _ALL
    ) -> Array:
        """Return whether a tensor is int8 and one of some steps that write or read it computes in fp32, `[P]`."""
        fp32 = [~self.runs_in_int8(step, int8, exists) & exists.get(step.name, True) for step in sides]
        return self.is_int8(tensor, int8) & _any(fp32, int8)

    def sides_of(self, boundary: Boundary) -> tuple[Step, ...]:
        """Return the steps one of which must compute in fp32 for a conversion: the writer, or the readers."""
        if boundary.direction == "quantize":
            return (self.steps[boundary.tensor],)
        return tuple(self._readers.get(boundary.tensor, ()))

    def boundaries(self, treated: Collection[str]) -> tuple[Boundary, ...]:
        """Return the conversions that can take place when the `treated` layers may be int8."""
        possible = []
        for tensor, layers in self.layers_of.items():
            if not any(layer in treated for layer in layers):
                continue
            for direction, sides in (("quantize", [self.steps[tensor]]), ("dequantize", self._readers.get(tensor, []))):
                if sides:
                    deciding = {*layers, *(layer for step in sides for layer in self.deciding(step))}
                    known = tuple(layer for layer in self._layer_names if layer in deciding and layer in treated)
                    possible.append(Boundary(tensor=tensor, direction=direction, layers=known))  # type: ignore[arg-type]
        return tuple(possible)

    def int8_tensors(self, int8_layers: Collection[str]) -> frozenset[str]:
        """Return the names of the tensors that are int8 when these layers are."""
        return frozenset(t for t, layers in self.layers_of.items() if any(layer in int8_layers for layer in layers))

    @cached_property
    def _layer_names(self) -> Sequence[str]:
        return list(dict.fromkeys(step.layer for step in self.steps.values() if step.kind == "layer"))

    def deciding(self, step: Step) -> tuple[str, ...]:
        """Return the layers that decide whether a step computes in int8."""
        if step.kind == "layer":
            return (step.layer,)
        if step.kind != "join":
            return ()
        return tuple(layer for name in (*step.inputs, step.name) for layer in self.layers_of[self._tensor[name]])


def _any(masks: Sequence[Array], like: Mapping[str, Array]) -> Array:
    """Return whether one of some masks holds, `[P]`; with none of them, nowhere."""
    count = len(next(iter(like.values()))) if like else 1
    return np.logical_or.reduce(masks) if masks else np.zeros(count, dtype=bool)
