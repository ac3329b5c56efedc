"""Seconds of a trial: those that any trial of its kind takes, those of its sample passes, and those of the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

_LOAD_SD, _FIXED_SD, _PASS_SD = 0.5, 1.0, 0.3
"""Standard deviations of what rehearsed times are off by, as shares: of all parts together (trials run beside each
other), and of either part alone. The fixed part of a rehearsed trial leaves out what whole validation data take."""

_TRIAL_SD = 0.1
"""Standard deviation of the seconds of one trial, as a share."""

_LEAST_FACTOR = 0.1
"""Factor on a part of rehearsed times at least: no part of a trial takes no time."""

_FAR_APART = 2.0
"""Two rungs tell the two parts of a trial's time apart when one has this many times the passes of the other."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTrials:
    """Trials of one rung.

    Args:
        count: how many.
        seconds: their mean seconds.
        passes: their mean sample passes, without those of the teacher.
        tuned: whether they were fine-tuned.
        taught: mean number of examples that the teacher answered for one of them.
        warm: whether their workers had run such trials before: the first one also imports, compiles and fills caches.
    """

    count: int
    seconds: float
    passes: float
    tuned: bool
    taught: float = 0.0
    warm: bool = True


@dataclass(frozen=True, kw_only=True)
class TrialTimes:
    """Seconds of the parts of a trial.

    Fine-tuned models are proven, scored twice and, where layers are treated, rounded with more care.

    Args:
        fixed_s: of a trial without fine-tuning, on top of its passes.
        tuned_fixed_s: of a trial with fine-tuning.
        pass_s: of each sample pass.
        teach_s: of each example that the teacher answers.
        rehearsed: whether short trials were timed; the parts then have the right proportions.
    """

    fixed_s: float
    tuned_fixed_s: float
    pass_s: float
    teach_s: float = 0.0
    rehearsed: bool = False

    def seconds(self, passes: float, *, tuned: bool, taught: float = 0.0) -> float:
        """Return the seconds of one trial of so many passes, for which the teacher answers so many examples."""
        return (self.tuned_fixed_s if tuned else self.fixed_s) + self.pass_s * passes + self.teach_s * taught

    def corrected(self, measured: Iterable[MeasuredTrials]) -> TrialTimes:
        """Return the times that agree with measured rungs; without any they stay.

        Fine-tuned rungs update rehearsed times, each of the two parts by what the rungs tell of it: a brief one is
        mostly the fixed part, and says little about the passes. Without a rehearsal the cheapest and the dearest decide
        where their passes differ enough, and one alone scales. Trials without fine-tuning say what these take alone:
        layers in int8 slow them down, and not the training.
        """
        rungs = sorted((r for r in measured if r.seconds > 0 and r.count), key=lambda rung: rung.passes)
        tuned, others = [r for r in rungs if r.tuned], [r for r in rungs if not r.tuned and r.warm]
        warm = [r for r in tuned if r.warm] or ([] if self.rehearsed else tuned)
        if warm and not self.rehearsed and warm[-1].passes > _FAR_APART * warm[0].passes:
            times = self._fitted(warm[0], warm[-1])
        elif warm and self.rehearsed:
            times = self._updated(warm)
        elif warm:
            times = self._scaled(self._scale(warm))
        else:  # the first trials of workers take longer than others: that they are slow says nothing
            times = self._scaled(min(1.0, self._scale(tuned)))
        if others:
            rest_s = sum(r.count * (r.seconds - times.pass_s * r.passes) for r in others)
            times = replace(times, fixed_s=max(rest_s / sum(r.count for r in others), 0.0))
        return times

    def _scaled(self, of_fixed: float, of_passes: float | None = None) -> TrialTimes:
        """Return times of fine-tuned trials whose parts are so many times as long; one factor is that of both."""
        of_passes = of_fixed if of_passes is None else of_passes
        return replace(
            self,
            tuned_fixed_s=of_fixed * self.tuned_fixed_s,
            pass_s=of_passes * self.pass_s,
            teach_s=of_passes * self.teach_s,
        )

    def _updated(self, rungs: Sequence[MeasuredTrials]) -> TrialTimes:
        """Return the most likely times: factors on both parts are normal around 1, and so are the seconds of trials."""
        factors = np.ones(2)
        covariance = _LOAD_SD**2 + np.diag([_FIXED_SD**2, _PASS_SD**2])
        for rung in rungs:
            parts = np.array([self.tuned_fixed_s, self.pass_s * rung.passes + self.teach_s * rung.taught])
            gain = covariance @ parts / (parts @ covariance @ parts + (_TRIAL_SD * rung.seconds) ** 2 / rung.count)
            factors = factors + gain * (rung.seconds - parts @ factors)
            covariance = covariance - np.outer(gain, parts @ covariance)
        return self._scaled(*np.maximum(factors, _LEAST_FACTOR).tolist())

    def _fitted(self, cheap: MeasuredTrials, dear: MeasuredTrials) -> TrialTimes:
        """Return times of which both rungs took as many; the teacher has its share of the time of a pass."""
        ratio = self.teach_s / self.pass_s if self.pass_s > 0 else 0.0
        passes, fewer = (rung.passes + ratio * rung.taught for rung in (dear, cheap))
        pass_s = max(dear.seconds - cheap.seconds, 0.0) / max(passes - fewer, 1e-9)
        fixed_s = max(cheap.seconds - pass_s * fewer, 0.0)
        return replace(self, tuned_fixed_s=fixed_s, pass_s=pass_s, teach_s=ratio * pass_s)

    def _scale(self, rungs: Sequence[MeasuredTrials]) -> float:
        """Return how many times the expected seconds the trials of some rungs took; 1 without any."""
        expected = sum(r.count * self.seconds(r.passes, tuned=r.tuned, taught=r.taught) for r in rungs)
        return sum(r.count * r.seconds for r in rungs) / expected if expected > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class _Trial:
    seconds: float
    passes: float
    warm: bool


@dataclass(kw_only=True)
class TrialLog:
    """Finished trials of every rung, in this call of a search.

    Args:
        slots: trials that run at the same time.
        cold: so many first ones of a kind are not warm: as many as there are workers in processes of their own.
    """

    slots: int
    cold: int
    _trials: dict[str, list[_Trial]] = field(default_factory=dict)
    _of_kind: dict[bool, int] = field(default_factory=dict)

    def add(
        self, rung: str, seconds: float, passes: float, *, finished: int, tuned: bool, samples: float
    ) -> MeasuredTrials:
        """Add a finished trial and return what its rung took: by its warm trials, if it has any.

        Args:
            rung: of the trial.
            seconds: of the trial.
            passes: of the trial.
            finished: trials of the rung so far, those of earlier calls included.
            tuned: whether it was fine-tuned.
            samples: that the teacher answers, once in each slot, for the trials of the rung.
        """
        before = self._of_kind.get(tuned, 0)
        self._of_kind[tuned] = before + 1
        trials = self._trials.setdefault(rung, [])
        trials.append(_Trial(seconds=seconds, passes=passes, warm=before >= self.cold))
        counted = [trial for trial in trials if trial.warm] or trials
        asking = max(min(len(trials), self.slots) - (len(trials) - len(counted)), 0)
        return MeasuredTrials(
            count=finished,
            seconds=sum(trial.seconds for trial in counted) / len(counted),
            passes=sum(trial.passes for trial in counted) / len(counted),
            tuned=tuned,
            taught=samples * asking / len(counted),
            warm=counted[0].warm,
        )
