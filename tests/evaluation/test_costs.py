from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import autoprune
from autoprune.errors import PolicyError
from autoprune.evaluation import Evaluator, additive_costs, cost_matrix, costs
from autoprune.latency.table import LatencyTable
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.treated import treated
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.structure import Structure, analyze
from autoprune.treatments import INT8, Treatment
from autoprune.trials import Fidelity, TrialSpec


def test_rows_are_policies_and_columns_are_costs(finished: autoprune.Run) -> None:
    structure = finished.dense_model.structure
    predictor = LatencyTable.load(finished.folder.table).predictor(structure)
    policies = [structure.dense_policy(), *(m.policy for m in [*finished.models, *finished.baselines])]
    costs = cost_matrix(structure, predictor, policies)
    assert costs.shape == (len(policies), len(COSTS))
    assert costs.dtype == np.float64
    np.testing.assert_array_equal(costs[:, 0], predictor.predict(policies))
    for row, policy in zip(costs, policies, strict=True):
        assert dict(zip(COSTS[1:], row[1:].tolist(), strict=True)) == finished.dense_model.sizes(policy)
    some = cost_matrix(structure, predictor, policies, {"latency_ms", "bytes"})
    kept = [name in ("latency_ms", "bytes") for name in COSTS]
    np.testing.assert_array_equal(some, np.where(kept, costs, 0.0))
    weights = finished.dense_model.module.state_dict().values()
    assert costs[0, COSTS.index("bytes")] == sum(t.nbytes for t in weights if t.is_floating_point())


def test_a_trial_costs_what_was_predicted(finished: autoprune.Run) -> None:
    """The search keeps a trial within a limit by the prediction, and promotes it by the measurement."""
    dense_model = finished.dense_model
    predictor = LatencyTable.load(finished.folder.table).predictor(dense_model.structure)

    def costs(policy: Policy) -> list[float]:
        return cost_matrix(dense_model.structure, predictor, [policy])[0].tolist()

    policy = finished.models[0].policy
    spec = TrialSpec(number=0, policy=policy, fidelity=Fidelity(name="proxy", rung=0, val_samples=20), seed=0)
    measurement = Evaluator(dense_model=dense_model, predict_ms=lambda p: costs(p)[0])(spec).measurement
    assert measurement is not None
    assert list(measurement.costs()) == costs(policy)


