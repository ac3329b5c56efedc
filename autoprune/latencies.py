"""Values of latency: the geometry of an operator, which its latency depends on; a timed sample; a staircase;
the unit in which latencies are shown.

All are frozen and keyword-only and survive a JSON round trip. This module never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

CONVERSIONS = ("quantize", "dequantize")
"""Operators that turn a tensor from fp32 to int8, and back."""

_GEOMETRY_KEYS = {"out_rows": "height", "out_columns": "width"}
"""Keys in a latency table of the fields whose names in Python differ."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """All that the latency of one operator depends on, for one example; the key of a latency table.

    `fused` names the operators that the runtime folds into this one, `treatment` is the treatment of the operator's
    layer ("" for a dense one). Sizes that do not apply are 0, a dilation of 1 is
    `()`. A geometry never holds a layer name. Batch, threads and precision belong to the table's target.
    `structure.geometry.Operator` says which sizes recurrent layers and attention have.
    """

    op: str
    c_in: int
    c_out: int
    out_rows: int = 0
    out_columns: int = 0
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    fused: str = ""
    treatment: str = ""

    @property
    def kind(self) -> Geometry:
        """The part of the geometry that no width changes, its treatment included: channels and groups are 0."""
        return replace(self, c_in=0, c_out=0, groups=0)

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value; rows and columns are its `height` and `width`, a dense `treatment` is left out."""
        fields = {name: value for name, value in vars(self).items() if name != "treatment" or value}
        return {_GEOMETRY_KEYS.get(name, name): value for name, value in fields.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Geometry:
        """Build the value that `to_json` wrote."""
        names = {key: name for name, key in _GEOMETRY_KEYS.items()}
        fields: dict[str, Any] = {
            names.get(key, key): tuple(field) if isinstance(field, list) else field for key, field in value.items()
        }
        return cls(**fields)

    def __str__(self) -> str:
        rows = f"{self.out_rows}x" if self.out_rows else ""
        size = f" {rows}{self.out_columns}" if rows or self.out_columns else ""
        kernel = f" k{'x'.join(map(str, self.kernel))}" if self.kernel else ""
        stride = f" s{'x'.join(map(str, self.stride))}" if self.stride and set(self.stride) != {1} else ""
        dilation = f" d{'x'.join(map(str, self.dilation))}" if self.dilation else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        fused = f"+{self.fused}" if self.fused else ""
        treatment = f"{self.treatment} " if self.treatment else ""
        return f"{treatment}{self.op}{fused} {self.c_in}->{self.c_out}{size}{kernel}{stride}{dilation}{groups}"


@dataclass(frozen=True, kw_only=True)
class LatencySample:
    """Latency of one model: median and tenth / ninetieth percentile of `runs` timed runs, in milliseconds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """Cost of the operators of one unit against its width, while all units that share these operators are full.

    `latency_ms` and its standard deviation `sd_ms` have one value for each of the ascending `widths`. `useful` are the
    widths that no larger one beats.
    """

    unit: str
    widths: tuple[int, ...]
    latency_ms: tuple[float, ...]
    sd_ms: tuple[float, ...]
    useful: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Staircase:
        """Build the value that `to_json` wrote."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class TimeUnit:
    """A unit for all latencies that are shown beside each other: `name` is us or ms, `per_ms` how many are 1 ms."""

    name: str
    per_ms: float

    @classmethod
    def of(cls, latencies_ms: Iterable[float | None]) -> TimeUnit:
        """Return ms where one of some latencies is 1 ms or longer, else us; `None` is no latency."""
        return MS if max((ms for ms in latencies_ms if ms is not None), default=0.0) >= 1 else US

    def shown(self, latency_ms: float | None) -> str:
        """Return a latency as text, with three digits, or all of those before the point; empty for none.

        Example:
            >>> US.shown(0.0433), US.shown(1.2345), MS.shown(12.46), MS.shown(None)
            ('43.3 us', '1234 us', '12.5 ms', '')
        """
        if latency_ms is None:
            return ""
        number = latency_ms * self.per_ms
        return f"{number:.0f} {self.name}" if abs(number) >= 100 else f"{number:.3g} {self.name}"


US, MS = TimeUnit(name="us", per_ms=1e3), TimeUnit(name="ms", per_ms=1.0)
