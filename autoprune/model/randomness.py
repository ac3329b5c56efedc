"""Data sets, augmentations and models may draw from the global random states of torch, `random` and numpy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, step: int | None = None) -> Iterator[None]:
    """Seed the global random states of torch (CPU), `random` and numpy by `seed`, or by it and a `step` from 0 on.

    They are what they were before at the end. Worker processes of a `DataLoader` that is iterated meanwhile follow,
    for it draws their seeds from torch's.
    """
    if step is not None:
        seed = int(np.random.SeedSequence([seed % 2**64, step]).generate_state(1)[0])
    # Not `torch.manual_seed`: it visits every kind of device, which takes longer than reading a small batch.
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
