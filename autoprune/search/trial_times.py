"""Seconds of a trial: those that any trial of its kind takes, those of its sample passes, and those of the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

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

        Fine-tuned rungs scale all parts of rehearsed times. Otherwise the cheapest and the dearest decide where their
        passes differ enough, and one alone scales. Trials without fine-tuning say what these take alone: layers in int8
        slow them down, and not the training.
        """
        rungs = sorted((r for r in measured if r.seconds > 0 and r.count), key=lambda rung: rung.passes)
        tuned, others = [r for r in rungs if r.tuned], [r for r in rungs if not r.tuned and r.warm]
        warm = [r for r in tuned if r.warm] or ([] if self.rehearsed else tuned)
        if warm and not self.rehearsed and warm[-1].passes > _FAR_APART * warm[0].passes:
            times = self._fitted(warm[0], warm[-1])
        elif warm:
            times = self._scaled(self._scale(warm))
        else:  # the first trials of workers take longer than others: that they are slow says nothing
            times = self._scaled(min(1.0, self._scale(tuned)))
        if others:
            rest_s = sum(r.count * (r.seconds - times.pass_s * r.passes) for r in others)
            times = replace(times, fixed_s=max(rest_s / sum(r.count for r in others), 0.0))
        return times

    def _scaled(self, factor: float) -> TrialTimes:
        """Return times of fine-tuned trials that are `factor` times as long."""
        return replace(
            self,
            tuned_fixed_s=factor * self.tuned_fixed_s,
            pass_s=factor * self.pass_s,
            teach_s=factor * self.teach_s,
        )

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
