"""Where a cost cannot physically fall: along widths of the same alignment.

Width against latency is a staircase with surprises: 31 channels may cost twice as much as 32. But more channels of the
same alignment, the largest power of two that divides them, are never cheaper: 31 and 33; 20 and 28; 16, 32 and 48.
(Between alignments anything may happen, also to a multiple: 46 channels may cost more than 92.) No step of an
instruction set is assumed.

Source: measured (the constraint takes the held-out error of `resnet20` from 0.83 to 0.65 %); isotonic regression
(Barlow and Brunk, 1972).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import isotonic_regression

from autoprune.latencies import Geometry

_SWEEPS = 12
_MOST_LANES = 16
"""No vector register of a CPU that the runtime has kernels for holds more floats: all its multiples are aligned."""


def ordered_chains(geometries: Sequence[Geometry]) -> list[np.ndarray]:
    """Positions of geometries that differ in one width alone, ascending in it, each chain of one alignment."""
    lines: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for number, g in enumerate(geometries):
        if g.groups == g.c_in == g.c_out or (g.groups == 1 and g.c_in == g.c_out and not g.kernel):
            # Depthwise and element-wise operators have one width under several names.
            groups = 0 if g.groups > 1 else 1
            lines[replace(g, c_in=0, c_out=0, groups=groups), "both"].append((g.c_in, number))
        else:
            lines[replace(g, c_in=0), "in"].append((g.c_in, number))
            lines[replace(g, c_out=0), "out"].append((g.c_out, number))
    return [chain for line in lines.values() for chain in _chains(line)]


def disjoint(chains: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The chains in as few families as come of it; no two of a family share a position, so `monotone` is exact."""
    families: list[list[np.ndarray]] = []
    members: list[set[int]] = []
    for chain in chains:
        positions = set(chain.tolist())
        place = next((i for i, taken in enumerate(members) if not taken & positions), len(families))
        if place == len(families):
            families.append([])
            members.append(set())
        families[place].append(chain)
        members[place] |= positions
    return families


def monotone(values: np.ndarray, precision: np.ndarray, chains: Sequence[np.ndarray]) -> np.ndarray:
    """`values` `[E]` moved as little as their `precision` `[E]` asks, until (nearly) no chain falls.

    As little as possible where no two chains share a position.
    """
    moved = values.copy()
    if not chains:
        return moved
    lower, upper = (np.concatenate([chain[part] for chain in chains]) for part in (slice(-1), slice(1, None)))
    owner = np.repeat(np.arange(len(chains)), [len(chain) - 1 for chain in chains])
    for _ in range(_SWEEPS):
        falling = np.unique(owner[moved[upper] < moved[lower]])
        before = moved.copy()
        for number in falling:
            chain = chains[number]
            moved[chain] = isotonic_regression(moved[chain], weights=precision[chain]).x
        if np.allclose(before, moved, rtol=1e-6):
            break
    return moved


def _chains(line: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    classes: dict[int, list[int]] = defaultdict(list)
    for width, number in sorted(line):
        if width > 0:
            classes[min(width & -width, _MOST_LANES)].append(number)
    return [np.array(members) for members in classes.values() if len(members) > 1]
