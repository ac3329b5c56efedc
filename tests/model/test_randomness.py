import random

import numpy as np
import pytest
import torch

from autoprune.model.randomness import seeded


def drawn():
    return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002


def draws(*at):
    with seeded(*at):
        return drawn()


@pytest.mark.parametrize("seed", [0, -1, 2**40])
def test_seed_and_step_decide_the_draws_of_torch_random_and_numpy(seed):
    assert draws(seed) == draws(seed)
    assert draws(seed, 3) == draws(seed, 3)
    drawn_by_seed = [draws(seed), draws(seed + 1), draws(seed, 0), draws(seed, 1), draws(seed + 1, 0)]
    for of_one_source in zip(*drawn_by_seed, strict=True):
        assert len(set(of_one_source)) == len(drawn_by_seed)


def test_torch_is_seeded_as_by_itself():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        wanted = float(torch.rand(()))
    assert draws(5)[0] == wanted


def test_the_states_around_stay_as_they_were_even_after_an_error():
    with seeded(1):
        drawn()
        wanted = drawn()
    with seeded(1):
        drawn()
        with pytest.raises(ZeroDivisionError), seeded(2):
            raise ZeroDivisionError(drawn())
        assert drawn() == wanted
