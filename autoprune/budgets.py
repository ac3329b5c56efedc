"""Budgets: the most that a model may cost, in the costs of `records.COSTS`. Continues `records`; the same rules hold.

A budget is one text, such as `50%`, `1.2ms`, `bytes:1MB` or `33%,params:50%,activation_bytes:100kB`: limits on named
costs, joined by commas. All of them must be met; of two limits on the same cost the tighter one counts. Several
budgets are read by one rule: those that limit latency are alternatives, each of which gives models; one that names no
latency is added to every one of those. If none names latency, those that limit the same cost are alternatives, and
without such a cost all of them together form one budget.

A budget by score, `score:-1%` or `score:0.92`, limits the other axis: it asks for the fastest model that keeps so much.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from autoprune.errors import BudgetError, unknown_name
from autoprune.records import COSTS

BUDGET_TOLERANCE = 0.01
"""Share by which a measured latency may pass its budget: the noise of a re-measurement. A candidate gets none of it."""

_BOUND = re.compile(r"\s*(?:([a-z_]+)\s*:)?\s*([0-9]*\.?[0-9]+)\s*(%|[A-Za-z]*)\s*")
_TIMES = {"ms": 1.0, "us": 1e-3, "s": 1e3}
_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": _TIMES,
    "params": _COUNTS,
    "macs": _COUNTS,
    "bytes": _BYTES,
    "activation_bytes": _BYTES,
}
_COLUMNS: Mapping[str, str] = dict(zip(_UNITS, COSTS, strict=True))
_SCORE = re.compile(r"\s*score\s*:\s*([+-]?[0-9]*\.?[0-9]+)\s*(%?)\s*")
_HINT = "Write `50%` or `1.2ms`, or name another cost as in `bytes:1MB`."


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that a model may cost: one maximum for each of `COSTS`, infinite where there is none."""

    most: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.most) != len(COSTS) or not all(most > 0 for most in self.most):
            raise BudgetError(f"a limit has one maximum above 0 for each of {', '.join(COSTS)}; got {self.most}")

    @classmethod
    def of(cls, **most: float) -> Limit:
        """Limit some costs by name; the others stay free."""
        if unknown := set(most) - set(COSTS):
            raise unknown_name("cost", min(unknown), COSTS)
        return cls(most=tuple(float(most.get(name, math.inf)) for name in COSTS))

    @property
    def limited(self) -> tuple[str, ...]:
        """Names of the costs that have a maximum."""
        return tuple(name for name, most in zip(COSTS, self.most, strict=True) if math.isfinite(most))

    def shown(self, costs: Iterable[float]) -> str:
        """Write those of some costs `[K]` that are limited, for a message: `800 us, 1,000 bytes`."""
        return ", ".join(_shown(n, c) for n, c in zip(COSTS, costs, strict=True) if n in self.limited)

    def to_json(self) -> dict[str, float]:
        """Return a plain JSON value: the finite maxima by name."""
        return {name: most for name, most in zip(COSTS, self.most, strict=True) if math.isfinite(most)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Limit:
        """Build the limit that `to_json` wrote."""
        return cls.of(**value)

    def __str__(self) -> str:
        return self.shown(self.most)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A maximum of one cost as it was written: a share of the dense model's (`%`), or a number with a unit."""

    cost: str
    number: float
    unit: str

    def __post_init__(self) -> None:
        if self.cost not in _UNITS:
            raise unknown_name("cost", self.cost, _UNITS)
        units = _UNITS[self.cost]
        if self.unit != "%" and self.unit not in units:
            known = ", ".join(unit for unit in ["%", *units] if unit)
            raise BudgetError(
                f"a budget of {self.cost} is a number and one of the units {known}, above 0; got {str(self)!r}. {_HINT}"
            )
        if not math.isfinite(self.number * units.get(self.unit, 1.0)) or self.number <= 0:
            raise BudgetError(f"a budget must be above 0 and finite; got {str(self)!r}. {_HINT}")
        if self.unit == "%" and self.number > 100:
            raise BudgetError(f"a relative budget is at most 100% of the dense model; got {str(self)!r}.")

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Read `50%`, `1.2ms` or `COST:AMOUNT`; `BudgetError` for anything else."""
        match = _BOUND.fullmatch(text)
        if match is not None:
            return cls(cost=match[1] or "latency", number=float(match[2]), unit=match[3])
        name, colon, _ = text.partition(":")
        if colon and name.strip() not in _UNITS:
            raise unknown_name("cost", name.strip(), _UNITS)
        raise BudgetError(f"a budget is a share of the dense model or an amount, above 0; got {text!r}. {_HINT}")

    def most(self, dense: float) -> float:
        """Return the maximum, for a dense model of that cost."""
        # Multiplied first: 29 % of 100 parameters are 29, not a little less.
        return self.number * dense / 100 if self.unit == "%" else self.number * _UNITS[self.cost][self.unit]

    def __str__(self) -> str:
        prefix = "" if self.cost == "latency" else f"{self.cost}:"
        return f"{prefix}{_plain(self.number)}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds on the costs of a model that must all be met. `str` gives the budget back as written.

    Example:
        >>> budget = Budget.parse("50%,bytes:1MB")
        >>> str(budget)
        '50%,bytes:1MB'
        >>> print(budget.limit([0.8, 50_000, 9e6, 200_000, 80_000]))
        400 us, 1,000,000 bytes
    """

    bounds: tuple[Bound, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", tuple(dict.fromkeys(self.bounds)))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read bounds that are joined by commas; `BudgetError` names the one that cannot be used."""
        return cls(bounds=tuple(Bound.parse(part) for part in str(text).split(",")))

    @property
    def timed(self) -> bool:
        """Whether latency is limited."""
        return any(bound.cost == "latency" for bound in self.bounds)

    def limit(self, dense: Sequence[float]) -> Limit:
        """Return the maxima in numbers; of two bounds on the same cost the tighter one.

        Args:
            dense: costs of the dense model, `[K]` in the order of `COSTS`.
        """
        most = dict.fromkeys(COSTS, math.inf)
        for bound in self.bounds:
            name = _COLUMNS[bound.cost]
            most[name] = min(most[name], bound.most(dense[COSTS.index(name)]))
        return Limit.of(**most)

    def __str__(self) -> str:
        return ",".join(map(str, self.bounds))


@dataclass(frozen=True, kw_only=True)
class ScoreBudget:
    """The least score that a model keeps on validation data: a share of the dense model's that may go, or a number.

    `str` gives the budget back as written.

    Example:
        >>> ScoreBudget.parse("score:-1%").least(dense=0.9)
        0.891
    """

    number: float
    relative: bool

    def __post_init__(self) -> None:
        if not math.isfinite(self.number) or (self.relative and not -100 < self.number < 0):
            raise BudgetError(_score_rule(str(self)))

    @classmethod
    def parse(cls, text: str) -> ScoreBudget:
        """Read `score:-1%` or `score:0.92`; `BudgetError` for anything else."""
        match = _SCORE.fullmatch(text)
        if match is None:
            raise BudgetError(_score_rule(text))
        return cls(number=float(match[1]), relative=bool(match[2]))

    def least(self, dense: float) -> float:
        """Return the least score, for a dense model of that score."""
        return dense + self.number * abs(dense) / 100 if self.relative else self.number

    def __str__(self) -> str:
        return f"score:{_plain(self.number)}{'%' if self.relative else ''}"


def _score_rule(text: str) -> str:
    return (
        "a budget by score is the share of the dense model's score that may be lost, as in `score:-1%`, or the least "
        f"score, as in `score:0.92`, and stands alone; got {text!r}. Give other limits as budgets of their own."
    )


def parse_budget(text: str) -> Budget | ScoreBudget:
    """Read a budget of either kind; `BudgetError` says what can be written."""
    return ScoreBudget.parse(text) if str(text).lstrip().startswith("score") else Budget.parse(text)


def alternatives(budgets: Sequence[Budget]) -> tuple[Budget, ...]:
    """Return the budgets that each give models, each with the bounds of all others added.

    They are those that limit latency; without one, those that limit the first cost which several limit.

    Example:
        >>> [str(budget) for budget in alternatives([Budget.parse(text) for text in ("50%", "33%", "bytes:1MB")])]
        ['50%,bytes:1MB', '33%,bytes:1MB']
        >>> [str(budget) for budget in alternatives([Budget.parse(text) for text in ("bytes:25%", "bytes:12%")])]
        ['bytes:25%', 'bytes:12%']
    """
    limited = [{bound.cost for bound in budget.bounds} for budget in budgets]
    several = [
        bound.cost for budget in budgets for bound in budget.bounds if sum(bound.cost in costs for costs in limited) > 1
    ]
    cost = "latency" if any(budget.timed for budget in budgets) else next(iter(several), "")
    each = [budget for budget, costs in zip(budgets, limited, strict=True) if cost in costs]
    always = tuple(bound for budget in budgets if budget not in each for bound in budget.bounds)
    return tuple(dict.fromkeys(Budget(bounds=budget.bounds + always) for budget in each)) or (Budget(bounds=always),)


def most_of(cost: str, amount: str | float, dense: float) -> float:
    """Read the most that a model may take of one cost.

    Args:
        cost: as budgets name it: `latency`, `params`, `macs`, `bytes` or `activation_bytes`.
        amount: a number of milliseconds, parameters, multiplications or bytes, or a text such as `50%` or `1MB`.
        dense: the same cost of the dense model.

    Returns:
        The maximum: milliseconds for latency, a count for the others.

    Raises:
        BudgetError: for a text of another cost, or an amount that is not above 0 and finite.

    Example:
        >>> most_of("latency", "50%", dense=0.8), most_of("bytes", "1MB", dense=9e6), most_of("latency", 0.5, dense=0.8)
        (0.4, 1000000.0, 0.5)
    """
    if isinstance(amount, Real) and not isinstance(amount, bool):
        return Bound(cost=cost, number=float(amount), unit="ms" if cost == "latency" else "").most(dense)
    text = str(amount)
    bound = Bound.parse(text if ":" in text or cost == "latency" else f"{cost}:{text}")
    if bound.cost != cost:
        unit = "`50%` or `1.2ms`" if cost == "latency" else f"`50%` or a number of {cost}"
        raise BudgetError(
            f"a limit on {cost} is a share of the dense model's or an amount; got {text!r}. Write {unit}."
        )
    return bound.most(dense)


def _plain(number: float) -> str:
    """Write all digits of a number without an exponent, so that `parse` reads the same number."""
    return format(Decimal(repr(number)).normalize(), "f") if math.isfinite(number) else str(number)


def _shown(name: str, cost: float) -> str:
    if name == "latency_ms":
        return f"{cost * 1e3:.4g} us" if cost < 1 else f"{cost:.4g} ms"
    return f"{cost:,.0f} {name.replace('_', ' ')}"
