"""From widths to milliseconds and their uncertainty: one gather for each set of units that share operators."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.errors import MissingEntryError, PolicyError
from autoprune.latencies import Geometry
from autoprune.latency.charges import PricedOperator
from autoprune.records import Policy
from autoprune.structure.layer_decisions import treatment_codes
from autoprune.treatments import Treatment, timed_rows

_BITS = 21
"""Channel counts below 2**21 pack three to an int64 key."""

_MOST_COMBINATIONS = 300_000

MISSING, ABSENT = -1, -2
"""Stand-ins for the number of an entry: the table has none, or the operator is in a removed branch and costs 0."""
_AT_THE_END = [0.0, np.nan]
"""Costs that `ABSENT` and `MISSING` find when they count from the end."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of the entries of a table: milliseconds `[E]`, and `[draws, E]` by which posterior draws differ."""

    entries_ms: np.ndarray
    spread_ms: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Latency and its standard deviation in milliseconds, float64 `[P]` each."""

    latency_ms: np.ndarray
    sd_ms: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Term:
    """Cost of all operators that depend on the same units, for every combination of their known widths.

    `units` are indices; `latency_ms` has one axis for each unit, in the order of the known widths (NaN: no entry;
    0: none of the operators is left);
    `spread_ms` has one further axis of posterior draws.
    """

    units: tuple[int, ...]
    latency_ms: np.ndarray
    spread_ms: np.ndarray


class GeometryIndex:
    """Finds the entry of every operator of many policies at once."""

    def __init__(self, priced: Sequence[PricedOperator], geometries: Sequence[Geometry]) -> None:
        self._priced = tuple(priced)
        by_kind: dict[Geometry, list[tuple[int, int]]] = defaultdict(list)
        for number, geometry in enumerate(geometries):
            sizes = np.array([[geometry.c_in, geometry.c_out, geometry.groups]], dtype=np.int64)
            by_kind[geometry.kind].append((int(_packed(sizes)[0]), number))
        tables = {kind: _searchable(pairs) for kind, pairs in by_kind.items()}
        codes = {Treatment.parse(text).code if text else 0 for text in {kind.treatment for kind in tables}}
        self._entries: list[dict[int, tuple[np.ndarray, np.ndarray]]] = [
            {code: tables[operator.signature(code)] for code in sorted(codes) if operator.signature(code) in tables}
            for operator in priced
        ]

    @property
    def operators(self) -> tuple[PricedOperator, ...]:
        """The operators, in the order of the columns of `numbers`."""
        return self._priced

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Positions in `geometries`: int64 `[P, operators]` for rows `[P, U + L]`; else `MISSING` or `ABSENT`."""
        columns = [self.numbers_of(operator, rows) for operator in range(len(self._priced))]
        return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0), dtype=np.int64)

    def numbers_of(self, operator: int, rows: np.ndarray) -> np.ndarray:
        """One column of `numbers`: int64 `[P]`."""
        priced = self._priced[operator]
        wanted, codes = _packed(priced.sizes(rows)), priced.treatment.of(rows)
        entries = np.full(len(rows), MISSING, dtype=np.int64)
        for code, (keys, numbers) in self._entries[operator].items():
            place = np.searchsorted(keys, wanted)
            entries = np.where((codes == code) & (keys[place] == wanted), numbers[place], entries)
        return np.where(priced.present(rows), entries, ABSENT)

    def geometry(self, operator: int, row: np.ndarray) -> Geometry:
        """Key of one operator for one row `[U + L]`."""
        priced = self._priced[operator]
        return priced.geometry(priced.sizes(row[None])[0], int(priced.treatment.of(row[None])[0]))


