"""Useful levels: widths that no larger width beats on the measured table, treatments that pay; and staircases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.latencies import Staircase
from autoprune.latency.charges import PricedOperator
from autoprune.latency.predictor import LatencyPredictor
from autoprune.latency.sampling import scan_contexts, whole_models
from autoprune.records import SearchSpace
from autoprune.treatments import DENSE, Treatment

TOLERANCE = 0.005
"""A width is useless when a larger one costs at most this share more."""

_SDS = 1.0
"""A difference below so many standard deviations is none: nobody could measure it."""

_SURE_SDS = 2.0
"""A width that costs less than all useful ones by more than this is useful, also if a width between them is not."""


def staircases(
    predictor: LatencyPredictor, space: SearchSpace, priced: Sequence[PricedOperator]
) -> tuple[Staircase, ...]:
    """The staircase of every unit of `space` that has more than one known width; its costs are those in fp32."""
    stairs = []
    for unit, name in enumerate(space.unit_names):
        widths = np.array(predictor.known_widths[name], dtype=np.int64)
        if len(widths) < 2:
            continue
        costs, spreads = _costs(predictor, unit, widths, scan_contexts(unit, space, priced))
        seen = ~np.isnan(costs[0])
        stairs.append(
            Staircase(
                unit=name,
                widths=tuple(map(int, widths[seen])),
                latency_ms=tuple(costs[0][seen].tolist()),
                sd_ms=tuple(np.sqrt(np.mean(spreads[0][seen] ** 2, axis=1)).tolist()),
                useful=useful_among(widths, costs, spreads),
            )
        )
    return tuple(stairs)


def useful_treatments(predictor: LatencyPredictor, space: SearchSpace) -> dict[str, tuple[int, ...]]:
    """Return the codes of treatments that pay, dense last, for every layer of a space.

    A treatment is dropped if the layer and its conversions cost no less in every context than when it is dense, or, for
    a rank, than at a higher rank or whole in the same precision. The contexts are units at their largest width and at
    half of it, all other layers dense and all treated.
    """
    codes, columns = space.codes, predictor.columns
    contexts = whole_models(space)
    useful = {}
    for layer in space.layer_names:
        column, levels = columns.index(layer), codes[layer]
        rows = np.repeat(contexts, len(levels), axis=0)
        rows[:, column] = np.tile(levels, len(contexts))
        costs = predictor.unit_costs(column, rows)[0].reshape(len(contexts), -1)
        beaten = [
            any(_is_richer(rich, code) and not (costs[:, i] < (1 - TOLERANCE) * costs[:, j]).any()
                for j, rich in enumerate(levels))
            for i, code in enumerate(levels)
        ]  # fmt: skip
        useful[layer] = tuple(code for code, is_beaten in zip(levels, beaten, strict=True) if not is_beaten)
    return useful


def _is_richer(code: int, than: int) -> bool:
    """Return whether a treatment surely loses less: dense, or of a higher rank (or whole) in the same precision."""
    mine, other = Treatment.of_code(code), Treatment.of_code(than)
    if mine == other:
        return False
    return mine == DENSE or (mine.precision == other.precision and bool(other.rank) and not 0 < mine.rank < other.rank)


def useful_among(widths: np.ndarray, costs: np.ndarray, spreads: np.ndarray) -> tuple[int, ...]:
    """The widths `[W]`, ascending, that no larger one beats.

    `costs` `[contexts, W]` are milliseconds (NaN: unknown), `spreads` `[contexts, W, draws]` what posterior draws
    differ by. A width is dropped if some larger one costs at most 0.5 % more in every context, or more by less than the
    standard deviation of that difference. The latter does not count where all larger useful widths cost more by two
    standard deviations: of many widths that each cost a little less than the next, all but the largest would go. Width
    0, a smaller model even if it saves no time, is kept.
    """
    kept: list[int] = []
    for i in reversed(range(len(widths))):
        more = costs[:, i + 1 :] - (1 + TOLERANCE) * costs[:, i : i + 1]
        sd = np.sqrt(np.mean((spreads[:, i + 1 :] - spreads[:, i : i + 1]) ** 2, axis=2))
        useful = np.array(kept, dtype=int) - i - 1
        beaten = _beaten(more, 0.0 * sd) or (
            _beaten(more, _SDS * sd) and _beaten(more[:, useful], _SURE_SDS * sd[:, useful])
        )
        if widths[i] == 0 or not (beaten or np.isnan(costs[:, i]).all()):
            kept.append(i)
    return tuple(int(widths[i]) for i in reversed(kept))


def _beaten(more: np.ndarray, within: np.ndarray) -> bool:
    """Whether some larger width costs no more than that in every context where both are known, `[contexts, larger]`."""
    known = ~np.isnan(more)
    return bool((known.any(axis=0) & (~known | (more <= within)).all(axis=0)).any())


def _costs(
    predictor: LatencyPredictor, unit: int, widths: np.ndarray, contexts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Costs `[contexts, W]` and spreads `[contexts, W, draws]` of a unit."""
    rows = np.repeat(contexts, len(widths), axis=0)
    rows[:, unit] = np.tile(widths, len(contexts))
    ms, draws = predictor.unit_costs(unit, rows)
    return ms.reshape(len(contexts), -1), draws.reshape(len(contexts), len(widths), -1)
