"""A second size: a captured graph is compared with the model at input sizes that the examples do not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autoprune.model.copying import copy_of
from autoprune.structure.capture import Capture, quiet, with_batch
from autoprune.structure.input_sizes import InputSizes, resized
from autoprune.structure.module import compiled
from autoprune.structure.proof import output_difference, randomize

_BATCH = 2
_STEPS = (1, 2, 4, 8, 16, 32, -1, -2, -4, -8)
"""Differences from the example's size that are tried, and after them twice and half the size."""
_TRIES = 12
_TOLERANCE = 1e-3
"""Both run the same operators in float32, but kernels may add in another order at another size."""


def checked_sizes(
    model: nn.Module, captures: Mapping[bool, Capture], example_inputs: Sequence[torch.Tensor]
) -> InputSizes:
    """Compare captured graphs with their model at a second size.

    Args:
        model: the model, which is left as it was.
        captures: graphs of training (True) and evaluation (False) with equal sizes.
        example_inputs: of the model.

    Returns:
        The sizes, with the second one; sizes at which a graph computes something else, or at which the model itself
        never runs, are fixed.
    """
    sizes = captures[False].sizes
    if not sizes.symbols():
        return sizes
    trial = _Trial(model, captures, example_inputs)
    if sizes.needs and trial.needed(sizes):
        sizes = _with_needs(sizes)
        if not sizes.symbols():
            return sizes
    values, never, wrong = trial.second(sizes)
    sizes = sizes.with_fixed(never, "the model runs at none of the other sizes that were tried")
    sizes = sizes.with_fixed(wrong, "the captured graph computes something else at another size")
    return replace(sizes, second=sizes.shapes_at(values) if values else None)


def _with_needs(sizes: InputSizes) -> InputSizes:
    """Return sizes in which the equations of operators hold: those with a number fix sizes, others are conditions."""
    numbers = [need for need in sizes.needs if need.is_number]
    for need in numbers:
        sizes = sizes.with_fixed(need.symbols, f"{need.line} makes a number of it")
    others = [need for need in sizes.needs if need not in numbers]
    return replace(sizes, conditions=tuple(dict.fromkeys((*sizes.conditions, *others))))


class _Trial:
    """A model on random parameters beside its graphs."""

    def __init__(
        self, model: nn.Module, captures: Mapping[bool, Capture], example_inputs: Sequence[torch.Tensor]
    ) -> None:
        self._model, self._captures = copy_of(model), captures
        self._inputs = [with_batch(x, _BATCH) for x in example_inputs]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (*self._model.parameters(), *self._model.buffers()):
                if tensor.is_floating_point():
                    randomize(tensor, generator)

    def needed(self, sizes: InputSizes) -> bool:
        """Return whether graphs compute something else at a size where the equations of operators do not hold."""
        free = replace(sizes, needs=())
        broken = (v for v in _candidates(sizes.symbols(), free) if not all(n.holds(v) for n in sizes.needs))
        tried = (self._equal_at(sizes, values) for values in islice(broken, _TRIES))
        return next((not works for works in tried if works is not None), False)

    def second(self, sizes: InputSizes) -> tuple[dict[str, int], set[str], set[str]]:
        """Return other sizes by symbol, the symbols at whose other sizes the model never ran, and those of faults."""
        symbols = sizes.symbols()
        values, works = self._first(symbols, sizes)
        if works is not None:
            return (values, set(), set()) if works else ({}, set(), set(symbols))
        alone, never, wrong = dict[str, int](), set[str](), set[str]()
        for symbol, size in symbols.items() if len(symbols) > 1 else ():
            values, works = self._first({symbol: size}, sizes)
            if works:
                alone |= values
            else:
                (never if works is None else wrong).add(symbol)
        return alone, never if len(symbols) > 1 else set(symbols), wrong

    def _first(self, symbols: Mapping[str, int], sizes: InputSizes) -> tuple[dict[str, int], bool | None]:
        """Return the first sizes at which the model runs, and whether graphs compute the same (`None`: never ran)."""
        for values in islice(_candidates(symbols, sizes), _TRIES):
            works = self._equal_at(sizes, values)
            if works is not None:
                return values, works
        return {}, None

    def _equal_at(self, sizes: InputSizes, values: Mapping[str, int]) -> bool | None:
        """Return whether graphs and model compute the same; `None` when the model itself does not run."""
        inputs = [resized(x, shape) for x, shape in zip(self._inputs, sizes.shapes_at(values), strict=True)]
        for training, capture in self._captures.items():
            try:
                expected = self._outputs(self._model.train(training), inputs)
            except Exception:  # a user's forward may raise anything at a size that it is not made for
                return None
            try:
                outputs = self._outputs(self._graph_of(capture), inputs)
                leaves, spec = pytree.tree_flatten(expected)
                if spec != capture.out_spec or not _difference(leaves, pytree.tree_leaves(outputs)) <= _TOLERANCE:
                    return False
            except Exception:  # a size that was written down does not fit
                return False
        return True

    def _graph_of(self, capture: Capture) -> Any:
        run = compiled(capture.graph)
        model = self._model
        for name, tensor in capture.constants.items():
            if name not in model._buffers:
                model.register_buffer(name, tensor)
        return lambda *inputs: run(model, *inputs)

    def _outputs(self, call: Any, inputs: Sequence[torch.Tensor]) -> Any:
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return call(*(x.clone() for x in inputs))


def _candidates(symbols: Mapping[str, int], sizes: InputSizes) -> Iterator[dict[str, int]]:
    """Yield other sizes of symbols, first a different step for each symbol, at which the captured branches hold."""
    steps = [{s: step * (k + 1) for k, s in enumerate(symbols)} for step in _STEPS]
    multiples = [dict(symbols), {s: -(size // 2) for s, size in symbols.items()}]
    equal = [dict.fromkeys(symbols, step) for step in (16, 32)] if len(symbols) > 1 else []
    known = sizes.symbols()
    for by in (*steps, *multiples, *equal):
        values = {s: size + by[s] for s, size in symbols.items()}
        if min(values.values()) > 1 and all(c.holds(known | values) for c in (*sizes.conditions, *sizes.needs)):
            yield values


def _difference(expected: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Return the largest relative difference; entries that are not numbers in both count as equal."""
    both = list(zip(expected, outputs, strict=True))
    numbers = [(a, b) for a, b in both if isinstance(a, torch.Tensor)]
    if any(a.shape != b.shape for a, b in numbers):
        return float("inf")
    if any(not isinstance(a, torch.Tensor) and a != b for a, b in both):
        return float("inf")
    clean = [(a.where(~(a.isnan() & b.isnan()), 0.0), b.where(~(a.isnan() & b.isnan()), 0.0)) for a, b in numbers]
    return output_difference([a for a, _ in clean], [b for _, b in clean])
