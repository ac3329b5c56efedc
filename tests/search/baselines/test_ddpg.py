from __future__ import annotations

import numpy as np
import pytest

from autoprune.search.baselines.ddpg import Ddpg, Network


def test_gradients_by_the_inputs_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    network, x, slopes = Network(rng, 5, 1e-3), rng.normal(size=(7, 5)), rng.normal(size=7)
    slopes_of_inputs, _ = network.backward(x, slopes)
    for row, column in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[row, column] = 1e-6
        slope = (network(x + step) - network(x - step)) @ slopes / 2e-6
        assert slopes_of_inputs[row, column] == pytest.approx(slope, abs=1e-6)


def test_descent_fits_a_function():
    rng = np.random.default_rng(1)
    network, x = Network(rng, 2, 3e-3), rng.uniform(-1, 1, (256, 2))
    goal = x[:, 0] * x[:, 1]
    for _ in range(500):
        _, gradients = network.backward(x, 2 * (network(x) - goal) / len(x))
        network.descend(gradients)
    assert np.mean((network(x) - goal) ** 2) < 0.05 * goal.var()


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.5, 50.0])
def test_actions_stay_within_bounds(noise):
    agent = Ddpg(np.random.default_rng(2), 3)
    actions = [agent.act(np.array([5.0, -5.0, 0.0]), noise) for _ in range(50)]
    assert all(0 <= action <= 1 for action in actions)
    assert np.std(actions) <= noise


def test_it_learns_which_action_each_state_rewards():
    rng = np.random.default_rng(3)
    agent, states, best = Ddpg(rng, 2), np.eye(2), np.array([0.2, 0.9])
    for episode in range(400):
        actions = np.array([agent.act(state, 0.5 * 0.99**episode) for state in states])
        agent.learn(states, actions, -float(np.abs(actions - best).sum()))
    assert [agent.act(state, 0) for state in states] == pytest.approx(best, abs=0.15)
