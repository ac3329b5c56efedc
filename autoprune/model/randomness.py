"""The global random states of torch, `random` and numpy, from which data sets, augmentations and models draw."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Return the global random states of torch (CPU), `random` and numpy as plain values and tensors."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.default_generator.get_state(),
        "random": [list(part) if isinstance(part, tuple) else part for part in random.getstate()],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set the states that `random_states` returned."""
    torch.default_generator.set_state(states["torch"].cpu())
    random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in states["random"]))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002


@contextmanager
def seeded(seed: int, step: int | None = None) -> Iterator[None]:
    """Seed the global random states of torch (CPU), `random` and numpy; at the end they are put back.

    Worker processes of a `DataLoader` that is iterated meanwhile follow, because their seeds are drawn from torch's.

    Args:
        seed: any whole number.
        step: a number from 0 on that is mixed into the seed (`None`: the seed alone, as `torch.manual_seed` takes it).
    """
    if step is not None:
        seed = int(np.random.SeedSequence([seed % 2**64, step]).generate_state(1)[0])
    # `torch.manual_seed` visits every kind of device, which takes longer than reading a small batch.
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
