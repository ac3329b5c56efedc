"""Outputs from a shared prefix equal those of the whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune import memory_limits
from autoprune.evaluation import DenseModel, Evaluator
from autoprune.evaluation.calibration_examples import reconstruction_of
from autoprune.pruning import channel_order, score_units
from autoprune.records import Policy
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.prefix import PrefixCache
from autoprune.structure import analyze
from autoprune.task.load import load_task
from autoprune.training.dense import build_dense
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import predict_outputs
from autoprune.trials import Fidelity, TrialSpec
from tests.pipeline import tiny


@pytest.fixture(scope="module")
def dense_model() -> DenseModel:
    task = tiny.make_task()
    dense = build_dense(task)
    structure = analyze(dense, task.example_inputs)
    order = channel_order(score_units(structure, "l2"))
    return DenseModel(
        task=task,
        module=dense,
        structure=structure,
        order=order,
        reconstruction=reconstruction_of(task, structure, 0),
    )


def repaired(dense_model: DenseModel, widths: dict[str, int]):
    policy = Policy(space_id="", widths=dense_model.structure.full_widths | widths)
    cut = dense_model.cut(policy)
    model = cut.shrink()
    dense_model.repair(model, cut, SamplePasses())
    return model, cut


def test_every_unit_alone_gives_the_outputs_of_the_whole_model(dense_model: DenseModel) -> None:
    shared = 0
    for unit in dense_model.structure.units:
        for width in (unit.width // 2, unit.width // 4):
            model, cut = repaired(dense_model, {unit.name: width})
            reused = dense_model.outputs_from_prefix(model, cut, 40)
            if reused is None:
                continue
            shared += 1
            outputs, cost = reused
            wanted = predict_outputs(model, dense_model.task, dense_model.task.val_set, limit=40)
            assert torch.allclose(outputs, wanted, atol=1e-5)
            assert 0 < cost < dense_model.relative_cost(cut.policy)
    assert shared >= 2


def test_a_model_that_changes_from_the_start_has_no_prefix(dense_model: DenseModel) -> None:
    model, cut = repaired(dense_model, {dense_model.structure.units[0].name: 3})
    assert dense_model.outputs_from_prefix(model, cut, 40) is None


def test_values_that_take_too_much_memory_are_not_kept(
    dense_model: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_limits, "PREFIX_BYTES", 10)
    model, cut = repaired(dense_model, {dense_model.structure.units[-1].name: 3})
    dense_model._prefixes.clear()
    assert dense_model.outputs_from_prefix(model, cut, 40) is None
    dense_model._prefixes.clear()


def test_a_proxy_scores_the_same_and_counts_fewer_passes(
    dense_model: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = dense_model.structure.units[-1]
    policy = Policy(space_id="", widths=dense_model.structure.full_widths | {unit.name: unit.width // 2})
    proxy = Fidelity(name="proxy", rung=0, val_samples=40)
    spec = TrialSpec(number=0, policy=policy, fidelity=proxy, seed=0)
    evaluator = Evaluator(dense_model=dense_model, predict_ms=lambda _policy: 1.0)
    quick = evaluator(spec)
    monkeypatch.setattr(DenseModel, "outputs_from_prefix", lambda *_: None)
    whole = evaluator(spec)
    assert quick.measurement.loss == pytest.approx(whole.measurement.loss, rel=1e-4)
    assert quick.measurement.score == whole.measurement.score
    assert quick.sample_passes < whole.sample_passes


def test_a_residual_net_with_a_removed_branch() -> None:
    task = load_task("mnist5k", "resnet8", None)
    structure = analyze(build_dense(task), task.example_inputs)
    removable = next(unit for unit in structure.units if unit.removable)
    inputs = torch.randn(4, *task.example_inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    policy = Policy(space_id="", widths=structure.full_widths | {removable.name: 0})
    model = structure.shrink(policy).eval()
    reconstruction = Reconstruction(structure=structure, inputs=(inputs,))
    changed = reconstruction.touched(model.evaluation_graph().graph, structure.masks(policy))
    cache = PrefixCache(structure=structure, batches=((inputs,),))
    assert torch.allclose(cache.outputs(model, changed), model(inputs), atol=1e-5)


class InPlace(nn.Module):
    """In-place activations and an in-place sum, as torchvision writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.outer = nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.stem(x))
        y = self.outer(torch.relu_(self.inner(x)))
        y += x
        return self.head(torch.relu_(y).mean((2, 3)))


def test_models_that_write_in_place_leave_the_prefix_as_it_was() -> None:
    torch.manual_seed(0)
    model = InPlace().eval()
    x = torch.randn(4, 1, 8, 8)
    structure = analyze(model, (x[:1],))
    cache = PrefixCache(structure=structure, batches=((x,),))
    reconstruction = Reconstruction(structure=structure, inputs=(x,))
    unit = next(u for u in structure.units if u.width == 5)
    for width in (4, 3, 2, 4):
        policy = Policy(space_id="", widths=structure.full_widths | {unit.name: width})
        shrunk = structure.shrink(policy).eval()
        changed = reconstruction.touched(shrunk.evaluation_graph().graph, structure.masks(policy))
        shared = cache.outputs(shrunk, changed)
        with torch.no_grad():
            assert shared is None or torch.allclose(shared, shrunk(x), atol=1e-6)
