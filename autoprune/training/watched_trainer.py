"""Terms in a trainer of the user's own: told by hooks on the optimizer that holds the model's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils import _pytree as pytree

from autoprune.task.base import Task
from autoprune.training.terms import Terms


@dataclass(kw_only=True)
class _Watch:
    """Counts the examples of training passes, and tells the terms after steps that follow such a pass."""

    model: nn.Module
    samples: int
    terms: Terms
    seen: int = 0
    told_at: int = 0

    def before_forward(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        sizes = [len(x) for x in pytree.tree_leaves((inputs, named)) if isinstance(x, Tensor) and x.dim()]
        if module.training and torch.is_grad_enabled():
            self.seen += max(sizes, default=1)

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        own = {id(parameter) for parameter in self.model.parameters()}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not own & held or self.seen == self.told_at:  # an optimizer around another one reports the same step twice
            return
        self.told_at = self.seen
        self.terms.after_step(share=self.seen / self.samples, rate=float(optimizer.param_groups[0]["lr"]))


@contextmanager
def steps_told(model: nn.Module, task: Task, samples: int, terms: Terms) -> Iterator[None]:
    """Tell terms of every step that an optimizer takes on a model's parameters; at the end let them finish.

    A trainer that works on a copy of the model is not seen: what the terms promise is then done at the end alone.

    Args:
        model: the model that a trainer trains.
        task: of the training.
        samples: examples that the trainer sees in all.
        terms: are told.
    """
    if not terms:
        yield
        return
    watch = _Watch(model=model, samples=samples, terms=terms)
    hooks = [
        model.register_forward_pre_hook(watch.before_forward, with_kwargs=True),
        register_optimizer_step_post_hook(watch.after_step),
    ]
    terms.begin(model, task)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    terms.finish()
