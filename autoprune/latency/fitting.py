"""Fitting an additive table to end-to-end times, with per-node times as the prior.

    time(policy) = remainder + sum over its operators of entry(geometry)

A few hundred times cannot determine a thousand entries alone. Node times from the runtime's profiler know the shape
but carry its overhead; they are scaled to the evidence first, then all entries of a kind together, and each by itself,
may deviate from the scaled prior: Gaussian priors on relative deviations and Gaussian noise, all as wide as makes the
evidence likeliest (ridge regression by another name, see `deviations`). The overhead that is taken off differs from one
operator to the next, so entries that are small beside it may deviate by a share of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.stats import rankdata

from autoprune.latency.deviations import Problem, likeliest_deviations
from autoprune.latency.monotonicity import disjoint, monotone

_OVERHEAD_SHARES = (0.0, 0.3, 1.0)
"""How much of the profiler's overhead may differ from one operator to the next."""

_ITERATIONS = 60
_LEAST_SHARE = 0.05
"""No entry falls below this share of its prior: work is never free."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted costs `entries_ms` `[E]` and the constant cost of a run, `remainder_ms`.

    Posterior draws differ from them by `spread_ms` `[DRAWS, E]` and `remainder_spread_ms` `[DRAWS]`.
    """

    entries_ms: np.ndarray
    remainder_ms: float
    spread_ms: np.ndarray
    remainder_spread_ms: np.ndarray

    def predict(self, counts: np.ndarray) -> np.ndarray:
        """Milliseconds `[M]` for occurrence counts `[M, E]`."""
        return self.remainder_ms + counts @ self.entries_ms

    def sd_ms(self, counts: np.ndarray) -> np.ndarray:
        """Standard deviation of the prediction `[M]`, as the posterior has it."""
        return np.sqrt(np.mean((self.remainder_spread_ms + counts @ self.spread_ms.T) ** 2, axis=1))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How a table predicts policies that it was not fitted to; errors in percent of the measured latency.

    `noise_percent` is the mean absolute difference between two measurements of the same policies: no table can be
    better than it can be shown to be. `within_2sd` is the share of policies within two standard deviations.
    """

    policies: int
    mape_percent: float
    max_percent: float
    bias_percent: float
    spearman: float
    noise_percent: float
    within_2sd: float


def fit(
    counts: np.ndarray,
    times_ms: np.ndarray,
    prior_ms: np.ndarray,
    weights: np.ndarray | None = None,
    chains: Sequence[np.ndarray] = (),
    kinds: np.ndarray | None = None,
    noise: float = 0.004,
    seed: int = 0,
) -> Fit:
    """Fit entries to `times_ms` `[M]` of policies with occurrence `counts` `[M, E]`, from `prior_ms` `[E]` (above 0).

    Errors are relative; `weights` `[M]` multiply them (default 1). Entries and remainder are not negative. `chains` are
    positions of entries that may not fall from one to the next (see `ordered_chains`). `kinds` `[E]` number the kinds
    from 0; entries of one kind share a deviation (default: no kinds). `noise` is the least relative standard deviation
    of one time.
    """
    scale = (np.ones_like(times_ms) if weights is None else weights) / times_ms
    start = _calibrated(counts, times_ms, prior_ms, scale)
    rng = np.random.default_rng(seed)
    fitted = _fitted(counts, times_ms, scale, start, chains, kinds, noise, rng)
    if fitted.remainder_ms < 0:
        fitted = _fitted(counts, times_ms, scale, replace(start, remainder_ms=None), chains, kinds, noise, rng)
    return fitted


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where a fit begins: calibrated entries `[E]`, the constant cost (`None`: 0), and the overhead taken off each.

    An entry deviates in proportion to itself, and one that is smaller than `unsure_ms` in proportion to that: what was
    taken off is only about the same for all operators.
    """

    entries_ms: np.ndarray
    remainder_ms: float | None
    overhead_ms: float
    unsure_ms: float = 0.0

    def choices(self) -> list[_Start]:
        """Return this start with each share of the overhead that may be unsure."""
        shares = _OVERHEAD_SHARES if self.overhead_ms else (0.0,)
        return [replace(self, unsure_ms=share * self.overhead_ms) for share in shares]

    def unit_ms(self, entries_ms: np.ndarray) -> np.ndarray:
        """The unit `[E]` of the deviations of entries."""
        return np.hypot(entries_ms, self.unsure_ms)


