"""How entries of a latency table deviate from their prior: in common with others of their kind, and each by itself.

Both are Gaussian, as is the noise; how wide each is, is what makes the evidence likeliest. Draws from the posterior say
how sure the sum of any entries is.

Source: REML (Patterson and Thompson, 1971); perturb and solve (Papandreou and Yuille, 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

_PRIOR_SDS = np.geomspace(0.01, 1.0, 13)
_NOISE_FACTORS = np.geomspace(1, 16, 9)
_SHARED_FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Standard deviation of the deviation that a kind shares, over that of its entries' own deviations."""

DRAWS = 32
"""Posterior draws; their spread is known to 1 / sqrt(2 * DRAWS) = 12 %."""


@dataclass(frozen=True, kw_only=True)
class Problem:
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
class Deviations:
    """Deviations of entries, in their units: the part that kinds share `[E]`, and the differences of posterior draws.

    `draws` are `[DRAWS, E]`, those of the remainder `[DRAWS]` in milliseconds. `prior_sd` and `noise_sd` are the
    likeliest standard deviations of an entry's own deviation and of the noise.
    """

    common: np.ndarray
    prior_sd: float
    noise_sd: float
    draws: np.ndarray
    remainder_draws: np.ndarray


def likeliest_deviations(
    choices: Sequence[Problem], kinds: np.ndarray | None, noise: float, rng: np.random.Generator
) -> tuple[int, Deviations]:
    """Return which problem makes the evidence likeliest, and the deviations there.

    Deviations that entries of a kind share are further columns of a problem.
    """
    entries = choices[0].design.shape[1]
    members = np.zeros((entries, 0)) if kinds is None else np.eye(kinds.max() + 1)[kinds]
    (share, number), prior_sd, noise_sd = _likeliest(choices, members, noise)
    design = choices[number].design
    problem = replace(choices[number], design=np.hstack([design, share * (design @ members)]))
    draws, remainder_draws = _draws(problem, prior_sd, noise_sd, rng)
    return number, Deviations(
        common=share * (members @ problem.mean(prior_sd, noise_sd)[entries:]),
        prior_sd=prior_sd,
        noise_sd=noise_sd,
        draws=draws[:, :entries] + share * (draws[:, entries:] @ members.T),
        remainder_draws=remainder_draws,
    )


def _draws(
    problem: Problem, prior_sd: float, noise_sd: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences of posterior draws from the mean: entries `[DRAWS, E]` and remainder `[DRAWS]`.

    A difference is a draw from the prior, less the mean that its own simulated evidence would have given.
    """
    projector, to_remainder = problem.projector(prior_sd, noise_sd)
    entries = rng.normal(0, prior_sd, size=(DRAWS, problem.design.shape[1]))
    seen = entries @ problem.design.T + rng.normal(0, noise_sd, size=(DRAWS, len(problem.target)))
    return entries - prior_sd**2 * (seen @ projector @ problem.design), -seen @ to_remainder


def _likeliest(choices: Sequence[Problem], members: np.ndarray, noise: float) -> tuple[tuple[float, int], float, float]:
    """Which share of kinds and problem, and which standard deviations of its prior and of the noise (at least `noise`),
    make the evidence likeliest (REML).

    Leave-one-out error cannot tell them apart: a policy with an entry of its own is predicted by the prior alone.
    """
    shares = np.array(_SHARED_FACTORS if members.size else (0.0,))
    noise_sds = noise * _NOISE_FACTORS
    badness = np.stack([_badness(problem, members, shares, noise_sds) for problem in choices], axis=1)
    share, number, i, j = np.unravel_index(badness.argmin(), badness.shape)
    return (float(shares[share]), int(number)), float(_PRIOR_SDS[i]), float(noise_sds[j])


def _badness(problem: Problem, members: np.ndarray, shares: np.ndarray, noise_sds: np.ndarray) -> np.ndarray:
    """Twice the negative logarithm of the likelihood: `[S, 13, N]` by shares of kinds, standard deviations of the prior
    and `noise_sds`.

    Few deviations are shared, so what they add to the covariance has a low rank (matrix determinant and inversion
    lemmas, Woodbury 1950), and one decomposition serves all shares.
    """
    design, target = problem.design, problem.target
    if problem.ones is not None:
        design, target = _without(problem.ones, design), _without(problem.ones, target)
    values, vectors = np.linalg.eigh(design @ design.T)
    common, target = vectors.T @ (design @ members), vectors.T @ target
    inverse = 1 / ((_PRIOR_SDS**2)[:, None, None] * np.maximum(values, 0) + (noise_sds**2)[:, None])
    own = (target**2 * inverse - np.log(inverse)).sum(axis=-1)
    gram = (inverse @ (common[:, :, None] * common[:, None]).reshape(len(common), -1)).reshape(
        *own.shape, *[common.shape[1]] * 2
    )
    seen = (inverse * target) @ common
    badness = []
    for weight in np.multiply.outer(shares**2, _PRIOR_SDS**2):
        kernel = np.eye(common.shape[1]) + weight[:, None, None, None] * gram
        told = (seen * np.linalg.solve(kernel, seen[..., None])[..., 0]).sum(axis=-1)
        badness.append(own + np.linalg.slogdet(kernel)[1] - weight[:, None] * told)
    return np.array(badness)


def _without(direction: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return `values` `[M, ...]` in an orthonormal basis of what is orthogonal to a direction `[M]`: `[M - 1, ...]`.

    The basis is all but the first row of the reflection that turns the direction to the first axis.
    """
    mirror = direction.copy()
    mirror[0] += np.copysign(np.linalg.norm(direction), direction[0])
    return (values - np.multiply.outer(mirror, (2 / (mirror @ mirror)) * (mirror @ values)))[1:]
