"""The latency table: the cost of every operator geometry on one target, its uncertainty, and errors of predictions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.device.noise import require_quiet
from autoprune.device.target import Target, differences
from autoprune.errors import LatencyError
from autoprune.files import parsed_json
from autoprune.latencies import Geometry
from autoprune.latency.deviations import DRAWS
from autoprune.latency.fitting import HeldOut
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.predictor import Costs, GeometryIndex, LatencyPredictor
from autoprune.quantization.arithmetic import AccuracyLevels
from autoprune.records import Policy, SearchSpace, digest_of
from autoprune.runfolder import write_atomic
from autoprune.structure import Structure
from autoprune.treatments import DENSE, Treatment, level_code, level_from_json

SCHEMA = 4
"""Tables with treatments."""

_WIDTHS_SCHEMA, _LEVELS_SCHEMA = 3, 5
"""Tables of widths alone, which earlier versions read, too, and tables with accuracy levels, which they refuse."""

_ADVICE = "Run `autoprune profile` again, or delete it if it is part of a run, which then measures it again."
SCAN, FIT, HELD_OUT, CANDIDATE = "scan", "fit", "held_out", "candidate"
ROLES = (SCAN, FIT, HELD_OUT, CANDIDATE)
"""Why a policy was timed; the held-out ones are never fitted to."""


@dataclass(frozen=True, kw_only=True)
class ProfiledPolicy:
    """One policy that was timed: measured and predicted milliseconds, and the prediction's standard deviation.

    `treatments` holds the layers that are not dense.
    """

    widths: Mapping[str, int]
    measured_ms: float
    predicted_ms: float
    sd_ms: float
    role: str
    treatments: Mapping[str, Treatment] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        """The policy, outside any space."""
        return Policy(space_id="", widths=self.widths, treatments=self.treatments)

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value; without treatments, as it was before there were any."""
        value = vars(self) | {"widths": dict(self.widths)}
        treatments = {name: str(treatment) for name, treatment in value.pop("treatments").items()}
        return value | ({"treatments": treatments} if treatments else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ProfiledPolicy:
        """Build the value that `to_json` wrote."""
        treatments = {name: Treatment.parse(text) for name, text in value.get("treatments", {}).items()}
        return cls(**{**value, "treatments": treatments})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Cost of one geometry: fitted, before the evidence, and `[draws]` by which posterior draws differ."""

    latency_ms: float
    prior_ms: float
    spread_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Costs on one target. Build it with `profile`, keep it with `save`, use it through `predictor`.

    `target` is the fingerprint of the measured target (batch, threads and precision are part of it, so the keys of the
    entries need not be), `structure` the digest of the profiled structure, `space` the levels it was profiled for,
    `dense_ms` the measured latency of the dense model, `remainder_ms` the constant part of every model: what no unit
    changes, listed in `fixed`. `known` are the widths of every unit that have entries, and the codes of treatments of
    every layer that was treated; `useful` are those that no larger width, and no denser treatment, beats. `created` is
    a UTC time in ISO format. `drift_percent` is how far the dense model moved within a block of measurements, `noise`
    the relative standard deviation of one measured ratio, `again_ms` second measurements of the first held-out
    policies. `notes` say what was out of the ordinary. `refits` counts how often a run fitted it
    again with candidates that it had measured. `accuracy_levels` are those that its layers in `w8` and `w4` have.
    """

    target: Mapping[str, Any]
    space: SearchSpace
    structure: str
    seed: int
    created: str
    seconds: float
    dense_ms: float
    remainder_ms: float
    remainder_spread_ms: tuple[float, ...]
    entries: Mapping[Geometry, Entry]
    fixed: tuple[str, ...]
    known: Mapping[str, tuple[int, ...]]
    useful: Mapping[str, tuple[int, ...]]
    held_out: HeldOut
    drift_percent: float
    repeated_blocks: int
    noise: float
    again_ms: tuple[float, ...]
    samples: tuple[ProfiledPolicy, ...]
    notes: tuple[str, ...] = ()
    refits: int = 0
    accuracy_levels: AccuracyLevels = field(default_factory=dict)

    def __post_init__(self) -> None:
        costs = np.array([*(e.latency_ms for e in self.entries.values()), self.remainder_ms], dtype=float)
        if not self.entries or not np.isfinite(costs).all() or (costs < 0).any():
            raise LatencyError("a latency table needs entries, and none of them negative or not finite")
        if not (np.isfinite(self.dense_ms) and self.dense_ms > 0):
            raise LatencyError(f"the dense latency must be above 0; got {self.dense_ms}")
        for sample in self.samples:
            if sample.role not in ROLES or not (np.isfinite(sample.measured_ms) and sample.measured_ms > 0):
                raise LatencyError(f"a sample has a role of {', '.join(ROLES)} and a time above 0; got {sample}")

    @property
    def counts(self) -> dict[str, int]:
        """How many policies were timed, by role."""
        return dict(Counter(sample.role for sample in self.samples))

    def predictor(self, structure: Structure) -> LatencyPredictor:
        """The predictor for the profiled structure; `LatencyError` for any other, whose remainder is unknown."""
        self.require_structure(structure)
        index = GeometryIndex(PricedOperators.of(structure, self.layers).varying, tuple(self.entries))
        costs = Costs(
            entries_ms=np.array([entry.latency_ms for entry in self.entries.values()]),
            spread_ms=np.array([entry.spread_ms for entry in self.entries.values()]).T,
        )
        return LatencyPredictor(
            index, self.known, costs, (self.remainder_ms, np.array(self.remainder_spread_ms, dtype=float)), self.layers
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose treatments it knows, in the order of the last columns of rows."""
        return self.space.layer_names

    def require(self, target: Target, *, allow_foreign: bool = False) -> LatencyTable:
        """Return the table if it was measured on `target`; `LatencyError` that spells out what differs otherwise."""
        changes = differences(target.fingerprint(), self.target)
        if changes and not allow_foreign:
            raise LatencyError(
                f"the latency table was measured on another target ({'; '.join(changes)}). Run `autoprune profile` "
                "here, or allow a foreign table (--allow-foreign-table) if you search for that other target."
            )
        return self

    def require_quiet(self, *, allow_noise: bool = False) -> LatencyTable:
        """Return the table if its latencies vary little enough to be used, or if noise is allowed.

        Raises:
            NoiseError: they vary by more than 15 % from one measurement to the next.
        """
        require_quiet(self.held_out.noise_percent / 100, allow=allow_noise)
        return self

    def continues(self, other: LatencyTable) -> bool:
        """Return whether this table is `other`, or `other` fitted again with candidates of a run."""
        pairs = zip(self.samples, other.samples, strict=False)
        return len(self.samples) >= len(other.samples) and all(
            mine.policy == theirs.policy and math.isclose(mine.measured_ms, theirs.measured_ms)
            for mine, theirs in pairs
        )

    def require_structure(self, structure: Structure) -> None:
        """Raise `LatencyError` unless the table was measured for this very model."""
        if structure.digest() != self.structure:
            raise LatencyError(
                f"the latency table is of another model (structure {self.structure}, this one is "
                f"{structure.digest()}). Run `autoprune profile` for this model."
            )

    def require_space(self, space: SearchSpace) -> None:
        """Raise `LatencyError` that names the first level of `space` that the table was not profiled for."""
        treated = set(space.layer_names)
        for name, levels in space.levels.items():
            known = self.space.levels.get(name, (DENSE,) if name in treated else ())
            missing = [level for level in levels if level not in known]
            if missing:
                what = "treatment {} of layer" if name in treated else "width {} of unit"
                raise LatencyError(
                    f"the latency table was profiled for another search space: it does not know "
                    f"{what.format(missing[0])} {name!r}, only {', '.join(map(str, known))}. Run "
                    "`autoprune profile` with this space."
                )

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        write_atomic(Path(path), self.content())

    def content(self) -> bytes:
        """Return the content of the file that `save` writes."""
        return (json.dumps(self.to_json(), indent=1) + "\n").encode()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value with a checksum, so that a file that was cut off or edited by hand is recognised."""
        entries = [geometry.to_json() | vars(entry) for geometry, entry in self.entries.items()]
        document = vars(self) | {
            "schema": SCHEMA if self.layers else _WIDTHS_SCHEMA,
            "accuracy_levels": dict(self.accuracy_levels),
            "space": self.space.to_json(),
            "entries": entries,
            "known": self._levels(self.known),
            "useful": self._levels(self.useful),
            "held_out": asdict(self.held_out),
            "samples": [sample.to_json() for sample in self.samples],
            "sample_counts": self.counts,
        }
        if self.accuracy_levels:
            document["schema"] = _LEVELS_SCHEMA
        else:
            del document["accuracy_levels"]
        document = json.loads(json.dumps(document))
        return document | {"checksum": digest_of(document, length=32)}

    def _levels(self, codes: Mapping[str, Sequence[int]]) -> dict[str, list[int] | list[str]]:
        """Return codes as they are written in a file: treatments by their names."""
        layers = set(self.layers)
        return {n: [str(Treatment.of_code(c)) for c in cs] if n in layers else list(cs) for n, cs in codes.items()}

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table; `LatencyError` for a file that is absent, cut off, edited by hand or of another schema."""
        try:
            document = parsed_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise LatencyError(
                f"{path}: cannot be read ({error.strerror}). Run `autoprune profile` to make one."
            ) from error
        except ValueError as error:
            raise LatencyError(f"{path}: not a latency table, or cut off: {error}. {_ADVICE}") from error
        if not isinstance(document, dict) or document.get("schema") not in (_WIDTHS_SCHEMA, SCHEMA, _LEVELS_SCHEMA):
            schema = document.get("schema") if isinstance(document, dict) else None
            raise LatencyError(
                f"{path}: latency tables have schema {_WIDTHS_SCHEMA} to {_LEVELS_SCHEMA}; got {schema!r}. {_ADVICE}"
            )
        try:
            return cls._from_document(document)
        except (KeyError, TypeError, ValueError, AttributeError, LatencyError) as error:
            raise LatencyError(f"{path}: a value is missing or wrong ({error!r}). {_ADVICE}") from error

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> LatencyTable:
        content = {key: value for key, value in document.items() if key != "checksum"}
        pairs = [_entry(entry) for entry in content["entries"]]
        twice = [geometry for geometry, count in Counter(geometry for geometry, _ in pairs).items() if count > 1]
        if twice:
            raise LatencyError(f"`{twice[0]}` has more than one entry")
        values = {key: value for key, value in content.items() if key not in ("schema", "sample_counts")}
        table = cls(
            **values
            | {
                "space": SearchSpace.from_json(content["space"]),
                "entries": dict(pairs),
                "remainder_spread_ms": tuple(content["remainder_spread_ms"]),
                "again_ms": tuple(content["again_ms"]),
                "fixed": tuple(content["fixed"]),
                "known": {name: _codes(levels) for name, levels in content["known"].items()},
                "useful": {name: _codes(levels) for name, levels in content["useful"].items()},
                "held_out": HeldOut(**content["held_out"]),
                "samples": tuple(map(ProfiledPolicy.from_json, content["samples"])),
                "notes": tuple(content["notes"]),
            }
        )
        if sum(sample.role == HELD_OUT for sample in table.samples) != table.held_out.policies:
            raise LatencyError(f"it reports {table.held_out.policies} held-out policies, but their samples are missing")
        if document.get("checksum") != digest_of(content, length=32):
            raise LatencyError("it was changed after it was measured: its checksum does not fit its content")
        return table


def _codes(levels: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(level_code(level_from_json(level)) for level in levels)


def _entry(value: dict[str, Any]) -> tuple[Geometry, Entry]:
    costs = {"latency_ms", "prior_ms", "spread_ms"}
    fields = {key: v for key, v in value.items() if key not in costs}
    spread = tuple(float(v) for v in value["spread_ms"])
    if len(spread) != DRAWS:
        raise LatencyError(f"an entry has {DRAWS} posterior draws; got {len(spread)}")
    entry = Entry(latency_ms=float(value["latency_ms"]), prior_ms=float(value["prior_ms"]), spread_ms=spread)
    return Geometry.from_json(fields), entry
