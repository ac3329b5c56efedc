"""The one dial of a search: everything that costs sample passes derives from `small`, `medium` or `large`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.errors import UsageError, unknown_name
from autoprune.trials import CHECKS_SHARE, FORWARD_SHARE, HELD_OUT_EXAMPLES, Fidelity

PROXY_VAL_SAMPLES = 500

_CALIBRATION_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class _Dial:
    trials: int
    brief_samples: int
    longer_samples: int
    full_epochs: int
    promoted: tuple[int, int]
    finalists: int


_DIALS: Mapping[str, _Dial] = {
    "small": _Dial(trials=128, brief_samples=2_000, longer_samples=10_000, full_epochs=2, promoted=(6, 2), finalists=1),
    "medium": _Dial(
        trials=256, brief_samples=5_000, longer_samples=25_000, full_epochs=6, promoted=(12, 3), finalists=2
    ),
    "large": _Dial(
        trials=512, brief_samples=10_000, longer_samples=60_000, full_epochs=12, promoted=(18, 4), finalists=2
    ),
}
EFFORTS = tuple(_DIALS)

# Two epochs of a tiny data set would be less than the longer rung, so a full fine-tune is at least this many of those.
_FULL_OVER_LONGER = 8

# On small data a rung takes at most so many epochs: more would no longer be brief.
_BRIEF_EPOCHS, _LONGER_EPOCHS = 1, 3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Limits on what a search spends.

    `rungs` are the fidelities of the search, the proxy first. `promoted[i]` is how many policies per budget, beside the
    uniform baseline, go on to `rungs[i + 1]`. `finalists` per budget are fine-tuned at `full`, again beside the
    baseline.
    """

    name: str
    trials: int
    rungs: tuple[Fidelity, ...]
    promoted: tuple[int, ...]
    full: Fidelity
    finalists: int

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(f"a search needs at least one trial; got {self.trials}")
        if len(self.promoted) != len(self.rungs) - 1:
            raise UsageError(f"{len(self.rungs)} rungs need {len(self.rungs) - 1} promotions; got {self.promoted}")

    @classmethod
    def derive(
        cls,
        name: str,
        *,
        train_examples: int,
        val_examples: int,
        trials: int | None = None,
        full_epochs: float | None = None,
    ) -> Effort:
        """The effort of that name for data of that size; `trials` overrides the number at the proxy.

        `full_epochs` overrides the length of the full fine-tune; a rung before it is then never longer.

        `UsageError` for an unknown name, empty data or fewer than one trial.
        """
        if name not in _DIALS:
            raise unknown_name("effort", name, _DIALS)
        if train_examples < 1 or val_examples < 1:
            raise UsageError(f"a search needs training and validation data; got {train_examples} and {val_examples}")
        dial = _DIALS[name]
        longer = min(dial.longer_samples, _LONGER_EPOCHS * train_examples)
        if full_epochs is None:
            full = max(dial.full_epochs, math.ceil(_FULL_OVER_LONGER * longer / train_examples)) * train_examples
        else:
            full = max(1, round(full_epochs * train_examples))
        val = PROXY_VAL_SAMPLES if val_examples > PROXY_VAL_SAMPLES else 0
        return cls(
            name=name,
            trials=dial.trials if trials is None else trials,
            rungs=(
                Fidelity(name="proxy", rung=0, val_samples=val),
                Fidelity(
                    name="brief",
                    rung=1,
                    finetune_samples=min(dial.brief_samples, _BRIEF_EPOCHS * train_examples, full),
                    val_samples=val,
                ),
                Fidelity(name="longer", rung=2, finetune_samples=min(longer, full)),
            ),
            promoted=dial.promoted,
            full=Fidelity(name="full", rung=3, finetune_samples=full),
            finalists=dial.finalists,
        )

    def trials_at(self, budgets: int) -> dict[Fidelity, int]:
        """How many trials each fidelity gets at most, the full fine-tune last."""
        later = [*self.promoted, self.finalists]
        counts = [max(self.trials, budgets), *(budgets * (count + 1) for count in later)]
        return dict(zip([*self.rungs, self.full], counts, strict=True))

    def sample_passes(self, budgets: int, val_examples: int) -> float:
        """Upper estimate of the passes of the whole search and its full fine-tunes (pruned models cost less)."""
        trials = self.trials_at(budgets)
        teacher = FORWARD_SHARE * sum(fidelity.finetune_samples for fidelity in trials)
        return teacher + sum(count * fidelity_passes(fidelity, val_examples) for fidelity, count in trials.items())

    def expected_passes(self, *, budgets: int, val_examples: int, share: float, apart: int) -> float:
        """Upper estimate for policies of a `share` of the dense cost, and `apart` single-unit policies."""
        return share * self.sample_passes(budgets, val_examples) + apart * proxy_passes(self, val_examples)


def proxy_passes(effort: Effort, val_examples: int) -> float:
    """Passes of one policy of the dense model's size at the cheapest fidelity."""
    return fidelity_passes(effort.rungs[0], val_examples)


def fidelity_passes(fidelity: Fidelity, val_examples: int) -> float:
    """Return the passes of one policy of the dense model's size; one that is fine-tuned is scored before it, too."""
    scored, tuned = fidelity.val_samples or val_examples, fidelity.finetune_samples
    if not tuned:
        return FORWARD_SHARE * (scored + _CALIBRATION_SAMPLES)
    held_out = 2 * min(HELD_OUT_EXAMPLES, val_examples)
    return (1 + CHECKS_SHARE) * tuned + FORWARD_SHARE * (2 * scored + held_out + _CALIBRATION_SAMPLES)
