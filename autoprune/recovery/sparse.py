"""Zeros among the weights of layers, and what the others become so that outputs change least.

Layer after layer, as `weight_fitting` says, linear layers, convolutions and recurrent layers. Layers with more columns
than `MOST_COLUMNS` lose the weights with the smallest |w_j| times the norm of input j, and those of other kinds
(convolutions of three dimensions, weights that several layers share) the smallest |w|; what is left of these stays as
it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.recovery.layer_fitting import LayerFitter, OutputRecorder, fitted_layers
from autoprune.recovery.weight_fitting import Zeros, mask_of, sparse_weight
from autoprune.structure import GraphModel, module_tensors
from autoprune.structure.low_rank import weight_name


@torch.no_grad()
def make_sparse(model: GraphModel, patterns: Mapping[str, Zeros], inputs: Sequence[Tensor]) -> GraphModel:
    """Return the model after weights of layers became zero as their patterns say, in place, and others were fitted.

    Args:
        model: trained or repaired, in evaluation mode.
        patterns: by the names of weights; a mask in the place of a pattern says itself which weights stay.
        inputs: of the model, tensors `[N, ...]` of some N = 256 training examples.

    Raises:
        TrialError: activations are not finite.
    """
    if not patterns:
        return model
    tensors = module_tensors(model)
    fitted = patterns.keys() & {weight_name(node) for node in model.captures[False].graph.nodes}
    layers = fitted_layers(model.evaluation_graph().graph, fitted)
    whole = OutputRecorder(copy.deepcopy(model).evaluation_graph(), layers, len(inputs[0]))
    whole.run(*inputs)
    recurrent = {name for each in whole.directions.values() for direction in each for name in direction.weights}
    for name in patterns.keys() - fitted - recurrent:
        tensors[name].mul_(mask_of(tensors[name].abs(), patterns[name]))
    _SparseFitter(model, patterns, whole).run(*inputs)
    return model


class _SparseFitter(LayerFitter):
    """Gives every layer its zeros before it is used; a layer that runs several times is fitted the first time."""

    def __init__(self, model: GraphModel, patterns: Mapping[str, Zeros], whole: OutputRecorder) -> None:
        super().__init__(model, patterns, whole)
        self._patterns = patterns
        self._done = set[str]()

    def fit(self, name: str, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Set weights of a layer to zero and fit the others."""
        if name not in self._done:
            self._done.add(name)
            self.fit_outputs(name, node, args, partial(sparse_weight, zeros=self._patterns[name]))

    def zeros_of(self, name: str) -> Zeros | None:
        """Return the zeros of a recurrent weight."""
        return self._patterns.get(name)
