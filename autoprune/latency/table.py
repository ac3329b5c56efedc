"""The latency table: what every operator geometry costs on one target, and how well that predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.errors import LatencyError
from autoprune.latency.fitting import HeldOut
from autoprune.latency.geometries import priced_operators
from autoprune.latency.predictor import LatencyPredictor
from autoprune.latency.target import Target, differences
from autoprune.records import Geometry
from autoprune.runfolder import write_atomic
from autoprune.structure import Structure

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ProfiledPolicy:
    """One policy that was timed; `held_out` ones were not used for the fit."""

    widths: Mapping[str, int]
    measured_ms: float
    predicted_ms: float
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Costs on one target. Build it with `profile`, keep it with `save`, use it through `predictor`.

    `target` is the fingerprint of the measured target, `structure` the digest of the profiled structure, `dense_ms` the
    measured latency of the dense model, `created` a UTC time in ISO format. `drift_percent` is how far the dense model
    moved within a block of measurements. `notes` say what was out of the ordinary.
    """

    target: Mapping[str, Any]
    space_id: str
    structure: str
    seed: int
    created: str
    dense_ms: float
    intercept_ms: float
    entries_ms: Mapping[Geometry, float]
    held_out: HeldOut
    drift_percent: float
    samples: tuple[ProfiledPolicy, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        costs = np.array([*self.entries_ms.values(), self.intercept_ms], dtype=float)
        if not self.entries_ms or not np.isfinite(costs).all() or (costs < 0).any():
            raise LatencyError("a latency table needs entries, and none of them negative or not finite")
        if not (np.isfinite(self.dense_ms) and self.dense_ms > 0):
            raise LatencyError(f"the dense latency must be above 0; got {self.dense_ms}")

    def predictor(self, structure: Structure) -> LatencyPredictor:
        """The predictor for a structure; it need not be the profiled one as long as its geometries are in the table."""
        names = [unit.name for unit in structure.units]
        return LatencyPredictor(names, priced_operators(structure.operators), self.entries_ms, self.intercept_ms)

    def require(self, target: Target, *, allow_foreign: bool = False) -> LatencyTable:
        """Return the table if it was measured on `target`; `LatencyError` that spells out what differs otherwise."""
        found = differences(target.fingerprint(), dict(self.target))
        if found and not allow_foreign:
            raise LatencyError(
                f"the latency table was measured on another target ({'; '.join(found)}). Run `autoprune profile` here, "
                "or allow a foreign table if you search for that other target."
            )
        return self

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        values = {
            name: value for name, value in vars(self).items() if name not in ("entries_ms", "held_out", "samples")
        }
        entries = [vars(geometry) | {"latency_ms": cost} for geometry, cost in self.entries_ms.items()]
        samples = [vars(sample) | {"widths": dict(sample.widths)} for sample in self.samples]
        document = {
            "schema": SCHEMA,
            **values,
            "held_out": asdict(self.held_out),
            "entries": entries,
            "samples": samples,
        }
        write_atomic(Path(path), json.dumps(document, indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table; `LatencyError` for a file that is absent, cut off, edited wrongly or of another schema."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise LatencyError(
                f"{path}: cannot be read ({error.strerror}). Run `autoprune profile` to make one."
            ) from error
        except ValueError as error:
            raise LatencyError(
                f"{path}: not a latency table, or cut off: {error}. Run `autoprune profile` again."
            ) from error
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            schema = document.get("schema") if isinstance(document, dict) else None
            raise LatencyError(
                f"{path}: latency tables have schema {SCHEMA}; got {schema!r}. Run `autoprune profile` again."
            )
        try:
            return cls._from_document(document)
        except (KeyError, TypeError, ValueError, AttributeError, LatencyError) as error:
            raise LatencyError(
                f"{path}: a value is missing or wrong ({error!r}). Run `autoprune profile` again."
            ) from error

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> LatencyTable:
        values = {key: value for key, value in document.items() if key not in ("schema", "entries")}
        return cls(
            **values
            | {
                "dense_ms": float(document["dense_ms"]),
                "intercept_ms": float(document["intercept_ms"]),
                "entries_ms": dict(_entry(entry) for entry in document["entries"]),
                "held_out": HeldOut(**document["held_out"]),
                "samples": tuple(ProfiledPolicy(**sample) for sample in document["samples"]),
                "notes": tuple(document["notes"]),
            }
        )


def _entry(value: dict[str, Any]) -> tuple[Geometry, float]:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "latency_ms"}
    return Geometry(**fields), float(value["latency_ms"])
