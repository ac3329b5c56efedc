"""Least squares for `sparsify`: what zeros leave is fitted to the outputs of the dense model's layers, without labels.

Source: layer by layer onto dense outputs, He et al. 2017 (https://arxiv.org/abs/1707.06168) for channels and OBC,
Frantar and Alistarh 2022 (https://arxiv.org/abs/2208.11580) for single weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.pruning.calibration import Calibration
from autoprune.records import Policy
from autoprune.recovery.layer_fitting import FITTING_RUNS
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.sparse import make_sparse
from autoprune.structure import GraphModel, Structure, analyze, module_tensors
from autoprune.task.base import Task

_EXAMPLES = 256
"""Examples of a fit."""


def fitting_inputs(calibration: Calibration) -> tuple[Tensor, ...]:
    """Return the inputs of so many training examples as a fit takes, joined to one batch."""
    inputs = [batch for batch, _ in calibration.batches]
    return tuple(torch.cat(parts)[:_EXAMPLES] for parts in zip(*inputs, strict=True))


@torch.no_grad()
def fit_masked(model: nn.Module, masks: Mapping[str, Tensor], task: Task, inputs: tuple[Tensor, ...]) -> int:
    """Give a dense model zeros and fit its other weights, biases and batch norms to what its layers wrote, in place.

    Args:
        model: the dense model, in evaluation mode.
        masks: of the weights that stay, bool in the shapes of the weights, by name.
        task: has an example for the tracing.
        inputs: of the model, tensors `[N, ...]` of some N = 256 training examples.

    Returns:
        The passes of the examples through the model.

    Raises:
        StructureError: the model cannot be traced.
        TrialError: activations are not finite.
    """
    structure = analyze(model, task.example_inputs, task.outputs)
    graph = structure.shrink(structure.dense_policy(), prove=False).eval()
    own = module_tensors(graph)
    by_name = {structure.canonical.get(name, name): mask for name, mask in masks.items()}
    make_sparse(graph, {name: mask for name, mask in by_name.items() if name in own}, inputs)
    fitted, own_state = graph.state_dict(), model.state_dict()
    for name in own_state.keys() & fitted.keys():
        own_state[name].copy_(fitted[name])
    return FITTING_RUNS


def fit_cut(
    structure: Structure, policy: Policy, channels: Mapping[str, np.ndarray], inputs: tuple[Tensor, ...]
) -> GraphModel:
    """Return a cut model whose layers that read removed channels are fitted to what they wrote in the dense model."""
    shrunk = structure.shrink(policy, channels).eval()
    Reconstruction(structure=structure, inputs=inputs).apply(shrunk, structure.masks(policy, channels))
    return shrunk