def _fitted(
    counts: np.ndarray, times_ms: np.ndarray, scale: np.ndarray, start: _Start, chains: Sequence[np.ndarray],
    kinds: np.ndarray | None, noise: float, rng: np.random.Generator,
) -> Fit:  # fmt: skip
    """The fit around calibrated entries `[E]` and a remainder, which may become negative; `None`: it is 0."""
    start_ms, before = start.entries_ms, start.remainder_ms
    ones, varying_ms = None if before is None else scale, times_ms - (before or 0.0)

    def around(entries_ms: np.ndarray, start: _Start) -> Problem:
        design = counts * start.unit_ms(entries_ms) * scale[:, None]
        return Problem(design=design, target=(varying_ms - counts @ entries_ms) * scale, ones=ones)

    choices = start.choices()
    number, shared = likeliest_deviations([around(start_ms, choice) for choice in choices], kinds, noise, rng)
    start, least_ms = choices[number], _LEAST_SHARE * start_ms
    moved_ms = np.maximum(start_ms + shared.common * start.unit_ms(start_ms), least_ms)
    unit_ms, families = start.unit_ms(moved_ms), disjoint(chains)

    def rising(deviation: np.ndarray, family: Sequence[np.ndarray]) -> np.ndarray:
        return (monotone(moved_ms + unit_ms * deviation, unit_ms**-2.0, family) - moved_ms) / unit_ms

    deviation = _constrained(
        around(moved_ms, start),
        shared.prior_sd,
        shared.noise_sd,
        [
            lambda d: np.maximum(d, (_LEAST_SHARE * moved_ms - moved_ms) / unit_ms),
            *(partial(rising, family=family) for family in families),
        ],
    )
    entries = np.maximum(moved_ms + unit_ms * deviation, _LEAST_SHARE * moved_ms)
    entries = monotone(entries, unit_ms**-2.0, chains)
    left = 0.0 if before is None else float(np.average(times_ms - counts @ entries, weights=scale**2))
    return Fit(
        entries_ms=entries,
        remainder_ms=left,
        spread_ms=shared.draws * start.unit_ms(start_ms),
        remainder_spread_ms=shared.remainder_draws,
    )


def held_out(predicted_ms: np.ndarray, measured_ms: np.ndarray, again_ms: np.ndarray, sd_ms: np.ndarray) -> HeldOut:
    """Compare predictions with measurements; `again_ms` repeats the first measurements (fewer are allowed)."""
    error = (predicted_ms / measured_ms - 1) * 100
    noise = np.abs(again_ms / measured_ms[: len(again_ms)] - 1) * 100
    return HeldOut(
        policies=len(measured_ms),
        mape_percent=float(np.abs(error).mean()),
        max_percent=float(np.abs(error).max()),
        bias_percent=float(error.mean()),
        spearman=spearman(predicted_ms, measured_ms),
        noise_percent=float(noise.mean()) if noise.size else 0.0,
        within_2sd=float((np.abs(predicted_ms - measured_ms) <= 2 * sd_ms).mean()),
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation; 1 where one array is constant, because nothing can be ranked wrongly."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _calibrated(counts: np.ndarray, times_ms: np.ndarray, prior_ms: np.ndarray, scale: np.ndarray) -> _Start:
    """The prior, stretched and shifted by least squares; only stretched when noise inverts the slope.

    A negative constant is the overhead of the profiler: it is taken off every operator alike, down to a least share.
    """
    basis = np.stack([counts @ prior_ms, np.ones(len(times_ms))], axis=1) * scale[:, None]
    (factor, remainder), *_ = np.linalg.lstsq(basis, times_ms * scale, rcond=None)
    if factor <= 0:
        factor, remainder = times_ms.mean() / (counts @ prior_ms).mean(), 0.0
    overhead_ms = max(0.0, -float(remainder)) / counts.sum(axis=1).mean()
    entries_ms = np.maximum(factor * prior_ms - overhead_ms, factor * prior_ms * _LEAST_SHARE)
    return _Start(entries_ms=entries_ms, remainder_ms=max(0.0, float(remainder)), overhead_ms=overhead_ms)


def _constrained(
    problem: Problem, prior_sd: float, noise_sd: float, projections: Sequence[Callable[[np.ndarray], np.ndarray]]
) -> np.ndarray:
    """The likeliest deviations `[E]` in all of some convex sets, (nearly): consensus ADMM (Boyd et al., 2011, 7.1).

    Every set is given by its exact projection and has a copy of the deviations, tied to them as the prior ties them to
    0. One projection to all sets at once would have to be exact too: with sweeps over the sets the iteration diverges.
    """
    copies = prices = np.zeros((len(projections), problem.design.shape[1]))
    pulls = 1 + len(projections)
    tied_sd = prior_sd / np.sqrt(pulls)
    projector, _ = problem.projector(tied_sd, noise_sd)
    free = copies[0]
    for _ in range(_ITERATIONS):
        centre = (copies - prices).sum(axis=0) / pulls
        free = centre + tied_sd**2 * (problem.design.T @ (projector @ (problem.target - problem.design @ centre)))
        copies = np.stack([project(free + price) for project, price in zip(projections, prices, strict=True)])
        prices = prices + free - copies
    return free
