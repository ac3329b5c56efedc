"""Adapters: models with keyword inputs or structured outputs become models of tensors in order and one tensor out."""

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
"""The part of a model's outputs that counts: a function of the outputs, or the name of an attribute or a key."""


@dataclass(frozen=True)
class ModelBuilder:
    """A task's `build_model` whose models are unwrapped, and adapted to keyword inputs and structured outputs."""

    build: Callable[[], nn.Module]
    keywords: tuple[str, ...]
    outputs: Selector

    def __call__(self) -> nn.Module:
        """Build a new model; raise `TaskError` with the failing line when the user's function fails."""
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
    """A metric that sees the data as the user gave it: with dicts as items, or as a loader."""

    metric: Callable[[nn.Module, Any], float]

    def __call__(self, model: nn.Module, dataset: Any) -> float:
        """Return the score of a model."""
        return self.metric(model, original(dataset))


@dataclass(frozen=True)
class OwnStep:
    """A training step that sees batches as dicts with these keys."""

    step: Callable[[nn.Module, Any], Tensor]
    keys: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of a model on one batch."""
        return self.step(model, dict(zip(self.keys, batch, strict=True)))


def keywords_of(example_inputs: ExampleInputs) -> tuple[str, ...]:
    """Return the keywords of inputs that were given by keyword; `()` for inputs in order."""
    return tuple(example_inputs) if isinstance(example_inputs, Mapping) else ()


def adapted(model: Any, keywords: Sequence[str] = (), outputs: Selector = None) -> Any:
    """Return a view that shares everything with a model, but takes tensors in order and returns the chosen output.

    The class of the view is derived from the model's: parameter names, attributes and `isinstance` stay. Without
    `keywords` and `outputs`, the unwrapped model itself is returned.

    Args:
        model: any module; anything else is returned as it is.
        keywords: of the model's `forward`, in the order in which the view takes tensors.
        outputs: the part of the model's outputs that the view returns.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module) or (not keywords and outputs is None):
        return model
    view = copy.copy(model)
    view.__class__ = _view_class(type(model), tuple(keywords), outputs)
    return view


def view_keywords(model: nn.Module) -> tuple[str, ...]:
    """Return the keywords by which a view passes its inputs; `()` for other models."""
    return getattr(type(model), "_keywords", ())


def own_class(model: nn.Module) -> nn.Module:
    """Return a view in the class of the model that it was made of, sharing all tensors; other models as they are."""
    if not hasattr(type(model), "_viewed"):
        return model
    original_model = copy.copy(model)
    original_model.__class__ = type(model)._viewed  # pyright: ignore[reportAttributeAccessIssue]
    return original_model


def select(outputs: Any, selector: Selector) -> Any:
    """Return the part of a model's outputs that counts.

    Raises:
        TaskError: the outputs have no such part; the message lists the parts they have.
    """
    if selector is None:
        return outputs
    if callable(selector):
        return selector(outputs)
    part = outputs.get(selector) if isinstance(outputs, Mapping) else getattr(outputs, selector, None)
    if part is None:
        raise TaskError(f"the model's outputs have no {selector!r}; {described(outputs)}")
    return part


def described(outputs: Any) -> str:
    """Return the names of the tensors in structured outputs, for a message."""
    named = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {})
    names = [str(key) for key, value in named.items() if isinstance(value, Tensor)]
    return f"{type(outputs).__name__} has {', '.join(names) or 'no named tensors'}"


def _view_class(base: type[nn.Module], keywords: tuple[str, ...], outputs: Selector) -> type[nn.Module]:
    """Derive the class of a view (see `adapted`)."""

    def forward(self: nn.Module, *inputs: Tensor) -> Any:
        return select(base.forward(self, *inputs), outputs)

    def by_keyword(self: nn.Module, **named: Tensor) -> Any:
        return select(base.forward(self, **named), outputs)

    wrong = [name for name in keywords if not name.isidentifier()]
    if wrong:
        raise TaskError(f"the keys of example_inputs are keywords of forward; {wrong[0]!r} cannot be one: rename it")
    if keywords:  # written out, because the exporter names inputs after the signature
        scope: dict[str, Any] = {"call": by_keyword}
        pairs = ", ".join(f"{name}={name}" for name in keywords)
        exec(f"def forward(self, {', '.join(keywords)}):\n    return call(self, {pairs})", scope)
        forward = scope["forward"]
    return type(
        base.__name__,
        (base,),
        {"forward": forward, "_viewed": base, "_keywords": keywords, "__module__": base.__module__},
    )
