"""Weights that stay zero while a model trains.

Source: fine-tuning what a mask leaves, Han et al. 2015, https://arxiv.org/abs/1506.02626.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autoprune.errors import UsageError
from autoprune.task.base import Task
from autoprune.training.terms import Step, Term


class MaskedWeights(Term):
    """Sets the weights outside of masks to zero, at the beginning and after every step.

    Args:
        masks: boolean masks of parameters by name, in their shapes; true where a weight stays.

    Raises:
        UsageError: at the beginning, when the model has no such parameter, or one of another shape.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = dict(masks)
        self._weights: dict[str, nn.Parameter] = {}

    def begin(self, model: nn.Module, task: Task) -> None:
        """Check the names and shapes, and apply the masks."""
        del task
        self._weights = parameters_named(model, self._masks)
        for name, mask in self._masks.items():
            if mask.shape != self._weights[name].shape:
                raise UsageError(
                    f"a mask has the shape of its weight; that of {name!r} is {tuple(mask.shape)}, the weight is "
                    f"{tuple(self._weights[name].shape)}"
                )
        self.held = sum(int((~mask).sum()) for mask in self._masks.values())
        self.finish()

    def after_step(self, step: Step) -> bool:
        """Apply the masks."""
        del step
        self.finish()
        return False

    def finish(self) -> None:
        """Apply the masks."""
        for name, weight in self._weights.items():
            keep_only(weight, self._masks[name])


@torch.no_grad()
def keep_only(weight: Tensor, mask: Tensor) -> None:
    """Set the entries of a weight outside of a boolean mask to zero, in place; also those that are not finite."""
    weight.masked_fill_(~mask.to(weight.device), 0.0)


def parameters_named(model: nn.Module, names: Mapping[str, object]) -> dict[str, nn.Parameter]:
    """Return the parameters of these names; `UsageError` names those that a model does not have."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = sorted(names.keys() - parameters.keys())
    if unknown:
        raise UsageError(f"masks are named as parameters of the model are; it has no {', '.join(unknown[:3])}")
    return {name: parameters[name] for name in names}
