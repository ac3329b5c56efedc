"""The numbers of int8 layers, out of a trained model and inputs: ranges, rounded weights, corrected biases.

1. The model runs in fp32. The range of an int8 tensor holds all its numbers, or fewer where that halves the error: of
   the outputs of the int8 layers that read it, or, without a `Rounding`, of the tensor.
2. Weights are rounded to steps of their channel's grid: the nearest ones, or as a `Rounding` says.
3. The int8 model runs, and every bias takes up what the mean output of its channel moved since step 1, layer after
   layer: each corrects for the layers before it, too. The biases of a file are whole steps, so these are as well.

Source: bias correction, Nagel et al. 2019, https://arxiv.org/abs/1906.04721.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.errors import PolicyError, TaskError
from autoprune.quantization.arithmetic import DEFAULT_ARITHMETIC, Arithmetic
from autoprune.quantization.grid import Range, RoundedWeight, bias_in_grid, nearest
from autoprune.quantization.numbers import Quantization
from autoprune.quantization.ranges import CANDIDATES, EXAMPLES, Observer, Rounding, channel_mean
from autoprune.quantization.twin import Folded, biases_of, folded_layers, make_twin
from autoprune.structure import GraphModel
from autoprune.structure.placement import Placement
from autoprune.treatments import DENSE, INT8, Treatment

_NONE: Mapping[str, Treatment] = {}


def calibration_passes(examples: int, *, quick: bool) -> int:
    """Return how many examples pass through a model: in fp32 and in int8, and, unless `quick`, for candidate ranges."""
    return 2 * examples + (0 if quick else CANDIDATES * min(EXAMPLES, examples))


def split_treatments(treatments: Mapping[str, Treatment]) -> tuple[tuple[str, ...], Mapping[str, Treatment]]:
    """Return the names of the layers that are in int8, and the treatments of those that are treated alone.

    Raises:
        PolicyError: one is treated in a way that is not computed here.
    """
    for name, treatment in treatments.items():
        if treatment not in (DENSE, INT8) and not treatment.is_local:
            raise PolicyError(f"no layer is computed as {treatment}; {name!r} is to be. Leave it out of the space")
    int8 = tuple(name for name, treatment in treatments.items() if treatment == INT8)
    return int8, {name: treatment for name, treatment in treatments.items() if treatment.is_local}


def calibrated(
    model: GraphModel,
    placement: Placement,
    int8: Collection[str],
    inputs: tuple[Tensor, ...],
    local: Mapping[str, Treatment] = _NONE,
    rounding: Rounding | None = None,
    arithmetic: Arithmetic = DEFAULT_ARITHMETIC,
) -> Quantization:
    """Return the numbers with which treated layers of a model compute.

    Args:
        model: trained and repaired, in fp32.
        placement: of its evaluation graph.
        int8: names of the int8 layers; those that the graph does not have were removed and are passed over.
        inputs: of the model, tensors `[N, ...]` of some N = 128 training examples; without int8 layers it does not run.
        local: treatments of the layers that are treated alone.
        rounding: of the weights of int8 layers; without one, to the nearest steps.
        arithmetic: of the device.

    Raises:
        TaskError: there is no example.
        TrialError: activations are not finite.
        StructureError: a layer cannot be int8.
    """
    layers = folded_layers(model, placement, int8)
    if not layers:
        return Quantization(ranges={}, weights={}, local=local, arithmetic=arithmetic)
    if not inputs or not all(len(x) for x in inputs):
        raise TaskError("int8 layers take their ranges from one training example or more; got none. Add examples")
    ends = {layer.nodes[0]: layer.ends[0] for layer in layers.values() if len(layer.nodes) == 1}
    observer = Observer(model.evaluation_graph(), placement, layers.keys(), ends, rounding)
    with torch.no_grad():
        observer.run(*inputs)
        ranges = observer.ranges()
        keys = placement.keys(layers.keys())
        scales = {name: _input_scale(layer, placement, keys, ranges) for name, layer in layers.items()}
        largest = arithmetic.largest_weight
        weights = {name: _rounded(layer, scales[name], rounding, largest) for name, layer in layers.items()}
        numbers = Quantization(ranges=ranges, weights=weights, local=local, arithmetic=arithmetic)
        twin = make_twin(model, placement, numbers)
        _Corrector(twin, placement, observer.means).run(*inputs)
    corrected = biases_of(twin, {name: layer.nodes[0] for name, layer in layers.items()})
    on_grid = {name: bias_in_grid(bias, weights[name].scales, scales[name]) for name, bias in corrected.items()}
    return replace(numbers, weights={name: replace(w, bias=on_grid.get(name)) for name, w in weights.items()})


def _input_scale(layer: Folded, placement: Placement, keys: Mapping[str, str], ranges: Mapping[str, Range]) -> float:
    """Return the scale of the tensor that a layer reads; of several calls the smallest, at which biases are largest."""
    read = [placement.tensor_of(placement.steps[node].inputs[0]) for node in layer.nodes]
    return min(ranges[keys[tensor]].scale for tensor in read)


def _rounded(layer: Folded, input_scale: float, rounding: Rounding | None, largest_weight: int) -> RoundedWeight:
    weight, bias = layer.weight.numpy(), None if layer.bias is None else layer.bias.numpy()
    rounded = nearest(weight, bias, input_scale, largest_weight=largest_weight)
    if rounding is None:
        return rounded
    steps = rounding.rounded(
        layer.nodes[0], weight, rounded.scales, centred=bias is not None, largest_weight=largest_weight
    )
    return replace(rounded, steps=steps)


class _Corrector(fx.Interpreter):
    """Runs a twin and moves biases until the mean output of every channel is that of the model in fp32."""

    def __init__(self, twin: GraphModel, placement: Placement, means: Mapping[str, Tensor]) -> None:
        super().__init__(twin.evaluation_graph())
        self._placement, self._means = placement, means

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.name not in self._means or not isinstance(n.args[2], fx.Node):
            return output
        bias = self.env[n.args[2]]
        missing = self._means[n.name] - channel_mean(output, writes_fp32=self._placement.steps[n.name].writes_fp32)
        bias.add_(missing)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.call_function(n.target, args, kwargs)
