"""Fitting an additive table to end-to-end times, with per-node times as the prior.

    time(policy) = remainder + sum over its operators of entry(geometry)

A few hundred times cannot determine a thousand entries alone. Node times from the runtime's profiler know the shape
but carry its overhead; they are scaled to the evidence first, then every entry may deviate from its scaled prior: a
Gaussian prior on relative deviations and Gaussian noise, both as wide as makes the evidence likeliest (ridge regression
by another name). Draws from the posterior (perturb and solve) say how sure the sum of any entries is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from autoprune.latency.order import monotone

_PRIOR_SDS = np.geomspace(0.01, 1.0, 13)
_NOISE_FACTORS = np.geomspace(1, 16, 9)
_ITERATIONS = 12
_LEAST_SHARE = 0.05
"""No entry falls below this share of its prior: work is never free."""

DRAWS = 32
"""Posterior draws; their spread is known to 1 / sqrt(2 * DRAWS) = 12 %."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """`entries_ms` `[E]` and the constant cost of a run, with what posterior draws differ from them by.

    `spread_ms` is `[DRAWS, E]`, `remainder_spread_ms` `[DRAWS]`.
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
    noise: float = 0.004,
    seed: int = 0,
) -> Fit:
    """Fit entries to `times_ms` `[M]` of policies with occurrence `counts` `[M, E]`, from `prior_ms` `[E]` (above 0).

    Errors are relative; `weights` `[M]` multiply them (default 1). Entries and remainder are not negative. `chains` are
    positions of entries that may not fall from one to the next (see `order`). `noise` is the relative standard
    deviation of one time, as far as it is known.
    """
    scale = (np.ones_like(times_ms) if weights is None else weights) / times_ms
    start_ms, remainder = _calibrated(counts, times_ms, prior_ms, scale)
    problem = _Problem(
        design=counts * start_ms * scale[:, None],
        target=(times_ms - remainder - counts @ start_ms) * scale,
        ones=scale,
    )
    prior_sd, noise_sd = _likeliest(problem, noise)

    def allowed(deviation: np.ndarray) -> np.ndarray:
        entries = np.maximum(start_ms * (1 + deviation), _LEAST_SHARE * start_ms)
        return monotone(entries, start_ms**-2.0, chains) / start_ms - 1

    entries = start_ms * (1 + _constrained(problem, prior_sd, noise_sd, allowed))
    remainder = float(np.average(times_ms - counts @ entries, weights=scale**2))
    entries, remainder = _without_negative_remainder(counts, entries, remainder)
    draws, remainder_draws = _draws(problem, prior_sd, noise_sd, np.random.default_rng(seed))
    return Fit(
        entries_ms=entries,
        remainder_ms=remainder,
        spread_ms=draws * start_ms,
        remainder_spread_ms=remainder_draws,
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
    """Rank correlation; 1 where one of them does not vary at all (nothing can be ranked wrongly)."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _calibrated(
    counts: np.ndarray, times_ms: np.ndarray, prior_ms: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, float]:
    """The prior, stretched and shifted by least squares; only stretched when noise inverts the slope."""
    basis = np.stack([counts @ prior_ms, np.ones(len(times_ms))], axis=1) * scale[:, None]
    (factor, remainder), *_ = np.linalg.lstsq(basis, times_ms * scale, rcond=None)
    if factor <= 0:
        factor, remainder = times_ms.mean() / (counts @ prior_ms).mean(), 0.0
    return _without_negative_remainder(counts, factor * prior_ms, float(remainder))


def _without_negative_remainder(
    counts: np.ndarray, entries_ms: np.ndarray, remainder_ms: float
) -> tuple[np.ndarray, float]:
    """Take a negative constant, the overhead of the profiler, off every operator alike, down to a least share."""
    overhead_ms = max(0.0, -remainder_ms) / counts.sum(axis=1).mean()
    least_ms = entries_ms * _LEAST_SHARE
    return np.maximum(entries_ms - overhead_ms, least_ms), max(0.0, remainder_ms)


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """`target` `[M]` = `design` `[M, E]` @ deviations + `ones` `[M]` * remainder + noise; all in units of the noise.

    Solved on the `[M, M]` Gram matrix, since there are fewer policies than entries.
    """

    design: np.ndarray
    target: np.ndarray
    ones: np.ndarray

    def projector(self, prior_sd: float, noise_sd: float) -> tuple[np.ndarray, np.ndarray]:
        """Inverse covariance of the target with the remainder (which has no prior) projected out, and its estimator."""
        gram = self.design @ self.design.T
        inverse = np.linalg.inv(prior_sd**2 * gram + noise_sd**2 * np.eye(len(gram)))
        u = inverse @ self.ones
        return inverse - np.outer(u, u) / (self.ones @ u), u / (self.ones @ u)


def _constrained(
    problem: _Problem, prior_sd: float, noise_sd: float, allowed: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The likeliest deviations `[E]` among those that `allowed` projects to: ADMM with half the prior as the tie."""
    half = prior_sd / np.sqrt(2)
    projector, _ = problem.projector(half, noise_sd)
    free = projected = price = np.zeros(problem.design.shape[1])
    for _ in range(_ITERATIONS):
        centre = (projected - price) / 2
        free = centre + half**2 * (problem.design.T @ (projector @ (problem.target - problem.design @ centre)))
        projected = allowed(free + price)
        price = price + free - projected
    return projected


def _draws(
    problem: _Problem, prior_sd: float, noise_sd: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What posterior draws differ by: entries `[DRAWS, E]` and remainder `[DRAWS]`.

    A draw from the prior, less what the evidence would have made of it.
    """
    projector, to_remainder = problem.projector(prior_sd, noise_sd)
    entries = rng.normal(0, prior_sd, size=(DRAWS, problem.design.shape[1]))
    seen = entries @ problem.design.T + rng.normal(0, noise_sd, size=(DRAWS, len(problem.target)))
    return entries - prior_sd**2 * (seen @ projector @ problem.design), -seen @ to_remainder


def _likeliest(problem: _Problem, noise: float) -> tuple[float, float]:
    """Standard deviations of the prior and of the noise (at least `noise`) that make the evidence likeliest (REML).

    Leave-one-out error cannot tell them apart: a policy with an entry of its own is predicted by the prior alone.
    """
    basis = np.linalg.qr(np.column_stack([problem.ones, np.eye(len(problem.ones))[:, 1:]]))[0][:, 1:]
    design = basis.T @ problem.design
    values, vectors = np.linalg.eigh(design @ design.T)
    rotated = (vectors.T @ (basis.T @ problem.target)) ** 2
    grid = [(float(tau), float(sigma)) for tau in _PRIOR_SDS for sigma in noise * _NOISE_FACTORS]

    def badness(pair: tuple[float, float]) -> float:
        variance = pair[0] ** 2 * np.maximum(values, 0) + pair[1] ** 2
        return float(np.sum(np.log(variance) + rotated / variance))

    return min(grid, key=badness)
