"""Ranges of int8 tensors, out of what a model computes on calibration inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from autoprune.errors import TrialError
from autoprune.quantization.grid import Array, Range
from autoprune.quantization.rounding import in_grid
from autoprune.structure import EvaluationGraph
from autoprune.structure.placement import Placement

_VALUES = 1 << 13
"""Numbers of one tensor, drawn at random, that decide about its range."""

_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Narrower ranges that are tried, as shares of the smallest and the largest number."""

_PERCENTILES = (0.9999, 0.999)
"""Further ones: the numbers between this share of all and its counterpart at the other end."""

CANDIDATES = 1 + len(_SHARES) + len(_PERCENTILES)

EXAMPLES, _POSITIONS = 16, 1 << 12
"""Examples that outputs are judged by, or more where they have fewer outputs of a channel than that: vectors, all."""

_WORTHWHILE = 0.5
"""Share of the squared error that must be left where numbers are clipped.

What is clipped is lost in every layer behind; rounding errors average out.
"""


class Rounding(Protocol):
    """Rounds weights after it has seen the inputs of their layers."""

    def observe(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Look at the arguments of a layer's node: input, weight, bias and so on."""
        ...

    def rounded(self, node: str, weight: Array, scales: Array, *, centred: bool, largest_weight: int) -> Array:
        """Return a weight `[O, ...]` in whole steps of its channels' `scales` `[O]`, int8.

        `centred` says that the layer has a bias, which takes up what rounding moves the mean of its outputs. No step is
        beyond `largest_weight`.
        """
        ...


class Observer(fx.Interpreter):
    """Runs a model in fp32 and keeps what its int8 form is fitted to.

    - `ranges()`: of every int8 tensor, by its key (`Placement.keys`).
    - `means`: mean output of every channel of an int8 layer `[O]`, by the node of the layer; a batch norm that is
      folded into the layer is part of it.

    A `rounding` observes the inputs of the layers that run once.
    """

    def __init__(
        self,
        module: EvaluationGraph,
        placement: Placement,
        int8: Collection[str],
        ends: Mapping[str, str],
        rounding: Rounding | None = None,
    ) -> None:
        super().__init__(module)
        self._placement = placement
        self._keys = placement.keys(int8)
        tensors = placement.int8_tensors(int8)
        self._at = {step: tensor for tensor in tensors for step in placement.quantized_at(tensor)}
        self._once, self._rounding = set(ends), rounding
        self._layer_of_end = {end: node for node, end in ends.items()}
        self._values: dict[str, list[Tensor]] = {tensor: [] for tensor in tensors}
        self._extremes: dict[str, list[Tensor]] = {tensor: [] for tensor in tensors}
        self.means: dict[str, Tensor] = {}
        self._int8 = set(int8)
        self._candidates: dict[str, list[Range]] = {}
        self._errors: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and look at its output."""
        if self._rounding is not None and n.name in self._once:
            self._rounding.observe(n, self.fetch_args_kwargs_from_env(n)[0])
        output = super().run_node(n)
        step = self._placement.steps.get(n.name)
        if self._rounding is not None and step is not None and step.kind == "layer" and step.layer in self._int8:
            self._judge_range(n, output)
        tensor = self._at.get(n.name)
        if tensor is not None:
            flat = output.detach().reshape(-1)
            self._values[tensor].append(flat[torch.randint(len(flat), (_VALUES,), generator=self._generator)])
            self._extremes[tensor] += [*torch.aminmax(flat)]
        if n.name in self._layer_of_end:
            layer = self._layer_of_end[n.name]
            self.means[layer] = channel_mean(output, writes_fp32=self._placement.steps[layer].writes_fp32)
        return output

    def _judge_range(self, n: fx.Node, output: Tensor) -> None:
        """Add how far the outputs of an int8 layer move when its input is rounded in each of some ranges."""
        tensor = self._placement.tensor_of(self._placement.steps[n.name].inputs[0])
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        if x.dim() > 1:
            examples = max(EXAMPLES, _POSITIONS * len(x) * rest[0].shape[0] // output.numel())
            x, output = x[:examples], output[:examples]
        spread = output.var(correction=0).clamp(min=torch.finfo(output.dtype).tiny)
        errors = []
        for candidate in self._candidates_of(tensor):
            rounded = in_grid(x, candidate.scale, candidate.zero_point)
            moved = self.call_function(n.target, (rounded, *rest), kwargs) - output  # type: ignore[arg-type]
            errors.append(moved.square().mean() / spread)
        self._errors[tensor] = self._errors.get(tensor, torch.zeros(())) + torch.stack(errors)

    def _candidates_of(self, tensor: str) -> list[Range]:
        """Return ranges of a tensor that was written; `TrialError` where a number is not finite."""
        if tensor not in self._candidates:
            extremes = torch.stack(self._extremes[tensor])
            if not bool(torch.isfinite(extremes).all()):
                raise TrialError(f"activations must be finite on calibration data; {tensor!r} is not")
            self._candidates[tensor] = candidate_ranges(torch.cat(self._values[tensor]), extremes)
        return self._candidates[tensor]

    def ranges(self) -> dict[str, Range]:
        """Return the range of every int8 tensor that was written.

        It loses least in the outputs of the int8 layers that read the tensor; without a rounding, which would take as
        much time, or where no layer reads it, in its own numbers.

        Raises:
            TrialError: a number is not finite.
        """
        by_key = {}
        for tensor, values in self._values.items():
            if values:
                candidates = self._candidates_of(tensor)
                errors = self._errors[tensor] if tensor in self._errors else own_errors(torch.cat(values), candidates)
                by_key[self._keys[tensor]] = best_range(candidates, errors)
        return by_key


def candidate_ranges(values: Tensor, extremes: Tensor | Sequence[float]) -> list[Range]:
    """Return ranges of a tensor: all its numbers, shares of that range, and percentiles.

    Args:
        values: a sample of its numbers `[N]`.
        extremes: numbers between the smallest and the largest of which all are.
    """
    low, high = float(min(extremes)), float(max(extremes))
    ordered = values.sort().values
    ends = [(ordered[round((1 - p) * (len(values) - 1))], ordered[round(p * (len(values) - 1))]) for p in _PERCENTILES]
    shares = [(low * share, high * share) for share in (1.0, *_SHARES)]
    return [Range(low=float(first), high=float(last)) for first, last in (*shares, *ends)]


def own_errors(values: Tensor, candidates: Sequence[Range]) -> Tensor:
    """Return the mean squared error of numbers `[N]` in each of some ranges `[C]`."""
    rounded = (in_grid(values, candidate.scale, candidate.zero_point) for candidate in candidates)
    return torch.stack([(each - values).square().mean() for each in rounded])


def best_range(candidates: Sequence[Range], errors: Tensor) -> Range:
    """Return the first of some ranges, or the one with the least error `[C]` where that is half as much or less.

    Example:
        >>> values = torch.linspace(0, 1, 256)
        >>> candidates = candidate_ranges(values, [0.0, 10.0])
        >>> best_range(candidates, own_errors(values, candidates))
        Range(low=0.0, high=1.0)
    """
    best = int(errors.argmin())
    return candidates[best if bool(errors[best] < _WORTHWHILE * errors[0]) else 0]


def channel_mean(output: Tensor, *, writes_fp32: bool) -> Tensor:
    """Return the mean of every channel `[O]` of a layer's output.

    Channels are the last dimension of a linear layer, which `writes_fp32`, and the second of a convolution.
    """
    channels = output.dim() - 1 if writes_fp32 else 1
    return output.mean([dim for dim in range(output.dim()) if dim != channels])