def test_additive_costs_sum_to_the_exact_ones(finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = finished.dense_model.structure
    table = LatencyTable.load(finished.folder.table)
    predictor = table.predictor(structure)
    rng = np.random.default_rng(0)
    policies = [table.space.policy({n: int(rng.choice(v)) for n, v in table.space.levels.items()}) for _ in range(30)]
    wanted = cost_matrix(structure, predictor, policies)
    additive = additive_costs(structure, predictor, table.space)
    assert set(additive) == {"latency_ms", "params", "macs", "bytes"}
    for name, cost in additive.items():
        np.testing.assert_allclose(cost.of(table.space, policies), wanted[:, COSTS.index(name)], rtol=1e-9)
    cautious = additive_costs(structure, predictor, table.space, deviations=2.0)
    added_ms = cautious["latency_ms"].of(table.space, policies) - wanted[:, COSTS.index("latency_ms")]
    parts_sd_ms = predictor.predict_with_sd(policies).sd_ms
    assert (added_ms > 1.9 * parts_sd_ms - 1e-9).all(), "errors of parts never cancel in a sum of deviations"
    monkeypatch.setattr(costs, "_MOST_ENTRIES", 1)
    rough = additive_costs(structure, predictor, table.space)["params"]
    # Main effects are taken at the middle levels: products of several narrow units are where they end.
    levels = {name: [w for w in widths if 2 * w >= widths[-1]] for name, widths in table.space.levels.items()}
    wide = [table.space.policy({n: int(rng.choice(v)) for n, v in levels.items()}) for _ in range(30)]
    error = rough.of(table.space, wide) / cost_matrix(structure, predictor, wide)[:, COSTS.index("params")] - 1
    assert 0 < np.abs(error).mean() < 0.1


def test_costs_of_mixed_policies_are_sums_of_tables(
    treated_table: LatencyTable, structure_of: Callable[[str], Structure]
) -> None:
    structure, space = structure_of("residual"), treated_table.space
    predictor, rng = treated_table.predictor(structure), np.random.default_rng(0)
    policies = [space.policy({n: ls[int(rng.integers(len(ls)))] for n, ls in space.levels.items()}) for _ in range(30)]
    wanted = cost_matrix(structure, predictor, policies)
    for name, cost in additive_costs(structure, predictor, space).items():
        np.testing.assert_allclose(cost.of(space, policies), wanted[:, COSTS.index(name)], rtol=1e-9)
    dense = space.with_dense_layers()
    for name, cost in additive_costs(structure, predictor, dense).items():
        policy = dense.smallest()
        np.testing.assert_allclose(
            cost.of(dense, [policy])[0], cost_matrix(structure, predictor, [policy])[0, COSTS.index(name)], rtol=1e-9
        )


def test_int8_weights_have_a_byte_each_and_a_scale_for_each_output(structure_of: Callable[[str], Structure]) -> None:
    structure = structure_of("residual")
    layers = tuple(layer.name for layer in structure.layers)
    dense = structure.dense_policy()
    policy = Policy(space_id="", widths=dense.widths, treatments={layers[0]: INT8})
    fp32, int8 = (int(structure.bytes(structure.rows([p], layers), layers)[0]) for p in (dense, policy))
    weight = structure.tensors[layers[0]]
    assert fp32 - int8 == 3 * weight.numel() - 4 * weight.shape[0]


LSTM, LINEAR = ("recurrent", "lstm.weight_ih_l0"), ("flat", "hidden.weight")


@pytest.mark.parametrize(
    ("layer", "precision"), [(LSTM, "int8-dynamic"), *((LINEAR, text) for text in ("int8-dynamic", "w8", "w4"))]
)
def test_bytes_of_layers_that_are_treated_alone_are_those_of_the_file(
    layer: tuple[str, str],
    precision: str,
    structure_of: Callable[[str], Structure],
    dense_of: Callable[[str], onnx.ModelProto],
) -> None:
    structure, name = structure_of(layer[0]), layer[1]
    weights = next(layer.weights for layer in structure.layers if layer.name == name)
    dense, numel = structure.dense_policy(), sum(structure.tensors[weight].numel() for weight in weights)
    policy = Policy(space_id="", widths=dense.widths, treatments={name: Treatment(precision=precision)})
    fp32, treated_bytes = (int(structure.bytes(structure.rows([p], [name]), [name])[0]) for p in (dense, policy))
    stored = treated(dense_of(layer[0]), policy.treatments).graph.initializer
    parts = [numpy_helper.to_array(i).nbytes for i in stored if i.name.endswith(("_quantized", "_scale"))]
    assert fp32 - treated_bytes == 4 * numel - sum(parts)


class Tied(nn.Module):
    """An embedding whose weight is that of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.embed(x))))


def test_a_weight_that_an_embedding_reads_stays_whole_beside_the_treated_one() -> None:
    structure = analyze(Tied().eval(), (torch.zeros(1, 3, dtype=torch.long),))
    name, dense = "embed.weight", structure.dense_policy()
    policy = replace(dense, treatments={name: INT8})
    fp32, int8 = (int(structure.bytes(structure.rows([p], [name]), [name])[0]) for p in (dense, policy))
    assert int8 - fp32 == 9 * 8 + 4 * 9
    file = treated(export_onnx(structure.model, structure.example_inputs), policy.treatments)
    stored = {i.name: i.data_type for i in file.graph.initializer if i.dims in ([9, 8], [8, 9])}
    assert stored == {
        "head.weight": onnx.TensorProto.FLOAT,
        "embed.weight_transposed_quantized": onnx.TensorProto.INT8,
    }


def test_a_space_with_layers_that_the_table_does_not_know_is_refused(
    table: LatencyTable, structure_of: Callable[[str], Structure], treated_space_of: Callable[[str], SearchSpace]
) -> None:
    structure = structure_of("residual")
    with pytest.raises(PolicyError, match="knows no treatment"):
        additive_costs(structure, table.predictor(structure), treated_space_of("residual"))
