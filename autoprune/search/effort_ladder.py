"""Efforts that spend less and less, for searches that have a limit of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from autoprune.search.effort import Effort
from autoprune.trials import Fidelity

_SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.09, 0.07, 0.05, 0.03, 0.0)
_THREE_RUNGS, _TWO_RUNGS = 0.3, 0.1
"""Below these shares the longer, then also the brief fine-tuning of several policies is left out."""

_LEAST_SAMPLES = 256
"""Training examples of a fine-tuning at the least, where the effort has so many."""
_LEAST_TRIALS = 8
"""Policies for each budget at the least: some of them are over it when they are measured."""


@dataclass(frozen=True, kw_only=True)
class ReducedEffort:
    """An effort that was cut down, and the share of its work, about, that is left."""

    share: float
    effort: Effort


def reduced_efforts(effort: Effort, budgets: int) -> Iterator[ReducedEffort]:
    """Yield an effort as it is, then less and less of it, down to the least that still ends in a verified front.

    Args:
        effort: what the search would spend without a limit.
        budgets: how many.
    """
    for share in _SHARES:
        yield ReducedEffort(share=share, effort=effort if share == 1 else _reduced(effort, share, budgets))


def with_shorter_full(effort: Effort, share: float) -> Effort:
    """Return an effort whose full fine-tune takes a share of its training examples, but not next to none."""
    return replace(effort, full=_shorter(effort.full, share))


def effort_to_json(effort: Effort) -> dict[str, object]:
    """Return an effort as a plain JSON value."""
    return vars(effort) | {
        "rungs": [fidelity.to_json() for fidelity in effort.rungs],
        "promoted": list(effort.promoted),
        "full": effort.full.to_json(),
    }


def effort_from_json(value: dict[str, object]) -> Effort:
    """Return the effort of a JSON value: the inverse of `effort_to_json`."""
    fields: dict[str, object] = dict(value)
    rungs, full, promoted = fields.pop("rungs"), fields.pop("full"), fields.pop("promoted")
    return Effort(
        **fields,  # pyright: ignore[reportArgumentType]
        rungs=tuple(map(Fidelity.from_json, rungs)),  # pyright: ignore[reportArgumentType]
        promoted=tuple(promoted),  # pyright: ignore[reportArgumentType]
        full=Fidelity.from_json(full),  # pyright: ignore[reportArgumentType]
    )


def _reduced(effort: Effort, share: float, budgets: int) -> Effort:
    count = 3 if share >= _THREE_RUNGS else 2 if share >= _TWO_RUNGS else 1
    rungs = tuple(_shorter(fidelity, share) for fidelity in effort.rungs[:count])
    return replace(
        effort,
        trials=min(effort.trials, max(_LEAST_TRIALS * budgets, round(share * effort.trials))),
        rungs=rungs,
        promoted=tuple(max(1, round(share * most)) for most in effort.promoted[: len(rungs) - 1]),
        full=_shorter(effort.full, share),
        finalists=max(1, round(share * effort.finalists)),
    )


def _shorter(fidelity: Fidelity, share: float) -> Fidelity:
    samples = max(min(_LEAST_SAMPLES, fidelity.finetune_samples), round(share * fidelity.finetune_samples))
    return replace(fidelity, finetune_samples=samples)
