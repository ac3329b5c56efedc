from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from autoprune.device.address import Address
from autoprune.device.connect import make_target
from autoprune.device.timing import named_feeds, open_session
from autoprune.errors import LatencyError
from autoprune.onnxgraph.resizer import Resizer
from autoprune.profiling import policy_timer as timer_module
from autoprune.profiling.policy_timer import make_policy_timer, random_feeds
from autoprune.structure import analyze
from autoprune.structure.layer_decisions import policy_of
from tests.machines import QUICK


class WrongResizer(Resizer):
    """Builds the largest model whatever the policy."""

    def resize(self, policy):
        full = {unit.name: unit.width for unit in self._structure.units}
        return super().resize(type(policy)(space_id=policy.space_id, widths=full))


class RefusingResizer(Resizer):
    """Cannot deal with the export."""

    def resize(self, policy):
        raise LatencyError("a weight without a name")


def conv_shapes(content):
    graph = onnx.load_model_from_string(content).graph
    return sorted(tuple(i.dims) for i in graph.initializer if len(i.dims) == 4)


def test_models_are_resized_and_nothing_is_noted(net, structure_of, target):
    assert make_policy_timer(structure_of(net), target).notes == ()


def test_rows_of_widths_become_models_of_these_widths_and_progress_is_told(structure_of, target):
    told = []
    structure = structure_of("flat")
    timer = make_policy_timer(structure, target, on_progress=lambda *stage: told.append(stage))
    assert timer.columns == tuple(unit.name for unit in structure.units)
    column = timer.columns.index("features.0")
    rows = np.array([[unit.width for unit in structure.units]] * 3)
    rows[:, column] = [8, 5, 2]
    assert [conv_shapes(model) for model in timer.models(rows, "a stage")] == [
        [(8, 1, 3, 3)],
        [(5, 1, 3, 3)],
        [(2, 1, 3, 3)],
    ]
    assert told == [("a stage", 0, 3), ("a stage", 1, 3), ("a stage", 2, 3), ("a stage", 3, 3)]


def test_a_policy_has_the_widths_of_its_row():
    assert dict(policy_of(["a", "b"], np.array([3, 4])).widths) == {"a": 3, "b": 4}
    with pytest.raises(ValueError, match="zip"):
        policy_of(["a"], np.array([3, 4]))


@pytest.mark.parametrize(
    ("resizer", "reason", "constant"),
    [(WrongResizer, "differs", False), (RefusingResizer, "without a name", False), (RefusingResizer, "a name", True)],
)
def test_the_exporter_takes_over_when_resizing_cannot_be_proven(
    resizer, reason, constant, structure_of, space_of, target, monkeypatch
):
    monkeypatch.setattr(timer_module, "Resizer", resizer)
    timer = make_policy_timer(structure_of("flat"), target, constant_weights=constant)
    assert reason in timer.notes[0]
    assert "every policy was exported from scratch" in timer.notes[0]
    small = timer.build(space_of("flat").smallest())
    assert conv_shapes(small) == [(2, 1, 3, 3)]
    if constant:
        weights = {i.name: numpy_helper.to_array(i) for i in onnx.load_from_string(small).graph.initializer}
        assert np.ptp(weights["features.0.weight"]) == 0


