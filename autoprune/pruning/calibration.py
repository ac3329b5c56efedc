"""Data that scores look at, and derivatives of the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoprune.errors import UsageError
from autoprune.structure.module import evaluating

Batch = tuple[tuple[Tensor, ...], Tensor | None]
"""Inputs, and target (`None`: no labels), of one batch."""

FISHER_EXAMPLES = 128
"""Most examples whose gradients are squared: each takes a backward pass of its own."""

NEEDS_LOSS = ("taylor", "gradient", "fisher", "hvp")
"""Scores that look at derivatives of the loss."""


@dataclass(frozen=True)
class Calibration:
    """Data for the scores that need it: a few hundred training examples.

    - `batches`: inputs and target of each batch; all scores but norms and `random` need them.
    - `loss`: from outputs and target to the mean loss of a batch, a scalar; `taylor`, `gradient`, `fisher` and `hvp`
      need it.
    - `seed`: of the score `random`.
    """

    batches: Sequence[Batch] = ()
    loss: Callable[[Tensor, Tensor | None], Tensor] | None = None
    seed: int = 0

    @property
    def examples(self) -> int:
        """Number of calibration examples."""
        return sum(len(inputs[0]) for inputs, _ in self.batches)

    def require(self, score: str) -> None:
        """Raise `UsageError` when the data that a score needs is missing."""
        if not self.batches or (score in NEEDS_LOSS and self.loss is None):
            needs = "batches and a loss" if score in NEEDS_LOSS else "batches"
            raise UsageError(f"the score {score!r} looks at data: give it a Calibration with {needs}")


def mean_gradients(model: nn.Module, calibration: Calibration, score: str = "taylor") -> dict[str, Tensor]:
    """Return the gradient of the mean loss by parameter name; the model and its own gradients stay as they are.

    Raises:
        UsageError: data or loss is missing, or every parameter is frozen.
    """
    parameters = _trainable(model, calibration, score)
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with evaluating(model), torch.enable_grad():
        for batch in calibration.batches:
            _add(totals, _gradients(model, calibration, parameters, batch), len(batch[0][0]) / calibration.examples)
    return totals


def squared_gradients(model: nn.Module, calibration: Calibration) -> dict[str, Tensor]:
    """Return the mean over at most 128 examples of each example's squared gradient, by parameter name.

    That is the diagonal of the empirical Fisher information.
    """
    parameters = _trainable(model, calibration, "fisher")
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    used = min(FISHER_EXAMPLES, calibration.examples)
    with evaluating(model), torch.enable_grad():
        for batch in _single_examples(calibration, used):
            gradients = _gradients(model, calibration, parameters, batch)
            _add(totals, {name: gradient**2 for name, gradient in gradients.items()}, 1 / used)
    return totals


def curvature_along_weights(model: nn.Module, calibration: Calibration) -> dict[str, Tensor]:
    """Return the Hessian of the mean loss times the weights, H w, by parameter name.

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian": the derivative of (gradient times w).

    Raises:
        UsageError: as `mean_gradients`, or an operator of the model has no second derivative.
    """
    parameters = _trainable(model, calibration, "hvp")
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with evaluating(model), torch.enable_grad(), _twice_differentiable():
        for batch in calibration.batches:
            gradients = _gradients(model, calibration, parameters, batch, twice=True)
            along = sum((g * parameters[name].detach()).sum() for name, g in gradients.items())
            if not isinstance(along, Tensor) or not along.requires_grad:
                continue  # a loss that is linear in the weights has no curvature
            try:
                products = torch.autograd.grad(along, list(parameters.values()), allow_unused=True)
            except RuntimeError as error:
                raise UsageError(
                    f"the score 'hvp' takes second derivatives, which an operator of this model does not have: "
                    f"{error}. Take 'fisher' or 'taylor'"
                ) from error
            by_name = {name: p for name, p in zip(parameters, products, strict=True) if p is not None}
            _add(totals, by_name, len(batch[0][0]) / calibration.examples)
    return totals


def _trainable(model: nn.Module, calibration: Calibration, score: str) -> dict[str, nn.Parameter]:
    calibration.require(score)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UsageError(
            f"the score {score!r} takes gradients of parameters, and all of this model's are frozen: call "
            "requires_grad_(True) on some, or take a score without gradients, such as 'l2'"
        )
    return parameters


def _gradients(
    model: nn.Module,
    calibration: Calibration,
    parameters: dict[str, nn.Parameter],
    batch: Batch,
    *,
    twice: bool = False,
) -> dict[str, Tensor]:
    """Return the gradients of the mean loss of a batch; parameters that do not matter to it are left out."""
    assert calibration.loss is not None
    inputs, target = batch
    loss = calibration.loss(model(*inputs), target)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, create_graph=twice)
    return {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}


def _add(totals: dict[str, Tensor], values: dict[str, Tensor], share: float) -> None:
    for name, value in values.items():
        totals[name] += value.detach() * share


def _single_examples(calibration: Calibration, count: int) -> Iterator[Batch]:
    """Yield the first examples as batches of one."""
    left = count
    for inputs, target in calibration.batches:
        for row in range(min(left, len(inputs[0]))):
            yield tuple(x[row : row + 1] for x in inputs), None if target is None else target[row : row + 1]
            left -= 1


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Let attention and recurrent layers compute by operators that have second derivatives."""
    # Other settings stay as they are: setting them warns on hosts without the hardware.
    without = torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)  # pyright: ignore[reportArgumentType]
    with sdpa_kernel(SDPBackend.MATH), without:
        yield
