"""Distance of a model's outputs from the dense model's: to score with, and to train with.

Class logits `[N, C]` are compared as probabilities (Kullback-Leibler divergence, in nats), all other outputs by their
squared error relative to the mean square of the dense outputs. Both are 0 for equal outputs.

Source: knowledge distillation with a temperature, Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-12


def are_logits(outputs: Tensor, *, classifies: bool) -> bool:
    """Whether outputs are class logits: the task has class targets, and their shape is `[N, C]` with C above 1."""
    return classifies and outputs.ndim == 2 and outputs.shape[1] > 1


def divergence(outputs: Tensor, dense_outputs: Tensor, *, classifies: bool) -> float:
    """Return the distance of a model's outputs from the dense model's, 0 when they are equal.

    Args:
        outputs: the model's outputs `[N, ...]`.
        dense_outputs: the dense model's outputs on the same examples, of the same shape.
        classifies: whether targets are class indices, so that outputs `[N, C]` are logits.

    Returns:
        The mean over examples of KL(dense || model) in nats for class logits, else the squared error as a share of the
        mean square of `dense_outputs`.
    """
    with torch.no_grad():
        return float(_compare(outputs, dense_outputs, classifies=classifies, temperature=1.0))


def distillation_loss(outputs: Tensor, dense_outputs: Tensor, *, classifies: bool, temperature: float) -> Tensor:
    """Return a differentiable `divergence` `[]` in float32 for training.

    Logits are divided by `temperature`; the loss is multiplied by its square, so that gradients keep their size (Hinton
    et al. 2015). Outputs that are no logits have no temperature.
    """
    return _compare(outputs, dense_outputs, classifies=classifies, temperature=temperature)


def _compare(outputs: Tensor, dense_outputs: Tensor, *, classifies: bool, temperature: float) -> Tensor:
    outputs, dense_outputs = outputs.float(), dense_outputs.float()
    if not are_logits(dense_outputs, classifies=classifies):
        return F.mse_loss(outputs, dense_outputs) / dense_outputs.square().mean().clamp_min(_TINY)
    log_model = F.log_softmax(outputs / temperature, dim=1)
    log_dense = F.log_softmax(dense_outputs / temperature, dim=1)
    return F.kl_div(log_model, log_dense, reduction="batchmean", log_target=True) * temperature**2
