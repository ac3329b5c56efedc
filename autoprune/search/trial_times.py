"""Seconds of a trial: those that any trial of its kind takes, and those of its sample passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_FAR_APART = 2.0
"""Two rungs tell the two parts of a trial's time apart when one has this many times the passes of the other."""

_MOST_BUSY = 2.0
"""Trials without fine-tuning change what is expected of others by this factor at most: little of them is passes."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTrials:
    """Trials of one rung: their number, mean seconds and mean sample passes, and whether they were fine-tuned."""

    count: int
    seconds: float
    passes: float
    tuned: bool


@dataclass(frozen=True, kw_only=True)
class TrialTimes:
    """A trial takes `pass_s` for each of its sample passes, and on top `fixed_s`, or `tuned_fixed_s` with fine-tuning.

    Fine-tuned models are proven, scored twice and, where layers are treated, rounded with more care.
    """

    fixed_s: float
    tuned_fixed_s: float
    pass_s: float

    def seconds(self, passes: float, *, tuned: bool) -> float:
        """Return the seconds of one trial of so many passes."""
        return (self.tuned_fixed_s if tuned else self.fixed_s) + self.pass_s * passes

    def corrected(self, measured: Iterable[MeasuredTrials]) -> TrialTimes:
        """Return the times that agree with measured rungs; without any they stay.

        Of fine-tuned rungs the cheapest and the dearest decide where their passes differ enough; one alone scales both
        parts of the time. Before one is measured, the others say how busy the workers are.
        """
        rungs = sorted((r for r in measured if r.seconds > 0 and r.count), key=lambda rung: rung.passes)
        tuned, others = [r for r in rungs if r.tuned], [r for r in rungs if not r.tuned]
        scaled, untuned_scale = self, self._scale(others)
        if tuned and tuned[-1].passes > _FAR_APART * tuned[0].passes:
            pass_s = max(tuned[-1].seconds - tuned[0].seconds, 0.0) / (tuned[-1].passes - tuned[0].passes)
            fixed_s = max(tuned[0].seconds - pass_s * tuned[0].passes, 0.0)
            scaled = replace(self, tuned_fixed_s=fixed_s, pass_s=pass_s)
        elif tuned or others:
            scale = self._scale(tuned) if tuned else min(max(untuned_scale, 1 / _MOST_BUSY), _MOST_BUSY)
            scaled = replace(self, tuned_fixed_s=scale * self.tuned_fixed_s, pass_s=scale * self.pass_s)
        if others:
            rest_s = sum(r.count * (r.seconds - scaled.pass_s * r.passes) for r in others)
            scaled = replace(scaled, fixed_s=rest_s / sum(r.count for r in others))
        return scaled

    def _scale(self, rungs: Sequence[MeasuredTrials]) -> float:
        """Return how many times the expected seconds the trials of some rungs took."""
        expected = sum(r.count * self.seconds(r.passes, tuned=r.tuned) for r in rungs)
        return sum(r.count * r.seconds for r in rungs) / expected if expected > 0 else 1.0
