"""What `sparsify` takes: names of schedules and recoveries, and one message for whatever does not go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import UsageError, unknown_name
from autoprune.pruning.score_passes import score_passes
from autoprune.pruning.weights import require_floating
from autoprune.task.base import Task
from autoprune.task.recipe import Recipe
from autoprune.training.channel_plan import channel_share
from autoprune.training.plans import NO_PATTERN

SCHEDULES = ("one-shot", "gradual", "iterative", "adaptive", "set", "rigl", "admm", "growing")
"""When weights become zero: at once; more and more; step by step or following the score, as long as validation data
allow it; exchanged all the time, at random or by gradient; drawn to zero by ADMM or a growing decay, then cut."""

MODES = ("none", "bias", "least-squares", "brief", "full", "scratch")
"""How the rest recovers: not at all; by biases and batch norms; by least squares of every layer to the dense one's
outputs; by one epoch or all epochs of training; or, as a control, by the same training from new weights."""

_WATCHING = ("iterative", "adaptive")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_TYPES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "pattern": (_is_text, "a text, such as sparse:80% or 2:4"),
    "schedule": (_is_text, "a text, such as gradual"),
    "finetune": (_is_text, "a text, such as full, or None"),
    "scores": (lambda value: value is None or _is_text(value), "a text, such as taylor, or None"),
    "ranking": (lambda value: value is None or _is_text(value), "a text, such as lamp, or None"),
    "epochs": (_is_number, "a number above 0"),
    "allowed_drop": (_is_number, "a number, 0 or more"),
    "recipe": (lambda value: value is None or isinstance(value, Recipe), "an autoprune.Recipe or None"),
    "terms": (lambda value: isinstance(value, str | list | tuple), "a text or several, such as l1:0.001"),
    "choose": (lambda value: value is None or callable(value), "a function of a name, or None"),
    "seed": (_is_seed, "a whole number of at most 63 bits"),
    "on_progress": (lambda value: value is None or callable(value), "a function of three numbers, or None"),
    "checkpoint": (lambda value: value is None or isinstance(value, str | Path), "the path of a file, or None"),
}
"""Checks of arguments by name, and what they are."""


def require_types(model: object, **given: Any) -> None:
    """Raise `UsageError` for an argument of another type, `StructureError` for a model that is quantized or empty."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"sparsify takes an nn.Module; got {type(model).__name__}")
    for name, value in given.items():
        fits, described = _TYPES[name]
        if not fits(value):
            raise UsageError(f"{name} is {described}; got {type(value).__name__} {value!r:.60}")
    require_floating(model)


def require_valid(
    schedule: str, mode: str, data: object, validation: object, epochs: float, allowed_drop: float
) -> None:
    """Raise `UsageError` for unknown names, numbers out of bounds, and schedules and recoveries without their data."""
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if mode not in MODES:
        raise unknown_name("finetune", mode, MODES)
    trains = mode in ("brief", "full", "scratch")
    if data is None and (schedule != "one-shot" or mode != "none"):
        what = f"the schedule {schedule!r} trains" if schedule != "one-shot" else f"finetune={mode!r} looks at data"
        raise UsageError(f"{what}: give training data, as a Task, or as a data set with a loss")
    if schedule != "one-shot" and mode not in ("brief", "full"):
        raise UsageError(
            f"the schedule {schedule!r} trains while weights become zero; finetune={mode!r} goes with one-shot alone"
        )
    if schedule in _WATCHING and validation is None and not isinstance(data, Task):
        raise UsageError(f"the schedule {schedule!r} watches the score on validation data: give validation, or a Task")
    if trains and not 0 < epochs < math.inf:
        raise UsageError(f"a training takes more than 0 epochs; got {epochs!r}")
    if not 0 <= allowed_drop < math.inf:
        raise UsageError(f"the allowed drop of the score is 0 or more; got {allowed_drop!r}")


def require_data(model: nn.Module, data: object, scores: str | None, pattern: str) -> None:
    """Raise `UsageError` when scores or channels lack their data, or data meet a model in half precision."""
    short = {p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    if data is not None and short:
        raise UsageError(
            f"a sparse model is trained and scored in float32; got one in {', '.join(map(str, short))}. Pass "
            "model.float(), and convert the result"
        )
    looking = [name for name in (scores or "").replace("*", "+").split("+") if score_passes(name.strip(), 1)]
    if data is None and looking:
        raise UsageError(
            f"the score {looking[0].strip()!r} looks at data: give training data, as a Task or with a loss"
        )
    if data is None and channel_share(pattern) is not None:
        raise UsageError("channels are found by tracing the model on an example: give training data, or use prune")


def read_terms(
    terms: str | Sequence[str], pattern: str, schedule: str, mode: str, scores: str | None, ranking: str | None
) -> tuple[str, ...]:
    """Return the texts of terms in their usual form.

    Raises:
        UsageError: a term cannot be read, there is no training that it could be a term of, or zeros of terms alone have
            no terms or a mask's options.
    """
    read = Recipe(terms=tuple(terms) if not isinstance(terms, str) else (terms,)).terms
    trains = mode in ("brief", "full", "scratch")
    if read and not trains:
        raise UsageError(f"terms change a training; finetune={mode!r} has none. Take brief, full or scratch")
    if pattern == NO_PATTERN and not (read and schedule == "one-shot" and scores is None and ranking is None):
        raise UsageError(
            f"with the pattern {NO_PATTERN!r} zeros are those of terms alone: give terms, such as l1:0.001, and no "
            "schedule, scores or ranking"
        )
    return read
