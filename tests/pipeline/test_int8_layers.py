"""A policy with int8 layers and ranks goes through evaluation, export and verification."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import autoprune
from autoprune.device.connect import make_target
from autoprune.errors import UsageError
from autoprune.evaluation import Evaluator
from autoprune.export.formats import INT8_LIMIT
from autoprune.export.onnx_file import OnnxModule
from autoprune.export.rounded_steps import Steps
from autoprune.latency.predictor import Prediction
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.delivery import deliver
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.events import Silent
from autoprune.pipeline.preparation import prepare
from autoprune.pipeline.run import Candidate
from autoprune.pipeline.units import note_short_sums
from autoprune.pipeline.verification import load_twin, verify_model
from autoprune.records import Policy, SearchSpace
from autoprune.runfolder import read_json, write_atomic
from autoprune.training.scoring import predict_outputs
from autoprune.treatments import DENSE, INT8, INT8_DYNAMIC, Treatment
from autoprune.trials import Fidelity, TrialSpec
from tests.machines import AdditiveMachine
from tests.measurers import SimulatedMeasurer

FULL = Fidelity(name="full", rung=3, finetune_samples=64)


class OfMachine:
    """Predicts exactly what a simulated device takes, which is faster where layers are int8."""

    def __init__(self, machine: AdditiveMachine) -> None:
        self.machine = machine

    def predict_with_sd(self, policies: Sequence[Policy]) -> Prediction:
        latency_ms = self.machine.ms(self.machine.structure.rows(policies, self.machine.layers))
        return Prediction(latency_ms=latency_ms, sd_ms=np.zeros(len(policies)))


def treated(policy: Policy, *layers: str) -> Policy:
    return Policy(space_id=policy.space_id, widths=policy.widths, treatments=dict.fromkeys(layers, INT8))


class Notes(Silent):
    """Events that keep their notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.texts.append(text)


def test_a_table_of_a_cpu_without_vnni_takes_a_bit_from_the_weights(copied: autoprune.Run) -> None:
    table = LatencyTable.load(copied.folder.table)
    table = replace(table, target={**table.target, "isa": ["avx2", "fma"]})
    table.save(copied.folder.table)
    dense_model = copied.dense_model
    policy = treated(copied.models[0].policy, "features.0.weight", "features.3.weight")
    numbers = dense_model.quantization(dense_model.structure.shrink(policy), policy)
    assert {int(np.abs(weight.steps.astype(int)).max()) for weight in numbers.weights.values()} == {63}
    notes, space = Notes(), SearchSpace(id="", levels={"head.weight": (INT8_DYNAMIC, INT8, DENSE)})
    note_short_sums(space, table.target, notes)
    assert notes.texts == ["weights in int8 have 7 bits: without VNNI the CPU adds two products in 16 bits"]


def test_what_is_scored_is_what_is_delivered(
    copied: autoprune.Run, measurer: SimulatedMeasurer, tmp_path: Path
) -> None:
    dense_model, folder = copied.dense_model, copied.folder
    int8 = treated(copied.models[0].policy, "features.0.weight", "features.3.weight")
    ranks = {"features.3.weight": Treatment(precision="int8", rank=2), "features.7.weight": Treatment(rank=1)}
    policy = replace(int8, treatments={**int8.treatments, **ranks, "head.weight": Treatment(precision="w4")})
    result = Evaluator(dense_model=dense_model, predict_ms=lambda _: 1.0)(
        TrialSpec(number=0, policy=policy, fidelity=FULL, seed=1)
    )
    assert result.weights is not None
    assert result.measurement is not None
    files = folder.model(policy.digest())
    files.path.mkdir()
    write_atomic(files.weights, result.weights)
    prepared = prepare(copied.config, folder, copied.open_task(), Silent(), measurer)
    costs = prepared.costs
    machine = measurer.machine(dense_model.structure, layers=tuple(policy.treatments))
    vars(costs)["predictor"] = OfMachine(machine)  # a cached property: the table of this run knows no treatments
    record = verify_model(policy, None, "guided", costs, prepared.deployment)
    assert record.score == pytest.approx(result.measurement.score, abs=0.01)  # by the file, and by the twin
    int8_ms, fp32_ms = machine.ms(dense_model.structure.rows([policy, copied.models[0].policy], machine.layers))
    assert record.latency_ms_predicted == pytest.approx(int8_ms)
    assert int8_ms < fp32_ms
    assert record.onnx is not None
    assert record.onnx.endswith("model.int8.onnx")
    metrics = read_json(files.metrics)
    assert metrics["int8_same_predictions"] >= 0.999
    assert 0 < metrics["int8_relative_difference"] < 0.02

    task, twin = dense_model.task, Candidate(run=copied, record=record).model(quantized=True)
    outputs = predict_outputs(OnnxModule(folder.path / record.onnx), task, task.test_set)
    assert float((predict_outputs(twin, task, task.test_set) - outputs).abs().max()) < 0.05 * float(outputs.abs().max())
    model = Candidate(run=copied, record=record).model()
    assert vars(model)["pruned_to"].ranks == {name: treatment.rank for name, treatment in ranks.items()}
    plain = predict_outputs(model, task, task.test_set)
    assert not torch.allclose(plain, outputs, rtol=1e-3)
    for format in ("onnx", *(["openvino"] if find_spec("openvino") else [])):
        delivery = deliver(Candidate(run=copied, record=record), tmp_path / format, format)
        assert 0 < (delivery.difference or 0) < delivery.limit == INT8_LIMIT
    delivery = deliver(Candidate(run=copied, record=record), tmp_path / "small.safetensors")
    assert delivery.difference == 0
    loaded, name = autoprune.load(task.build_model, delivery.paths.model), "features.0.weight"
    weight, steps = model.state_dict()[name], Steps.of(model.state_dict()[name])
    assert steps is not None
    assert torch.equal(loaded.state_dict()[name], steps.values)
    assert not torch.equal(steps.values, weight)
    assert float((predict_outputs(loaded, task, task.test_set) - outputs).abs().max()) < 0.2 * float(
        outputs.abs().max()
    )
    tensors = [tensor for tensor in load_file(delivery.paths.model).values() if tensor.dtype != torch.int64]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == record.bytes


def test_a_policy_without_treatments_is_its_own_twin(finished: autoprune.Run) -> None:
    policy, x = finished.models[0].policy, finished.dense_model.task.example_inputs[0]
    candidate = finished.candidate(policy.digest())
    np.testing.assert_array_equal(candidate.model(quantized=True)(x).detach(), candidate.model()(x).detach())
    assert load_twin(finished.dense_model, finished.folder, policy).pruned_to is not None


def test_targets_without_int8_layers_refuse_them(copied: autoprune.Run) -> None:
    measurer = SimulatedMeasurer(make_target("torch-cpu"))
    deployment = Deployment(folder=copied.folder, dense_model=copied.dense_model, measurer=measurer, seed=0)
    policy = treated(copied.models[0].policy, "head.weight")
    with pytest.raises(UsageError, match="need ONNX Runtime and a target in fp32; got torch-cpu"):
        deployment.export(copied.dense_model.cut(policy).shrink(), copied.folder.path / "x.onnx", policy)
