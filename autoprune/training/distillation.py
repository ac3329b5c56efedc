"""How far a model's outputs are from the dense model's: to score with, and to train with.

Class logits `[N, C]` are compared as probabilities (Kullback-Leibler, in nats), all other outputs by their squared
error relative to the dense outputs' mean square, so that both read 0 for equal outputs whatever their scale.
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
    """Mean over examples of KL(dense || model) for class logits, relative squared error otherwise; 0 when equal."""
    with torch.no_grad():
        return float(_compare(outputs, dense_outputs, classifies=classifies, temperature=1.0))


def distillation_loss(outputs: Tensor, dense_outputs: Tensor, *, classifies: bool, temperature: float) -> Tensor:
    """Differentiable `divergence` at a temperature, multiplied by its square so that gradients keep their size."""
    return _compare(outputs, dense_outputs, classifies=classifies, temperature=temperature)


def _compare(outputs: Tensor, dense_outputs: Tensor, *, classifies: bool, temperature: float) -> Tensor:
    outputs, dense_outputs = outputs.float(), dense_outputs.float()
    if not are_logits(dense_outputs, classifies=classifies):
        return F.mse_loss(outputs, dense_outputs) / dense_outputs.square().mean().clamp_min(_TINY)
    log_model = F.log_softmax(outputs / temperature, dim=1)
    log_dense = F.log_softmax(dense_outputs / temperature, dim=1)
    return F.kl_div(log_model, log_dense, reduction="batchmean", log_target=True) * temperature**2
