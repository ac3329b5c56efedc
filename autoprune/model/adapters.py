"""Adapters: models with keyword inputs become models of tensors in order."""

from __future__ import annotations

import copy
import keyword
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprune.errors import AutopruneError, TaskError
from autoprune.model.acceptance import ExampleInputs, unwrap
from autoprune.model.examples import original


@dataclass(frozen=True)
class ModelBuilder:
    """A task's `build_model` whose models are unwrapped, and adapted to keyword inputs."""

    build: Callable[[], nn.Module]
    keywords: tuple[str, ...]

    def __call__(self) -> nn.Module:
        """Build a new model; raise `TaskError` with the failing line when the user's function fails."""
        try:
            model = self.build()
        except AutopruneError:
            raise
        except (Exception, SystemExit) as error:
            *_, last = traceback.extract_tb(error.__traceback__)
            raise TaskError(
                f"build_model failed: {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
            ) from error
        return adapted(model, self.keywords)


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


def adapted(model: Any, keywords: Sequence[str] = ()) -> Any:
    """Return a view that shares everything with a model, but takes tensors in order.

    The class of the view is derived from the model's: parameter names, attributes and `isinstance` stay. Without
    `keywords`, the unwrapped model itself is returned.

    Args:
        model: any module; anything else is returned as it is.
        keywords: of the model's `forward`, in the order in which the view takes tensors.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module) or not keywords:
        return model
    view = copy.copy(model)
    view.__class__ = _view_class(type(model), tuple(keywords))
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


def _names_a_parameter(name: object) -> bool:
    """Return whether a function written out may have a parameter of a name, beside those that the view needs."""
    taken = ("self", "_by_keyword", "__debug__")  # Python allows no assignment to the last
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) and name not in taken


def _view_class(base: type[nn.Module], keywords: tuple[str, ...]) -> type[nn.Module]:
    """Derive the class of a view (see `adapted`)."""

    def by_keyword(self: nn.Module, **named: Tensor) -> Any:
        return base.forward(self, **named)

    wrong = [name for name in keywords if not _names_a_parameter(name)]
    if wrong:
        raise TaskError(f"the keys of example_inputs are keywords of forward; {wrong[0]!r} cannot be one: rename it")
    # Written out, because the exporter names inputs after the signature.
    scope: dict[str, Any] = {"_by_keyword": by_keyword}
    pairs = ", ".join(f"{name}={name}" for name in keywords)
    exec(f"def forward(self, {', '.join(keywords)}):\n    return _by_keyword(self, {pairs})", scope)
    return type(
        base.__name__,
        (base,),
        {"forward": scope["forward"], "_viewed": base, "_keywords": keywords, "__module__": base.__module__},
    )