def test_an_int8_policy_that_is_exported_from_scratch_is_int8(structure_of, space_of, target, monkeypatch, feeds):
    monkeypatch.setattr(timer_module, "Resizer", RefusingResizer)
    int8 = replace(target, precision="int8")
    timer = make_policy_timer(structure_of("flat"), int8)
    small = timer.build(space_of("flat").smallest())
    kinds = {i.data_type for i in onnx.load_from_string(small).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    session = open_session(small, target)
    assert session.run(None, named_feeds(session, feeds))[0].shape == (1, 5)


def test_constant_weights_are_constant_in_every_model(structure_of, space_of, target):
    timer = make_policy_timer(structure_of("residual"), target, constant_weights=True)
    assert timer.notes == ()
    for content in (timer.dense, timer.build(space_of("residual").smallest())):
        for initializer in onnx.load_from_string(content).graph.initializer:
            value = numpy_helper.to_array(initializer)
            assert value.dtype.kind != "f" or np.ptp(value) == 0


class Gated(nn.Module):
    """A layer whose outputs pass a mask, or a scale that is one number in memory."""

    def __init__(self, buffer):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("gate", buffer)

    def forward(self, x):
        return x + self.layer(x).masked_fill(self.gate.bool(), -float("inf")).softmax(-1) * self.gate.sum()


@pytest.mark.parametrize("buffer", [torch.triu(torch.ones(8, 8), 1)[0], torch.zeros(1).expand(8)], ids=["mask", "view"])
def test_equal_buffers_stay_what_they_are(buffer, target):
    torch.manual_seed(0)
    net = nn.Sequential(Gated(buffer), Gated(buffer.detach()), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    timer = make_policy_timer(analyze(net, torch.zeros(1, 8)), target)
    session = open_session(timer.dense, target)
    assert np.isfinite(session.run(None, named_feeds(session, timer.feeds))[0]).all()


def test_a_resized_model_whose_outputs_are_no_numbers_is_not_proven(structure_of, target, monkeypatch):
    monkeypatch.setattr(timer_module, "_difference", lambda *_: float("nan"))
    assert "differs by nan" in make_policy_timer(structure_of("flat"), target).notes[0]


def test_a_remote_provider_is_not_needed_to_build_models(structure_of, target):
    elsewhere = replace(target, provider="QNNExecutionProvider", address=Address(login="me@board"))
    assert make_policy_timer(structure_of("flat"), elsewhere).notes == ()


def test_models_for_another_host_have_constant_weights_unless_asked(structure_of, target):
    elsewhere = replace(target, address=Address(login="me@board"))

    def distinct_weights(*target_and_options, **options):
        model = make_policy_timer(structure_of("flat"), *target_and_options, **options).dense_onnx
        (weight,) = (numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "features.0.weight")
        return len(np.unique(weight))

    assert distinct_weights(elsewhere) == distinct_weights(target, constant_weights=True) == 1
    assert distinct_weights(target) == distinct_weights(elsewhere, constant_weights=False) > 1


def test_pytorch_runs_the_shrunk_modules_themselves(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    timer = make_policy_timer(structure, make_target("torch-cpu"))
    assert timer.dense_onnx is None
    assert timer.dense is structure.model
    small = timer.build(space.smallest())
    assert isinstance(small, nn.Module)
    assert not small.training
    assert small.state_dict()["body.0.weight"].shape == (2, 2, 3, 3)
    rows = np.array([list(space.smallest().widths.values()), list(space.largest().widths.values())])
    assert len(timer.time(rows, "timing", QUICK).ratios) == 2
    assert timer.kernels(rows) == []


def test_a_bench_times_and_profiles_rows(structure_of, space_of, target):
    space = space_of("flat")
    timer = make_policy_timer(structure_of("flat"), target)
    rows = np.array([list(space.smallest().widths.values()), list(space.largest().widths.values())])
    timings = timer.time(rows, "timing", QUICK)
    assert len(timings.ratios) == 2
    first, second = timer.kernels(rows)
    assert first.names
    assert len(first.names) == len(second.names)


def test_feeds_have_the_batch_of_the_target(structure_of):
    feeds = random_feeds(structure_of("flat"), make_target("ort-cpu", batch=5).batch)
    assert [value.shape for value in feeds] == [(5, 1, 8, 8)]
    assert feeds[0].dtype == np.float32
    assert feeds[0].std() > 0.5
    np.testing.assert_array_equal(feeds[0], random_feeds(structure_of("flat"), 5)[0])
    assert not np.array_equal(feeds[0], random_feeds(structure_of("flat"), 5, seed=1)[0])


def test_whole_numbers_are_fed_as_the_example_has_them(structure_of):
    tokens = torch.tensor([[3, 1, 2], [0, 0, 0]])
    structure = replace(structure_of("flat"), example_inputs=(tokens, torch.tensor(2.0), torch.tensor(4)))
    first, second, third = random_feeds(structure, 3)
    np.testing.assert_array_equal(first, [[3, 1, 2]] * 3)
    assert first.dtype == np.int64
    assert second.shape == third.shape == ()
    assert third == 4


class OfLogarithm(nn.Module):
    """Takes positive numbers alone."""

    def __init__(self, offset):
        super().__init__()
        self.offset, self.layers = offset, nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x):
        return self.layers(torch.log(x + self.offset))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_of_positive_inputs_is_resized_and_fed_such(precision, target):
    structure = analyze(OfLogarithm(0.0).eval(), torch.rand(1, 8) + 0.1)
    timer = make_policy_timer(structure, replace(target, batch=3, precision=precision))
    assert timer.notes == ()
    (feed,) = timer.feeds
    assert feed.shape == (3, 8)
    assert feed.flags["C_CONTIGUOUS"]
    assert (feed > 0).all()
    assert not np.array_equal(feed[0], feed[1])


def test_a_model_without_numbers_on_its_examples_is_not_proven(target):
    structure = analyze(OfLogarithm(-9.0).eval(), torch.rand(1, 8))
    (note,) = make_policy_timer(structure, target).notes
    assert "the PyTorch model gives NaN" in note
