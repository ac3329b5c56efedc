"""Fitting an additive table to end-to-end times, with per-node times as the prior.

    time(policy) = remainder + sum over its operators of entry(geometry)

A few hundred times cannot determine a thousand entries alone. Node times from the runtime's profiler know the shape
but carry its overhead; they are scaled to the evidence first, then all entries of a kind together, and each by itself,
may deviate from the scaled prior: Gaussian priors on relative deviations and Gaussian noise, all as wide as makes the
evidence likeliest (ridge regression by another name). Draws from the posterior (perturb and solve) say how sure the sum
of any entries is.

Source: REML (Patterson and Thompson, 1971); perturb and solve (Papandreou and Yuille, 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.stats import rankdata

from autoprune.latency.monotonicity import disjoint, monotone

_PRIOR_SDS = np.geomspace(0.01, 1.0, 13)
_NOISE_FACTORS = np.geomspace(1, 16, 9)
_SHARED_FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Standard deviation of the deviation that a kind shares, over that of its entries' own deviations."""

_ITERATIONS = 60
_LEAST_SHARE = 0.05
"""No entry falls below this share of its prior: work is never free."""

DRAWS = 32
"""Posterior draws; their spread is known to 1 / sqrt(2 * DRAWS) = 12 %."""


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
    start_ms, remainder = _calibrated(counts, times_ms, prior_ms, scale)
    rng = np.random.default_rng(seed)
    fitted = _fitted(counts, times_ms, scale, (start_ms, remainder), chains, kinds, noise, rng)
    if fitted.remainder_ms < 0:
        fitted = _fitted(counts, times_ms, scale, (start_ms, None), chains, kinds, noise, rng)
    return fitted


