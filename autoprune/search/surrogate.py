"""Predicted losses of policies from all losses so far: a Gaussian process over their sensitivities.

The logarithm of a loss is a line in a trend, by default the logarithm of the summed sensitivities, plus what units do
together. Of that the covariance of two policies falls exponentially with their distance: the differences of the square
roots of their sensitivities, summed over the units. Length and noise are the likeliest of a small grid. See
Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5, and Jones et al. (1998) for
the expected improvement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm

from autoprune.records import Policy, SearchSpace
from autoprune.search.sensitivity import by_unit
from autoprune.study.spec import SMALLEST_LOSS

Array = npt.NDArray[np.float64]
Trend = Callable[[Sequence[Policy]], Array]
"""Returns the variable, `[P]`, that the logarithm of a loss is linear in."""

_LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Distances over which the covariance falls to 1/e; 1 is a unit of average sensitivity at its smallest level."""

_NOISE = (0.01, 0.05, 0.2)
"""Variance of one measurement, as a share of the process's."""

_BELIEVED, _BELIEF = 0.1, 4
"""Variance of the logarithm of a loss around its line before anything is known, and what counts for as many losses."""

_SMALLEST = 1e-9
"""Share of a usual value that counts as 0."""


class Surrogate:
    """Posterior of the logarithm of the loss, given some losses; without any it is the trend itself.

    `table` holds the sensitivities of every searched unit, `[levels]`.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: Mapping[str, Array],
        losses: Mapping[Policy, float],
        trend: Trend | None = None,
    ) -> None:
        self._space, self._table = space, table
        self._scale = float(np.mean([table[name].max() for name in space.searched])) or 1.0
        self._trend = trend or self._summed
        policies = list(losses)
        self._points = self._coordinates(policies)
        measured = np.log(np.maximum(np.array(list(losses.values())), SMALLEST_LOSS))
        design = np.stack([np.ones(len(policies)), self._trend(policies)], axis=1)
        # One measurement's worth of belief that the loss is proportional to what the trend says.
        ridge = np.diag([_SMALLEST, 1.0])
        self._line = np.linalg.solve(design.T @ design + ridge, design.T @ measured + ridge @ [0.0, 1.0])
        self._fit(measured - design @ self._line)

    def mean(self, policies: Sequence[Policy]) -> Array:
        """Expected logarithm of the losses, `[P]`."""
        return self._mean(policies, self._kernel(self._coordinates(policies), self._points))

    def posterior(self, policies: Sequence[Policy]) -> tuple[Array, Array]:
        """Mean `[P]` and covariance `[P, P]` of the logarithm of the losses."""
        points = self._coordinates(policies)
        known = self._kernel(points, self._points)
        explained = known @ cho_solve(self._factor, known.T) if len(self._points) else 0.0
        return self._mean(policies, known), self._variance * (self._kernel(points, points) - explained)

    def gain(self, policies: Sequence[Policy], best: float) -> Array:
        """Expected improvement over the logarithm `best` of a loss, `[P]`: about the share that is saved."""
        known = self._kernel(self._coordinates(policies), self._points)
        variance = np.ones(len(policies))
        if len(self._points):
            variance -= (known * cho_solve(self._factor, known.T).T).sum(axis=1)
        return expected_gain(best - self._mean(policies, known), self._variance * variance)

    def _mean(self, policies: Sequence[Policy], known: Array) -> Array:
        return self._line[0] + self._line[1] * self._trend(policies) + known @ self._weights

    def _summed(self, policies: Sequence[Policy]) -> Array:
        sums = by_unit(self._space, self._table, policies).sum(axis=1)
        return np.log(np.maximum(sums, _SMALLEST * self._scale))

    def _coordinates(self, policies: Sequence[Policy]) -> Array:
        return np.sqrt(by_unit(self._space, self._table, policies) / self._scale)

    def _kernel(self, ones: Array, others: Array) -> Array:
        return np.exp(-_distances(ones, others) / self._length)

    def _fit(self, residual: Array) -> None:
        """Length, noise and variance that make the residuals likeliest."""
        self._length, self._variance, self._weights = _LENGTHS[-1], _BELIEVED, residual
        if not len(residual):
            return
        apart, likeliest = _distances(self._points, self._points), -np.inf
        for length in _LENGTHS:
            for noise in _NOISE:
                factor = cho_factor(np.exp(-apart / length) + noise * np.eye(len(residual)))
                weights = cho_solve(factor, residual)
                count = len(residual) + _BELIEF
                variance = (float(residual @ weights) + _BELIEF * _BELIEVED) / count
                likelihood = -0.5 * count * np.log(variance) - np.log(np.diag(factor[0])).sum()
                if likelihood > likeliest:
                    likeliest, self._length, self._variance = likelihood, length, variance
                    self._factor, self._weights = factor, weights


def expected_gain(better: Array, variance: Array) -> Array:
    """Mean of what is above 0 of normal variables with these means and variances, `[P]`."""
    deviation = np.sqrt(np.maximum(variance, _SMALLEST))
    return deviation * (better / deviation * norm.cdf(better / deviation) + norm.pdf(better / deviation))


def conditioned(covariance: Array, place: int) -> Array:
    """The covariance `[P, P]` after one policy is measured; the outcome does not matter."""
    column = covariance[:, place]
    return covariance - np.outer(column, column) / max(column[place], _SMALLEST)


def _distances(ones: Array, others: Array) -> Array:
    return np.abs(ones[:, None] - others[None]).sum(axis=2)