class LatencyPredictor:
    """Predicts the latency of any policy of one structure from the entries of a table; holds no model.

    `known` are the widths of every unit, in the structure's order, that the table has entries for, then the codes of
    treatments of every one of the `layers`.
    """

    def __init__(
        self,
        index: GeometryIndex,
        known: Mapping[str, Sequence[int]],
        costs: Costs,
        remainder: tuple[float, np.ndarray],
        layers: Sequence[str] = (),
    ) -> None:
        self._index = index
        self._names = tuple(known)
        self.layers = tuple(layers)
        self._widths = tuple(np.array(sorted(widths), dtype=np.int64) for widths in known.values())
        self._codes = tuple(_codes(widths) for widths in self._widths)
        self._costs = Costs(
            entries_ms=np.append(costs.entries_ms, _AT_THE_END),
            spread_ms=np.append(costs.spread_ms, np.tile(_AT_THE_END, (len(costs.spread_ms), 1)), axis=1),
        )
        self._remainder_ms, self._remainder_spread_ms = remainder
        self.terms, self._single = self._terms()

    @property
    def remainder_ms(self) -> float:
        """The constant part of every prediction in milliseconds: operators that no unit changes."""
        return self._remainder_ms

    @property
    def known_widths(self) -> dict[str, tuple[int, ...]]:
        """Widths of every unit, and codes of treatments of every layer, that the table has entries for, ascending."""
        return {name: tuple(map(int, widths)) for name, widths in zip(self._names, self._widths, strict=True)}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of rows: units, then layers."""
        return self._names

    def predict(self, policies: Sequence[Policy] | np.ndarray) -> np.ndarray:
        """Milliseconds, float64 `[P]`, of policies or of rows `[P, U + L]` (see `Structure.rows`).

        Rows `[P, U]` of widths alone are of models in fp32.

        Raises:
            MissingEntryError: names the first unit, layer or geometry that the table does not know.
            PolicyError: a policy has no width for a unit.
        """
        rows, codes = self._coded(policies)
        total = self._sum_ms(rows, codes)
        if np.isnan(total).any():
            raise self._missing(rows[int(np.flatnonzero(np.isnan(total))[0])])
        return total + self._remainder_ms

    def predict_with_sd(self, policies: Sequence[Policy] | np.ndarray) -> Prediction:
        """As `predict`, with the standard deviation of every prediction."""
        latency_ms = self.predict(policies)
        rows, codes = self._coded(policies)
        draws = self._sum_draws(rows, codes) + self._remainder_spread_ms.astype(np.float32)
        return Prediction(latency_ms=latency_ms, sd_ms=np.sqrt(np.mean(draws**2, axis=1)))

    def parts(self, deviations: float = 0.0) -> Iterator[tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]]:
        """Yield the summands of a prediction beside the remainder: columns, and milliseconds `[P]` for rows.

        NaN where the table has no entry. Every summand has so many of its own standard `deviations` added.
        """
        for term in self.terms:
            term_ms = (term.latency_ms + deviations * np.sqrt((term.spread_ms**2).mean(axis=-1))).ravel()
            yield term.units, lambda rows, term=term, ms=term_ms: ms[_flat(term, self._coded(rows)[1])]
        entries_ms = self._costs.entries_ms + deviations * np.sqrt((self._costs.spread_ms**2).mean(axis=0))
        for number in self._single:
            units = self._index.operators[number].units
            yield units, lambda rows, number=number: entries_ms[self._index.numbers_of(number, self._coded(rows)[0])]

    def unit_costs(self, unit: int, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds `[P]` of the operators that depend on a unit, and differences of posterior draws `[P, draws]`.

        NaN where the table has no entry for a row of `widths` `[P, U]`.
        """
        rows, codes = self._coded(widths)
        return self._sum_ms(rows, codes, unit), self._sum_draws(rows, codes, unit)

    def _sum_ms(self, rows: np.ndarray, codes: Sequence[np.ndarray], unit: int | None = None) -> np.ndarray:
        total = np.zeros(len(rows))
        for term in self.terms:
            if unit is None or unit in term.units:
                total += term.latency_ms.ravel()[_flat(term, codes)]
        for operator in self._single:
            if unit is None or unit in self._index.operators[operator].units:
                total += self._costs.entries_ms[self._index.numbers_of(operator, rows)]
        return total

    def _sum_draws(self, rows: np.ndarray, codes: Sequence[np.ndarray], unit: int | None = None) -> np.ndarray:
        total = np.zeros((len(rows), len(self._remainder_spread_ms)), dtype=np.float32)
        for term in self.terms:
            if unit is None or unit in term.units:
                total += term.spread_ms.reshape(-1, total.shape[1])[_flat(term, codes)]
        for operator in self._single:
            if unit is None or unit in self._index.operators[operator].units:
                total += self._costs.spread_ms[:, self._index.numbers_of(operator, rows)].T
        return total

    def _coded(self, policies: Sequence[Policy] | np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Rows `[P, U + L]`, and for each column the positions of its levels among the known ones `[P]`."""
        rows = policies if isinstance(policies, np.ndarray) else self._rows(policies)
        if rows.shape[1] < len(self._names):
            rows = np.pad(rows, ((0, 0), (0, len(self._names) - rows.shape[1])))
        rows = timed_rows(rows, len(self._names) - len(self.layers))  # no runtime skips zeros
        coded = []
        for unit, lookup in enumerate(self._codes):
            column = rows[:, unit]
            inside = np.minimum(np.maximum(column, 0), len(lookup) - 1)
            code = lookup[inside]
            wrong = np.flatnonzero((code < 0) | (inside != column))
            if wrong.size:
                raise self._unknown(unit, int(column[wrong[0]]))
            coded.append(code)
        return rows, coded

    def _rows(self, policies: Sequence[Policy]) -> np.ndarray:
        units = self._names[: len(self._names) - len(self.layers)]
        try:
            widths = [[policy.widths[name] for name in units] for policy in policies]
        except KeyError as error:
            raise PolicyError(f"the policy has no width for unit {error}; expected {list(units)}") from error
        rows = np.array(widths, dtype=np.int64).reshape(len(policies), len(units))
        return np.concatenate([rows, treatment_codes(policies, self.layers)], axis=1)

    def _unknown(self, column: int, code: int) -> MissingEntryError:
        name, known = self._names[column], self._widths[column]
        if name in self.layers:
            what, levels = f"treatment {Treatment.of_code(code)} of layer", [Treatment.of_code(each) for each in known]
        else:
            what, levels = f"width {code} of unit", known
        return MissingEntryError(
            f"the latency table does not know {what} {name!r}; it knows {', '.join(map(str, levels))}. "
            "Run `autoprune profile` with a search space that has it."
        )

    def _missing(self, row: np.ndarray) -> MissingEntryError:
        numbers = self._index.numbers(row[None])[0]
        geometry = self._index.geometry(int(np.flatnonzero(numbers == MISSING)[0]), row)
        return MissingEntryError(
            f"the latency table has no entry for `{geometry}`. "
            "Run `autoprune profile` with a search space that contains these widths together."
        )

    def _terms(self) -> tuple[tuple[Term, ...], tuple[int, ...]]:
        """Operators by the units they depend on; those with too many combinations stay single."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, operator in enumerate(self._index.operators):
            groups[operator.units].append(number)
        terms, single = [], []
        for units, operators in groups.items():
            if math.prod(len(self._widths[u]) for u in units) > _MOST_COMBINATIONS:
                single += operators
            else:
                terms.append(self._term(units, operators))
        return tuple(terms), tuple(single)

    def _term(self, units: tuple[int, ...], operators: Sequence[int]) -> Term:
        shape = tuple(len(self._widths[u]) for u in units)
        rows = np.ones((math.prod(shape), len(self._names)), dtype=np.int64)
        rows[:, len(self._names) - len(self.layers) :] = 0
        rows[:, list(units)] = list(itertools.product(*(self._widths[u] for u in units)))
        numbers = np.stack([self._index.numbers_of(operator, rows) for operator in operators])
        latency_ms = self._costs.entries_ms[numbers].sum(axis=0)
        spread = self._costs.spread_ms[:, numbers].sum(axis=1).T.astype(np.float32)
        return Term(units=units, latency_ms=latency_ms.reshape(shape), spread_ms=spread.reshape(*shape, -1))


def _codes(widths: np.ndarray) -> np.ndarray:
    """Position of every width up to the largest among `widths`; -1 for the others."""
    lookup = np.full(int(widths[-1]) + 1, -1, dtype=np.int64)
    lookup[widths] = np.arange(len(widths))
    return lookup


def _searchable(pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ascending keys and the numbers of their entries; a sentinel above every key keeps a search inside the arrays."""
    ascending = np.array(sorted(pairs), dtype=np.int64)
    return np.append(ascending[:, 0], np.iinfo(np.int64).max), np.append(ascending[:, 1], MISSING)


def _flat(term: Term, codes: Sequence[np.ndarray]) -> np.ndarray:
    """Positions in the flattened term, `[P]`."""
    flat = np.zeros(len(codes[0]), dtype=np.int64)
    for unit, size in zip(term.units, term.latency_ms.shape, strict=True):
        flat = flat * size + codes[unit]
    return flat


def _packed(sizes: np.ndarray) -> np.ndarray:
    """One int64 key for each row of `[P, 3]`."""
    return (sizes[:, 0] << 2 * _BITS) | (sizes[:, 1] << _BITS) | sizes[:, 2]
