"""Staircases and latencies of layers by the latency table of a run, kept for its report."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.latency.efficient_widths import staircases
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.parts import layer_costs
from autoprune.latency.stand_in import MacsPredictor, StandInTable
from autoprune.manifest import Manifest
from autoprune.pipeline.cost_model import CostModel
from autoprune.runfolder import RunFolder
from autoprune.trials import FrontModel


def keep_latency_parts(folder: RunFolder, costs: CostModel, models: Sequence[FrontModel]) -> None:
    """Write the staircases of all units, and the predicted time of each layer of the dense model and of some others.

    Nothing is written for a run without a latency table.

    Args:
        folder: of the run.
        costs: with the latency table of the run.
        models: the others.
    """
    table, structure, predictor = costs.table, costs.structure, costs.predictor
    if isinstance(table, StandInTable) or isinstance(predictor, MacsPredictor):
        return
    priced = PricedOperators.of(structure, table.layers)
    stairs = staircases(predictor, table.space, priced.varying)
    parts = layer_costs(table, structure, [structure.dense_policy(), *(model.policy for model in models)])
    names = ["dense", *(model.digest for model in models)]
    layers_ms = dict(zip(names, parts, strict=True))
    content = {"staircases": [s.to_json() for s in stairs], "layers_ms": layers_ms}
    Manifest(folder).write_json(folder.latency_parts, content, sources=[folder.table])