def _fitted(
    counts: np.ndarray, times_ms: np.ndarray, scale: np.ndarray, start: tuple[np.ndarray, float | None],
    chains: Sequence[np.ndarray], kinds: np.ndarray | None, noise: float, rng: np.random.Generator,
) -> Fit:  # fmt: skip
    """The fit around calibrated entries `[E]` and a remainder, which may become negative; `None`: it is 0."""
    start_ms, before = start
    ones = None if before is None else scale
    target = (times_ms - (before or 0.0) - counts @ start_ms) * scale
    shared = _by_kind(_Problem(design=counts * start_ms * scale[:, None], target=target, ones=ones), kinds, noise, rng)
    moved_ms = start_ms * np.maximum(1 + shared.common, _LEAST_SHARE)
    problem = _Problem(
        design=counts * moved_ms * scale[:, None],
        target=(times_ms - (before or 0.0) - counts @ moved_ms) * scale,
        ones=ones,
    )

    precision = moved_ms**-2.0

    def rising(deviation: np.ndarray, family: Sequence[np.ndarray]) -> np.ndarray:
        return monotone(moved_ms * (1 + deviation), precision, family) / moved_ms - 1

    families = disjoint(chains)
    deviation = _constrained(
        problem,
        shared.prior_sd,
        shared.noise_sd,
        [lambda d: np.maximum(d, _LEAST_SHARE - 1), *(partial(rising, family=family) for family in families)],
    )
    entries = monotone(moved_ms * np.maximum(1 + deviation, _LEAST_SHARE), precision, chains)
    left = 0.0 if before is None else float(np.average(times_ms - counts @ entries, weights=scale**2))
    return Fit(
        entries_ms=entries,
        remainder_ms=left,
        spread_ms=shared.draws * start_ms,
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

    Without `ones` there is no remainder. Solved on the `[M, M]` Gram matrix: there are fewer policies than entries.
    """

    design: np.ndarray
    target: np.ndarray
    ones: np.ndarray | None

    def projector(self, prior_sd: float, noise_sd: float) -> tuple[np.ndarray, np.ndarray]:
        """Inverse covariance of the target with the remainder (which has no prior) projected out, and its estimator."""
        gram = self.design @ self.design.T
        inverse = np.linalg.inv(prior_sd**2 * gram + noise_sd**2 * np.eye(len(gram)))
        if self.ones is None:
            return inverse, np.zeros(len(inverse))
        u = inverse @ self.ones
        return inverse - np.outer(u, u) / (self.ones @ u), u / (self.ones @ u)

    def mean(self, prior_sd: float, noise_sd: float) -> np.ndarray:
        """The likeliest deviations `[E]`."""
        return prior_sd**2 * (self.design.T @ (self.projector(prior_sd, noise_sd)[0] @ self.target))


@dataclass(frozen=True, kw_only=True)
class _Deviations:
    """Relative deviations of entries: the part that kinds share `[E]`, and the differences of posterior draws.

    `draws` are `[DRAWS, E]`, those of the remainder `[DRAWS]` in milliseconds. `prior_sd` and `noise_sd` are the
    likeliest standard deviations of an entry's own deviation and of the noise.
    """

    common: np.ndarray
    prior_sd: float
    noise_sd: float
    draws: np.ndarray
    remainder_draws: np.ndarray


def _by_kind(problem: _Problem, kinds: np.ndarray | None, noise: float, rng: np.random.Generator) -> _Deviations:
    """Estimate the deviation that entries of a kind share; deviations of kinds are further columns of the problem."""
    entries = problem.design.shape[1]
    members = np.zeros((entries, 0)) if kinds is None else np.eye(kinds.max() + 1)[kinds]
    shares = _SHARED_FACTORS if members.size else (0.0,)
    problems = {
        share: replace(problem, design=np.hstack([problem.design, share * (problem.design @ members)]))
        for share in shares
    }
    share, prior_sd, noise_sd = _likeliest(problems, noise)
    draws, remainder_draws = _draws(problems[share], prior_sd, noise_sd, rng)
    mean = problems[share].mean(prior_sd, noise_sd)
    return _Deviations(
        common=share * (members @ mean[entries:]),
        prior_sd=prior_sd,
        noise_sd=noise_sd,
        draws=draws[:, :entries] + share * (draws[:, entries:] @ members.T),
        remainder_draws=remainder_draws,
    )


def _constrained(
    problem: _Problem, prior_sd: float, noise_sd: float, projections: Sequence[Callable[[np.ndarray], np.ndarray]]
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


def _draws(
    problem: _Problem, prior_sd: float, noise_sd: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences of posterior draws from the mean: entries `[DRAWS, E]` and remainder `[DRAWS]`.

    A difference is a draw from the prior, less the mean that its own simulated evidence would have given.
    """
    projector, to_remainder = problem.projector(prior_sd, noise_sd)
    entries = rng.normal(0, prior_sd, size=(DRAWS, problem.design.shape[1]))
    seen = entries @ problem.design.T + rng.normal(0, noise_sd, size=(DRAWS, len(problem.target)))
    return entries - prior_sd**2 * (seen @ projector @ problem.design), -seen @ to_remainder


def _likeliest(problems: Mapping[float, _Problem], noise: float) -> tuple[float, float, float]:
    """Which problem, and standard deviations of its prior and of the noise (at least `noise`), make the evidence
    likeliest (REML).

    Leave-one-out error cannot tell them apart: a policy with an entry of its own is predicted by the prior alone.
    """
    badness = {key: _badness(problem, noise) for key, problem in problems.items()}
    return min(((key, *pair) for key, grid in badness.items() for pair in grid), key=lambda k: badness[k[0]][k[1:]])


def _badness(problem: _Problem, noise: float) -> dict[tuple[float, float], float]:
    """Twice the negative logarithm of the likelihood by standard deviations of prior and noise."""
    design, target = problem.design, problem.target
    if problem.ones is not None:
        basis = np.linalg.qr(np.column_stack([problem.ones, np.eye(len(target))[:, 1:]]))[0][:, 1:]
        design, target = basis.T @ design, basis.T @ target
    values, vectors = np.linalg.eigh(design @ design.T)
    rotated = (vectors.T @ target) ** 2
    badness = {}
    for prior_sd in map(float, _PRIOR_SDS):
        for noise_sd in map(float, noise * _NOISE_FACTORS):
            variance = prior_sd**2 * np.maximum(values, 0) + noise_sd**2
            badness[prior_sd, noise_sd] = float(np.sum(np.log(variance) + rotated / variance))
    return badness
