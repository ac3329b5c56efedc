"""The parts of a search and their expected seconds: one reckoning for `check`, `search` and a limit of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoprune.pipeline.events import DENSE, FULL, MEASURING, ORDER, RECIPE, SEARCH, TABLE, VERIFICATION, rung_title
from autoprune.search.effort import Effort, fidelity_passes
from autoprune.search.explore import SENSITIVITY
from autoprune.search.time_estimate import Part, TimeEstimate
from autoprune.search.trial_times import TrialTimes
from autoprune.trials import Fidelity

_GUIDED_SHARE, _GUIDED_TRIALS = 0.5, 16
"""Policies that a guided search scores before it expects no more gain: of those it may, and at most for each budget.

Measured: 4 to 26 of 64, 3 of 128, 13 of 24."""

_MEASURING_EXPORTS = 2
"""The timer exports the dense model twice, and again after a correction of the table, which is rare."""

_INT8_ALONE = "the dense model in int8"

_VERIFICATION_EXPORTS = 2
"""A verified model is also compared with PyTorch in several batches, and timed until noise does not decide. Measured:
1.5 to 2 times an export, once 3."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a search, and the seconds that each piece of it takes here.

    Args:
        effort: trials and fidelities.
        budgets: how many.
        baselines: mean number of models of a budget that are fine-tuned in full beside its finalists.
        shared_out: policies of a budget whose zeros the dense weights share out, for the first rung with fine-tuning.
        int8_alone: whether the dense model in int8 is verified, too.
        share: cost of a policy on a budget, as a share of the dense model's.
        apart: policies that are scored for the sensitivities.
        val_examples: of the task.
        slots: trials that run at the same time.
        guided: whether the search ends when nothing gains any more.
        taught: whether the dense model teaches, which takes a forward pass for each example of a rung.
        table_models: models that are timed for the latency table; 0 when there is one.
        table_model_s: seconds for each.
        dense_passes: sample passes of training the dense model; 0 when it is trained.
        recipe_passes: sample passes of the test of recipes.
        basis: what the seconds are from, in words.
        pass_s: seconds of a sample pass of the dense model while it is trained.
        times: of trials.
        order_s: seconds of ranking channels.
        export_s: seconds of exporting, scoring and timing one model.
        start_s: seconds until workers are ready.
        uncounted: what may come on top, in words.
        treated: whether layers of the models by which `times` were told are treated.
        calibration: sample passes of calibrating a model of the dense model's size, each time that it is scored.
        half_cost: sample passes of a model of half the widths, as a share of the dense model's.
        load: seconds that passed for each one that this process computed, when the seconds were told.
    """

    effort: Effort
    budgets: int
    share: float
    apart: int
    val_examples: int
    slots: int
    guided: bool
    taught: bool
    table_models: float
    table_model_s: float
    dense_passes: float
    recipe_passes: float
    basis: str
    pass_s: float
    times: TrialTimes
    order_s: float
    export_s: float
    start_s: float
    uncounted: str = ""
    baselines: float = 1
    shared_out: int = 0
    int8_alone: bool = False
    treated: bool = False
    calibration: float = 0.0
    half_cost: float = 0.5
    load: float = 1.0

    def parts(self) -> list[Part]:
        """Return the parts of the search in their order."""
        counts = self.effort.trials_at(self.budgets)
        (proxy, count), *later = counts.items()
        expected = min(_GUIDED_SHARE * count, _GUIDED_TRIALS * self.budgets) if self.guided else count
        rungs = [self._trials(proxy, max(round(expected), self.budgets), group=5)]
        if self.apart:
            alone = self._trials(proxy, self.apart, group=5)  # of the dense model's size, but for one decision
            passes = fidelity_passes(proxy, self.val_examples)
            rungs.insert(0, replace(alone, name=rung_title(SENSITIVITY), passes=passes))
        rungs.append(Part(name=MEASURING, group=6, unit_s=_MEASURING_EXPORTS * self.export_s))
        beside = [self.budgets * self.shared_out if len(later) > 1 else 0, *[0] * (len(later) - 1)]
        rungs += [self._trials(f, count + beside[n], group=7 + n) for n, (f, count) in enumerate(later)]
        models = round(self.budgets * (self.effort.finalists + self.baselines))
        verified_s = _VERIFICATION_EXPORTS * self.export_s
        rungs[-1] = replace(rungs[-1], units=models, announced=True)
        return [
            Part(name=TABLE, group=0, units=self.table_models, unit_s=self.table_model_s),
            Part(name=DENSE, group=1, units=self.dense_passes, unit_s=self.pass_s),
            Part(name=ORDER, group=2, unit_s=self.order_s + self.export_s),
            Part(name=RECIPE, group=3, units=self.recipe_passes, unit_s=self.pass_s),
            Part(name=SEARCH, group=4, unit_s=self.start_s),
            *rungs,
            Part(name=VERIFICATION, group=10, units=models, unit_s=verified_s, one_for_each=FULL),
            Part(name=_INT8_ALONE, group=11, units=float(self.int8_alone), unit_s=verified_s),
        ]

    @property
    def pass_share(self) -> float:
        """Sample passes of a policy on a budget, as a share of the dense model's: half the cost has half the widths."""
        return min(self.half_cost * self.share / 0.5, 1.0)

    def estimate(self) -> TimeEstimate:
        """Return the estimate of the whole search, before it begins."""
        return TimeEstimate.of(self.parts(), self.times, self.basis)

    def _trials(self, fidelity: Fidelity, count: float, group: int) -> Part:
        scored = 2 if fidelity.finetune_samples else 1
        passes = fidelity_passes(fidelity, self.val_examples) + scored * self.calibration
        return Part(
            name=FULL if fidelity == self.effort.full else rung_title(fidelity.name),
            group=group,
            units=count,
            passes=self.pass_share * passes,
            tuned=fidelity.finetune_samples > 0,
            taught=fidelity.finetune_samples if self.taught else 0.0,
            slots=self.slots,
        )
