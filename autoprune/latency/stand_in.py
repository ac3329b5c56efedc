"""A stand-in for the latency table in a search whose budgets limit no latency: nothing of it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.latency.predictor import Prediction
from autoprune.records import Policy
from autoprune.runfolder import read_json, write_json
from autoprune.structure import Structure
from autoprune.treatments import timed_rows

Part = tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]


class MacsPredictor:
    """Milliseconds in proportion to multiply-adds: they put policies in an order, and are never shown."""

    remainder_ms = 0.0

    def __init__(self, structure: Structure, layers: Sequence[str], dense_ms: float) -> None:
        self.layers = tuple(layers)
        self._structure = structure
        dense = structure.macs(structure.rows([structure.dense_policy()], self.layers), self.layers)[0]
        self._ms_each = dense_ms / max(1, int(dense))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of rows: units, then layers."""
        return (*(unit.name for unit in self._structure.units), *self.layers)

    def predict(self, policies: Sequence[Policy] | np.ndarray) -> np.ndarray:
        """Return milliseconds, float64 `[P]`, of policies or of rows `[P, U + L]`; above 0."""
        rows = policies if isinstance(policies, np.ndarray) else self._structure.rows(policies, self.layers)
        return np.maximum(self._structure.macs(self._without_patterns(rows), self.layers), 1) * self._ms_each

    def predict_with_sd(self, policies: Sequence[Policy] | np.ndarray) -> Prediction:
        """As `predict`; nothing is known about the error."""
        latency_ms = self.predict(policies)
        return Prediction(latency_ms=latency_ms, sd_ms=np.zeros_like(latency_ms))

    def parts(self, deviations: float = 0.0) -> Iterator[Part]:
        """Yield the summands of a prediction: columns, and milliseconds `[P]` for rows; their deviations are 0."""
        for name, units, cost in self._structure.tensor_costs(self.layers):
            if name == "macs":
                yield units, lambda rows, cost=cost: cost(self._without_patterns(rows)) * self._ms_each

    def _without_patterns(self, rows: np.ndarray) -> np.ndarray:
        return timed_rows(rows, len(self._structure.units))


@dataclass(frozen=True, kw_only=True)
class StandInTable:
    """The dense latency, measured once, on a target, and the layers whose treatments are searched.

    `noise` is the relative standard deviation of one measured ratio.
    """

    target: Mapping[str, Any]
    created: str
    dense_ms: float
    noise: float
    layers: tuple[str, ...]

    refits = 0

    def predictor(self, structure: Structure) -> MacsPredictor:
        """Return what orders policies."""
        return MacsPredictor(structure, self.layers, self.dense_ms)

    def save(self, path: Path) -> None:
        """Write the value as JSON, atomically."""
        write_json(path, {**vars(self), "target": dict(self.target), "layers": list(self.layers)})

    @classmethod
    def load(cls, path: Path) -> StandInTable:
        """Read the value that `save` wrote; `RunFolderError` for a file that is absent or torn."""
        value = read_json(path, "target", "created", "dense_ms", "noise", "layers")
        known = {name: value[name] for name in ("target", "created", "dense_ms", "noise")}
        return cls(**known, layers=tuple(value["layers"]))
