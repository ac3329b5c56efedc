"""Adapters: a model with keywords and structured outputs becomes one of tensors in order that returns one tensor."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprune.errors import AutopruneError, TaskError
from autoprune.model.acceptance import ExampleInputs, unwrap
from autoprune.model.examples import original

Selector = Callable[[Any], Tensor] | str | None
"""Which part of a model's outputs counts: a function of them, or the name of an attribute or a key."""


@dataclass(frozen=True)
class ModelBuilder:
    """`build_model` of a task in plain form: unwrapped, and adapted where inputs are keywords or outputs structured."""

    build: Callable[[], nn.Module]
    keywords: tuple[str, ...]
    outputs: Selector

    def __call__(self) -> nn.Module:
        """A new model; `TaskError` with the place when the user's function fails."""
        try:
            model = self.build()
        except AutopruneError:
            raise
        except Exception as error:
            *_, last = traceback.extract_tb(error.__traceback__)
            raise TaskError(
                f"build_model failed: {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
            ) from error
        return adapted(model, self.keywords, self.outputs)


@dataclass(frozen=True)
class OwnMetric:
    """A metric that sees the data as the user gave them: dicts, or a loader where there was one."""

    metric: Callable[[nn.Module, Any], float]

    def __call__(self, model: nn.Module, dataset: Any) -> float:
        """Score of a model."""
        return self.metric(model, original(dataset))


@dataclass(frozen=True)
class OwnStep:
    """A training step that sees batches as dicts of these keys."""

    step: Callable[[nn.Module, Any], Tensor]
    keys: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Loss of a model on one batch."""
        return self.step(model, dict(zip(self.keys, batch, strict=True)))


def keywords_of(example_inputs: ExampleInputs) -> tuple[str, ...]:
    """The keywords of inputs that were given by keyword; none for others."""
    return tuple(example_inputs) if isinstance(example_inputs, Mapping) else ()


def adapted(model: Any, keywords: Sequence[str] = (), outputs: Selector = None) -> Any:
    """A view of a model that shares everything with it, but takes tensors in the order of `keywords` (or by keyword)
    and returns what `outputs` selects. Without either, the unwrapped model itself.

    The class of the view is derived from the model's: parameter names, attributes and `isinstance` stay.
    """  # fmt: skip
    model = unwrap(model)
    if not isinstance(model, nn.Module) or (not keywords and outputs is None):
        return model
    view = copy.copy(model)
    view.__class__ = _view_class(type(model), tuple(keywords), outputs)
    return view


def view_keywords(model: nn.Module) -> tuple[str, ...]:
    """The keywords that a view passes its inputs by; none for other models."""
    return getattr(type(model), "_keywords", ())


def own_class(model: nn.Module) -> nn.Module:
    """The model that a view was made of, sharing everything with it; other models as they are."""
    if not hasattr(type(model), "_viewed"):
        return model
    found = copy.copy(model)
    found.__class__ = type(model)._viewed  # pyright: ignore[reportAttributeAccessIssue]
    return found


def select(outputs: Any, selector: Selector) -> Any:
    """The part of a model's outputs that counts; `TaskError` listing what there is when it has no such part."""
    if selector is None:
        return outputs
    if callable(selector):
        return selector(outputs)
    found = outputs.get(selector) if isinstance(outputs, Mapping) else getattr(outputs, selector, None)
    if found is None:
        raise TaskError(f"the model's outputs have no {selector!r}; {described(outputs)}")
    return found


def described(outputs: Any) -> str:
    """The names of the tensors in structured outputs, for a message."""
    named = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {})
    names = [str(key) for key, value in named.items() if isinstance(value, Tensor)]
    return f"{type(outputs).__name__} has {', '.join(names) or 'no named tensors'}"


def _view_class(base: type[nn.Module], keywords: tuple[str, ...], outputs: Selector) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Tensor) -> Any:
        return select(base.forward(self, *inputs), outputs)

    def by_keyword(self: nn.Module, **named: Tensor) -> Any:
        return select(base.forward(self, **named), outputs)

    wrong = [name for name in keywords if not name.isidentifier()]
    if wrong:
        raise TaskError(f"example_inputs is a dict of forward's keywords; {wrong[0]!r} cannot be one")
    if keywords:  # written out, because the names of a signature become those of the exported inputs
        scope: dict[str, Any] = {"call": by_keyword}
        pairs = ", ".join(f"{name}={name}" for name in keywords)
        exec(f"def forward(self, {', '.join(keywords)}):\n    return call(self, {pairs})", scope)
        forward = scope["forward"]
    return type(
        base.__name__,
        (base,),
        {"forward": forward, "_viewed": base, "_keywords": keywords, "__module__": base.__module__},
    )
