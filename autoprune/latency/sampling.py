"""Which policies to time, so that every entry of the table has evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.latencies import Geometry
from autoprune.latency.charges import PricedOperator
from autoprune.latency.predictor import GeometryIndex
from autoprune.records import SearchSpace

_POOL_PER_POLICY = 20
_UNIFORM_STEPS = 8
_SPREAD = 0.35
"""Standard deviation of the log of a unit's keep ratio around the ratio of its policy."""

_REMOVED = 1 / 8
"""How often a random policy removes each branch that it may remove."""

_PARTNERS = (1.0, 0.5)
"""Keep ratios of the units that share operators with the scanned one: full and half."""


def random_rows(space: SearchSpace, names: Sequence[str], count: int, rng: np.random.Generator) -> np.ndarray:
    """Random policies, int64 `[count, U + L]`: half with independent widths, half with similar keep ratios.

    Independent widths alone would all cost about the same; similar ratios reach the cheap and the dear ends. Of both,
    an eighth of the units that may have width 0 do. A fifth of the policies treats no layer, a fifth all, and every
    other one a random share of them. `names` are those of the columns: units, then layers.
    """
    columns, units = [], [name for name in names if name not in space.layer_names]
    shares = rng.uniform(0, 1, size=count)
    proportional = rng.permutation(count) < count // 2
    for name in units:
        levels = _above_zero(space.codes[name])
        independent = rng.choice(levels, size=count)
        wanted = shares * levels[-1] * np.exp(rng.normal(0, _SPREAD, size=count))
        column = np.where(proportional, _nearest(levels, wanted), independent)
        if space.levels[name][0] == 0:
            column[rng.random(count) < _REMOVED] = 0
        columns.append(column)
    return np.stack([*columns, *_random_treatments(space, names[len(units) :], count, rng)], axis=1)


