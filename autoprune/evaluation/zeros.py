"""Zeros of a policy in its model: patterns of the weights, and which weights they are while it is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from autoprune.records import Policy
from autoprune.sparsity.patterns import Pattern
from autoprune.structure import GraphModel, module_tensors
from autoprune.structure.low_rank import factor_names
from autoprune.training.drop_and_regrow import DropAndRegrow
from autoprune.training.known_masks import KnownMasks
from autoprune.training.mask_schedule import MaskSchedule
from autoprune.training.masked import MaskedWeights
from autoprune.training.terms import Term
from autoprune.treatments import Layer

SCHEDULES: Mapping[str, Callable[[KnownMasks], MaskSchedule | None]] = MappingProxyType(
    {
        "one-shot": lambda plan: None,
        "set": partial(DropAndRegrow, by_gradient=False),
        "rigl": partial(DropAndRegrow, by_gradient=True),
    }
)
"""Schedules of `autoprune.sparsify` that keep the number of zeros from the beginning of a training, by name."""


def patterns_of(policy: Policy, layers: Iterable[Layer], model: nn.Module) -> dict[str, Pattern]:
    """Return the patterns of weights by their names; removed layers have none.

    Args:
        policy: of the model.
        layers: of the dense model.
        model: cut as the policy says.
    """
    tensors = module_tensors(model)
    return {
        name: pattern
        for layer in layers
        if (treatment := policy.treatments.get(layer.name)) is not None
        for name in layer.weights or (layer.name,)
        if name in tensors and (pattern := layer.pattern_of(name, treatment.pattern)) is not None
    }


def note_treatments(model: GraphModel, policy: Policy, layers: Iterable[Layer]) -> GraphModel:
    """Return the model of a policy after its `pruned_to` was told the treatments of its weights, for `save`.

    Where two factors replace a weight, both have the treatment of its layer.
    """
    tensors, cut = module_tensors(model), model.pruned_to
    ranks = cut.ranks if cut is not None else {}
    known = {
        name: str(replace(treatment.of_factors, pattern=layer.pattern_of(name, treatment.pattern)))
        for layer in layers
        if (treatment := policy.treatments.get(layer.name)) is not None
        for name in (factor_names(layer.name) if layer.name in ranks else layer.weights or (layer.name,))
        if name in tensors
    }
    if cut is not None and known:
        model.pruned_to = replace(cut, treatments=known)
    return model


class TrainedZeros:
    """The zeros of a model while it is trained in some form, and which of its weights they are after that.

    Args:
        model: has its zeros.
        form: what is trained: the model itself, or a form that shares or copies its weights.
        patterns: of its weights by name.
        schedule: one of `SCHEDULES`.
    """

    def __init__(self, model: GraphModel, form: nn.Module, patterns: Mapping[str, Pattern], schedule: str) -> None:
        self._model, self._form = model, form
        tensors, known = module_tensors(model), dict(form.named_parameters(remove_duplicate=False))
        self._masks = {name: tensors[name].detach() != 0 for name in patterns}
        held = {name: mask for name, mask in self._masks.items() if name in known}
        self._plan = KnownMasks(masks=held, patterns=patterns)
        self._exchange = SCHEDULES[schedule](self._plan) if held else None
        self.terms: Sequence[Term] = [self._exchange or MaskedWeights(held)] if held else []
        """The terms of the training that hold the zeros."""

    @torch.no_grad()
    def take_trained(self) -> None:
        """Give the model the tensors of its trained form, in place, with zeros outside of the last masks."""
        trained, tensors = module_tensors(self._form), module_tensors(self._model)
        for name, tensor in tensors.items():
            if self._form is not self._model and name in trained:  # constants of the graph are not
                tensor.copy_(trained[name])
        for name, mask in (self._masks | self._exchanged()).items():
            tensors[name].masked_fill_(~mask, 0.0)

    def _exchanged(self) -> dict[str, Tensor]:
        """Return the last masks by name, where they changed."""
        if self._exchange is None:
            return {}
        pairs = zip(self._plan.groups, self._exchange.kept, strict=True)
        return {group.name: kept.view(self._masks[group.name].shape).cpu() for group, kept in pairs}
