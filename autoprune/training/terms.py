"""Terms of a training: what it does to the weights besides following the gradient of the loss.

A term is told when the training begins, after every step of the optimizer, and when it ends. Penalties, masks and
schedules that make a network sparse are all terms; so the loop does not know one of them, and neither does a trainer of
the user's own.

A model whose weights are mostly zero needs longer steps. What a step changes in the output of a layer is a sum over
the weights that are left, so that the same rate changes less, the fewer these are. Rates of fine-tunes are those of a
recipe times 1 / sqrt(density), for all parameters (the decisions on repair and fine-tuning have the numbers). Narrow
layers gain by it in few cases, so channels do not count.

Source: rates that rise as the density falls, there with 1 / density, Dey et al. 2024,
https://arxiv.org/abs/2405.15743.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from autoprune.pruning.weights import lookup_tables
from autoprune.task.base import Task
from autoprune.training.state import Resumable

_LEAST_DENSITY = 0.01
"""No rate is scaled for a lower one: policies of fewer weights were not measured."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the optimizer: its number from 1 on, the share of the training that is over, and its learning rate."""

    number: int
    share: float
    rate: float


class Term(Resumable):
    """Base of all terms, which does nothing. `STATE` names what changes between `begin` and `finish`."""

    passes = 0.0
    """Sample passes of the model that the term took beside those of the training."""

    held = 0
    """Single weights that the term keeps at zero now; channels do not count."""

    def begin(self, model: nn.Module, task: Task) -> None:
        """Take hold of the parameters of a model, before its first step."""

    def after_step(self, step: Step) -> bool:
        """Change the weights after a step of the optimizer; gradients of the step are still there.

        Returns:
            Whether earlier states of the model no longer count, because they lack what this step asks of the weights.
        """
        del step
        return False

    def complete(self) -> None:
        """Do now what the term has not come to, because not all steps were seen: a trainer may have trained a copy."""

    def finish(self) -> None:
        """Leave the weights as the term promises them, whatever happened to them after the last step."""


class Terms(Resumable):
    """Several terms as one, and the number of steps that they saw."""

    STATE = ("_terms", "_steps")

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = list(terms)
        self._steps = self._weights = 0

    def __bool__(self) -> bool:
        return bool(self._terms)

    def begin(self, model: nn.Module, task: Task) -> None:
        """Begin all terms."""
        tables = lookup_tables(model)
        wide = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
        self._weights = sum(parameter.numel() for name, parameter in wide.items() if name not in tables)
        for term in self._terms:
            term.begin(model, task)

    def after_step(self, *, share: float, rate: float) -> bool:
        """Let all terms change the weights; return whether earlier states no longer count for one of them."""
        self._steps += 1
        step = Step(number=self._steps, share=min(share, 1.0), rate=rate)
        outdated = [term.after_step(step) for term in self._terms]  # every term is told, whatever the others say
        return any(outdated)

    def complete(self) -> None:
        """Let all terms do now what they have not come to."""
        for term in self._terms:
            term.complete()

    def finish(self) -> None:
        """Let all terms leave the weights as they promise."""
        for term in self._terms:
            term.finish()

    @property
    def rate_scale(self) -> float:
        """Factor of a recipe's learning rate for the zeros that there are: 1 / sqrt(density), at most 10.

        The density is the share of all numbers of matrices and filters that no term keeps at zero. Embeddings do not
        count: their rows are looked up, and no sum gets shorter.
        """
        held = max((term.held for term in self._terms), default=0)
        return max(1 - held / max(self._weights, 1), _LEAST_DENSITY) ** -0.5

    @property
    def passes(self) -> float:
        """Sample passes of the model that the terms took."""
        return sum(term.passes for term in self._terms)