def _random_treatments(
    space: SearchSpace, layers: Sequence[str], count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Codes of treatments `[count]` for each layer."""
    if not layers:
        return []
    shares = np.clip(rng.uniform(-1 / 3, 4 / 3, size=count), 0, 1)
    columns = []
    for name in layers:
        *treated, dense = space.codes[name]
        chosen = rng.choice(treated or [dense], size=count)
        columns.append(np.where(rng.random(count) < shares, chosen, dense))
    return columns


def covering_rows(
    space: SearchSpace,
    names: Sequence[str],
    index: GeometryIndex,
    count: int,
    seen: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """`count` policies, int64 `[count, U + L]`, chosen greedily: every entry occurs, and all about equally often.

    `seen` `[entries]` says how often each occurred so far; it is left alone. Where branches may be removed, every
    second policy is a random one: few entries occur in what lacks branches, but what these save has to be learned.
    """
    pool = random_rows(space, names, _POOL_PER_POLICY * count, rng)
    numbers = index.numbers(pool)
    seen = np.append(seen, [np.inf, np.inf])  # operators that are absent, and entries that the table will not have
    removable = any(space.levels[name][0] == 0 for name in space.unit_names)
    chosen = []
    for turn in range(count):
        gain = (1 / (1 + seen[numbers]) ** 2).sum(axis=1)
        best = turn if removable and turn % 2 else int(gain.argmax())
        chosen.append(best)
        np.add.at(seen, numbers[best], 1)
    return pool[chosen]


def uniform_ladder(space: SearchSpace) -> np.ndarray:
    """Policies of one keep ratio for all units, from the smallest without width 0 to the largest, int64 `[P, U + L]`.

    Where layers may be treated, each comes twice: with all layers dense, and with all of them treated.
    """
    ratios = np.linspace(0, 1, _UNIFORM_STEPS)
    levels = [_above_zero(space.codes[name]) for name in space.unit_names]
    widths = np.unique(np.stack([_nearest(values, ratios * values[-1]) for values in levels], axis=1), axis=0)
    return np.concatenate([np.column_stack([widths, np.tile(c, (len(widths), 1))]) for c in uniform_treatments(space)])


def uniform_treatments(space: SearchSpace) -> np.ndarray:
    """Codes of treatments `[contexts, L]`: all layers dense, and where layers may be treated, all treated."""
    codes = [space.codes[name] for name in space.layer_names]
    rows = [[levels[-1] for levels in codes], [levels[0] for levels in codes]]
    return np.array(rows if rows[0] != rows[1] else rows[:1], dtype=np.int64)


def whole_models(space: SearchSpace) -> np.ndarray:
    """Rows `[contexts, U + L]` of all units at their largest width and at half of it, each with all layers alike.

    The layers are all dense, and, where they may be treated, then all treated.
    """
    codes = [space.codes[name] for name in space.unit_names]
    halves = [min(levels, key=lambda width, full=levels[-1]: abs(2 * width - full)) for levels in codes]
    widths = [[levels[-1] for levels in codes], halves]
    return np.array([[*of_units, *of_layers] for of_units in widths for of_layers in uniform_treatments(space)])


def partners_of(unit: int, priced: Sequence[PricedOperator]) -> set[int]:
    """Units that share an operator with `unit`."""
    return {other for op in priced if unit in op.widths for other in op.widths} - {unit}


def scan_contexts(unit: int, space: SearchSpace, priced: Sequence[PricedOperator]) -> np.ndarray:
    """Rows `[contexts, U + L]` that surround a scanned unit.

    Its partners are full, then half; all others are at their smallest above 0, so that the unit's own operators weigh
    most. Where layers may be treated, these follow with all layers treated.
    """
    levels = [_above_zero(space.codes[name]) for name in space.unit_names]
    rows = np.tile([values[0] for values in levels], (len(_PARTNERS), 1))
    for row, ratio in zip(rows, _PARTNERS, strict=True):
        for other in partners_of(unit, priced):
            row[other] = _nearest(levels[other], np.array([ratio * levels[other][-1]]))[0]
    return np.concatenate([np.column_stack([rows, np.tile(c, (len(rows), 1))]) for c in uniform_treatments(space)])


def scanned_rows(
    space: SearchSpace, priced: Sequence[PricedOperator], widths: Mapping[str, Sequence[int]]
) -> np.ndarray:
    """Every width of every unit in each of its contexts, int64 `[P, U + L]`, without those that hold no new geometry.

    Units with the same operators (the blocks of a stage) so share their scans.
    """
    rows: dict[tuple[int, ...], None] = {}  # scans of different units may meet
    known = set()
    for unit, name in enumerate(space.unit_names):
        if len(widths[name]) < 2:
            continue
        for context in scan_contexts(unit, space, priced):
            for width in widths[name]:
                row = context.copy()
                row[unit] = width
                keys = {key for op in priced if unit in op.units for key in _learnt_from(op, row)}
                if not keys <= known:
                    known |= keys
                    rows[tuple(row.tolist())] = None
    scanned = np.array([*rows], dtype=np.int64).reshape(-1, len(space.levels))
    return np.concatenate([scanned, _treated_alone(space)])


def _treated_alone(space: SearchSpace) -> np.ndarray:
    """Every treatment of every layer alone, and every layer alone dense among treated ones, int64 `[P, U + L]`.

    All units have their largest width.
    """
    units, codes = space.unit_names, space.codes
    rows: dict[tuple[int, ...], None] = {}
    for layer in space.layer_names:
        for code in codes[layer][:-1]:
            for context, chosen in ((-1, code), (0, codes[layer][-1])):
                treated = [codes[name][context] if name != layer else chosen for name in space.layer_names]
                rows[(*(codes[name][-1] for name in units), *treated)] = None
    return np.array([*rows], dtype=np.int64).reshape(-1, len(space.levels))


def every_other(levels: Sequence[int]) -> tuple[int, ...]:
    """Every second level from the largest down; 0 stays."""
    halved = tuple(levels)[::-2][::-1]
    return (0, *halved) if 0 in levels and 0 not in halved else halved


def _learnt_from(operator: PricedOperator, row: np.ndarray) -> list[Geometry]:
    """Return the keys that a row `[U + L]` gives evidence on; the signature if the operator is absent there."""
    return operator.geometries(row[None]) or [operator.signature()]


def _above_zero(levels: Sequence[int]) -> np.ndarray:
    return np.array([level for level in levels if level], dtype=np.int64)


def _nearest(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The level nearest to each wanted width."""
    return levels[np.abs(levels[:, None] - wanted[None, :]).argmin(axis=0)]
