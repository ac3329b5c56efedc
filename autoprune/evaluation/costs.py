"""Every cost of a policy: its predicted latency and its exact sizes, in the order of `records.COSTS`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoprune.latency.predictor import LatencyPredictor
from autoprune.records import COSTS, Policy
from autoprune.structure import Structure

Array = npt.NDArray[np.int64]


def sizes(structure: Structure, widths: Array) -> dict[str, Array]:
    """All costs but latency, by name; each `[P]` for widths `[P, U]`."""
    return {
        "params": structure.params(widths),
        "macs": structure.macs(widths),
        "bytes": structure.bytes(widths),
        "activation_bytes": structure.peak_activation_bytes(widths),
    }


def cost_matrix(
    structure: Structure, predictor: LatencyPredictor, policies: Sequence[Policy]
) -> npt.NDArray[np.float64]:
    """Costs of policies, float64 `[P, K]`.

    Raises `MissingEntryError` for a width that the latency table lacks, `PolicyError` for a policy of another model.
    """
    widths = structure.widths(policies)
    found = sizes(structure, widths) | {"latency_ms": predictor.predict(widths)}
    return np.stack([found[name].astype(float) for name in COSTS], axis=1)
