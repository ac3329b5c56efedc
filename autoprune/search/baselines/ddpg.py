"""Deep deterministic policy gradient (Lillicrap et al., ICLR 2016) for one action in [0, 1], in NumPy.

Shapes: B examples of a batch, T steps of an episode, S numbers of a state.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr, ndtri

Array = npt.NDArray[np.float64]

_HIDDEN = 64
_ACTOR_RATE, _CRITIC_RATE = 1e-4, 1e-3
_BATCH = 64
_UPDATES = 4
"""Updates for each step of an episode that is learned from."""

_FOLLOW = 0.01
"""Share by which the target networks move towards the trained ones in every update."""

_BASELINE_FOLLOW = 0.5
"""The same for the mean reward that is taken off all rewards."""

_MEMORY = 2_000


class Network:
    """Two hidden layers with ReLU and one linear output, trained by Adam."""

    def __init__(self, rng: np.random.Generator, inputs: int, rate: float) -> None:
        self._rate = rate
        sizes = [(inputs, _HIDDEN), (_HIDDEN, _HIDDEN), (_HIDDEN, 1)]
        weights = [rng.uniform(-1, 1, size) / np.sqrt(size[0]) for size in sizes]
        self._parameters = [part for weight in weights for part in (weight, np.zeros(weight.shape[1]))]
        self._moments = [(np.zeros_like(part), np.zeros_like(part)) for part in self._parameters]
        self._updates = 0

    def __call__(self, x: Array) -> Array:
        """Outputs `[B]` for inputs `[B, inputs]`."""
        return self._forward(x)[-1][:, 0]

    def backward(self, x: Array, slopes: Array) -> tuple[Array, list[Array]]:
        """Gradients by the inputs `[B, inputs]` and by the parameters, for those of the outputs, `slopes` `[B]`."""
        layers = self._forward(x)
        slope, gradients = slopes[:, None], []
        for layer in (2, 1, 0):
            gradients = [layers[layer].T @ slope, slope.sum(axis=0), *gradients]
            slope = slope @ self._parameters[2 * layer].T
            if layer:
                slope = slope * (layers[layer] > 0)
        return slope, gradients

    def descend(self, gradients: list[Array]) -> None:
        """One step of Adam (Kingma & Ba, ICLR 2015)."""
        self._updates += 1
        for part, gradient, (mean, square) in zip(self._parameters, gradients, self._moments, strict=True):
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            scale = np.sqrt(square / (1 - 0.999**self._updates)) + 1e-8
            part -= self._rate * mean / (1 - 0.9**self._updates) / scale

    def follow(self, other: Network) -> None:
        """Move a little towards the parameters of another network."""
        for part, goal in zip(self._parameters, other._parameters, strict=True):
            part += _FOLLOW * (goal - part)

    def _forward(self, x: Array) -> list[Array]:
        layers = [x]
        for layer in range(3):
            sums = layers[-1] @ self._parameters[2 * layer] + self._parameters[2 * layer + 1]
            layers.append(np.maximum(sums, 0) if layer < 2 else sums)
        return layers


class Ddpg:
    """An agent that learns from whole episodes, each with one reward. Deterministic in `rng`."""

    def __init__(self, rng: np.random.Generator, state_size: int) -> None:
        self._rng = rng
        self._actor = Network(rng, state_size, _ACTOR_RATE)
        self._critic = Network(rng, state_size + 1, _CRITIC_RATE)
        self._target_actor, self._target_critic = deepcopy(self._actor), deepcopy(self._critic)
        self._memory = np.empty((_MEMORY, 2 * state_size + 3))
        self._remembered = 0
        self._baseline: float | None = None

    def act(self, state: Array, noise: float) -> float:
        """The action for a state `[S]`, drawn from a normal distribution around the actor's, cut off at 0 and 1."""
        mean = float(expit(self._actor(state[None]))[0])
        if noise == 0:
            return mean
        low, high = ndtr([-mean / noise, (1 - mean) / noise])
        return float(np.clip(mean + noise * ndtri(self._rng.uniform(low, high)), 0, 1))

    def learn(self, states: Array, actions: Array, reward: float) -> None:
        """Remember an episode, states `[T, S]` and actions `[T]`, and learn from all that is remembered."""
        following = np.concatenate([states[1:], states[-1:]])
        for step, (state, action, after) in enumerate(zip(states, actions, following, strict=True)):
            done = float(step == len(states) - 1)
            self._memory[self._remembered % _MEMORY] = np.concatenate([state, [action, reward, done], after])
            self._remembered += 1
        for _ in range(_UPDATES * len(actions)):
            self._update()

    def _update(self) -> None:
        rows = self._memory[self._rng.integers(min(self._remembered, _MEMORY), size=_BATCH)]
        size = (rows.shape[1] - 3) // 2
        states, taken, after = rows[:, :size], rows[:, : size + 1], rows[:, size + 3 :]
        rewards, done = rows[:, size + 1], rows[:, size + 2]
        mean = float(rewards.mean())
        self._baseline = mean if self._baseline is None else self._baseline + _BASELINE_FOLLOW * (mean - self._baseline)
        next_values = self._target_critic(_joined(after, expit(self._target_actor(after))))
        errors = self._critic(taken) - (rewards - self._baseline + (1 - done) * next_values)
        self._critic.descend(self._critic.backward(taken, errors / _BATCH)[1])
        actions = expit(self._actor(states))
        by_action = self._critic.backward(_joined(states, actions), np.full(_BATCH, -1 / _BATCH))[0][:, -1]
        self._actor.descend(self._actor.backward(states, by_action * actions * (1 - actions))[1])
        self._target_critic.follow(self._critic)
        self._target_actor.follow(self._actor)


def _joined(states: Array, actions: Array) -> Array:
    return np.concatenate([states, actions[:, None]], axis=1)
