from __future__ import annotations

import contextlib
import copy
import dataclasses

import pytest
import safetensors.torch
import torch
from torch import nn

from autoprune.errors import TrialError
from autoprune.evaluation import DenseModel, Evaluator
from autoprune.pruning import channel_order, score_units
from autoprune.quantization.grid import rounded_blocks
from autoprune.records import Policy
from autoprune.structure import ModelForm, analyze
from autoprune.task.recipe import Recipe
from autoprune.training.dense import train_dense
from autoprune.training.sample_passes import SamplePasses
from autoprune.treatments import Treatment
from autoprune.trials import Fidelity, TrialResult, TrialSpec
from tests.backwards import Reversed
from tests.pipeline import tiny

PROXY = Fidelity(name="proxy", rung=0, val_samples=100)
BRIEF = Fidelity(name="brief", rung=1, finetune_samples=96)


@pytest.fixture(scope="module")
def dense_model() -> DenseModel:
    task = tiny.make_task()
    dense = train_dense(task)
    structure = analyze(dense, task.example_inputs)
    return DenseModel(task=task, module=dense, structure=structure, order=channel_order(score_units(structure, "l2")))


def spec(dense_model: DenseModel, fidelity: Fidelity, width: int = 16, seed: int = 1) -> TrialSpec:
    policy = Policy(space_id="s", widths=dense_model.structure.full_widths | {"features.3": width})
    return TrialSpec(number=7, policy=policy, fidelity=fidelity, seed=seed)


def evaluator(dense_model: DenseModel) -> Evaluator:
    return Evaluator(dense_model=dense_model, predict_ms=lambda policy: policy.widths["features.3"] / 100)


def test_the_full_width_policy_does_not_diverge(dense_model: DenseModel) -> None:
    dense = evaluator(dense_model)(spec(dense_model, dataclasses.replace(PROXY, val_samples=0), width=48)).measurement
    pruned = evaluator(dense_model)(spec(dense_model, PROXY, width=8)).measurement
    assert dense is not None
    assert pruned is not None
    # Recalibrated statistics differ a little from the running ones of training.
    assert dense.loss < pruned.loss
    assert dense.params == sum(p.numel() for p in dense_model.module.parameters())
    assert pruned.params < dense.params
    assert (dense.latency_ms, pruned.latency_ms) == (0.48, 0.08)


@pytest.mark.parametrize("fidelity", [PROXY, BRIEF])
def test_a_trial_depends_on_policy_fidelity_and_seed_alone(dense_model: DenseModel, fidelity: Fidelity) -> None:
    first, again = (evaluator(dense_model)(spec(dense_model, fidelity)) for _ in range(2))
    assert first.measurement == again.measurement
    assert first.sample_passes == again.sample_passes > 0


def test_the_seed_changes_a_fine_tune(dense_model: DenseModel) -> None:
    one, two = (evaluator(dense_model)(spec(dense_model, BRIEF, seed=seed)).measurement for seed in (1, 2))
    assert one != two


def test_fine_tuning_costs_its_samples_weighted_by_size(dense_model: DenseModel) -> None:
    passes = evaluator(dense_model)(spec(dense_model, BRIEF)).sample_passes
    cost = dense_model.relative_cost(spec(dense_model, BRIEF).policy)
    proxy = evaluator(dense_model)(spec(dense_model, dataclasses.replace(PROXY, val_samples=0))).sample_passes
    # Training, the score of the repaired model, and the held-out loss before and after.
    assert passes - proxy == pytest.approx((96 + (200 + 2 * 128) / 3) * cost)


def test_weights_of_four_bits_alone_are_trained_through_their_rounding(
    dense_model: DenseModel,
) -> None:
    full = dataclasses.replace(BRIEF, name="full")
    plain = spec(dense_model, full)
    weights = {}
    for precision in ("fp32", "w8", "w4"):
        policy = dataclasses.replace(plain.policy, treatments={"head.weight": Treatment(precision=precision)})
        result = evaluator(dense_model)(dataclasses.replace(plain, policy=policy))
        assert result.weights is not None
        assert not result.undone
        weights[precision] = safetensors.torch.load(result.weights)
    assert weights["w4"].keys() == weights["fp32"].keys()
    assert torch.equal(weights["w8"]["head.weight"], weights["fp32"]["head.weight"])
    assert not torch.equal(weights["w4"]["head.weight"], weights["fp32"]["head.weight"])
    policy = dataclasses.replace(plain.policy, treatments={"head.weight": Treatment(precision="w4")})
    proxy = dataclasses.replace(plain, policy=policy, fidelity=PROXY)
    rounded = evaluator(dense_model).recovered(proxy, SamplePasses()).state_dict()["head.weight"]
    torch.testing.assert_close(torch.from_numpy(rounded_blocks(rounded.numpy(), 4).values), rounded)


def test_the_dense_model_is_untouched(dense_model: DenseModel) -> None:
    before = {name: value.clone() for name, value in dense_model.module.state_dict().items()}
    evaluator(dense_model)(spec(dense_model, BRIEF))
    assert all(torch.equal(value, before[name]) for name, value in dense_model.module.state_dict().items())


def test_full_fine_tunes_give_their_weights_back(dense_model: DenseModel) -> None:
    result = evaluator(dense_model)(spec(dense_model, dataclasses.replace(BRIEF, name="full")))
    assert result.weights is not None
    assert safetensors.torch.load(result.weights).keys() == dense_model.module.state_dict().keys()
    assert "weights" not in result.to_json()
    assert evaluator(dense_model)(spec(dense_model, BRIEF, width=24)).weights is None


def test_a_full_fine_tune_that_lowers_the_score_is_undone(dense_model: DenseModel) -> None:
    full = spec(dense_model, dataclasses.replace(BRIEF, name="full"), width=40)
    recipe = dataclasses.replace(dense_model.task.tuning_recipe, lr=2.0)
    ruined = dataclasses.replace(dense_model, task=dataclasses.replace(dense_model.task, finetune_recipe=recipe))
    result, repaired = (
        evaluator(ruined)(full),
        evaluator(dense_model)(spec(dense_model, dataclasses.replace(PROXY, val_samples=0), 40)),
    )
    assert result.undone
    assert result.measurement == repaired.measurement
    assert result.weights is not None
    cut = dense_model.cut(full.policy)
    kept = cut.shrink()
    dense_model.repair(kept, cut, SamplePasses())
    for name, value in safetensors.torch.load(result.weights).items():
        assert torch.equal(value, kept.state_dict()[name]), name
    assert TrialResult.from_json(result.to_json()).undone
    brief = evaluator(ruined)(spec(dense_model, BRIEF, width=40))
    assert brief.undone
    assert brief.measurement == repaired.measurement


def test_outputs_that_are_not_finite_end_the_trial(dense_model: DenseModel) -> None:
    broken = dataclasses.replace(dense_model, module=copy.deepcopy(dense_model.module))
    with torch.no_grad():
        next(broken.module.parameters()).fill_(torch.nan)
    broken = dataclasses.replace(broken, structure=analyze(broken.module, broken.task.example_inputs))
    broken.__dict__["dense_outputs"] = dense_model.dense_outputs
    with pytest.raises(TrialError, match="finite"):
        evaluator(broken)(spec(broken, BRIEF))


def test_a_full_fine_tune_that_diverges_is_undone_and_counted(dense_model: DenseModel) -> None:
    full = spec(dense_model, dataclasses.replace(BRIEF, name="full"))
    recipe = dataclasses.replace(dense_model.task.tuning_recipe, lr=1e30, clip_norm=0.0)
    broken = dataclasses.replace(dense_model, task=dataclasses.replace(dense_model.task, finetune_recipe=recipe))
    result = evaluator(broken)(full)
    repaired = evaluator(dense_model)(spec(dense_model, dataclasses.replace(PROXY, val_samples=0)))
    assert result.undone
    assert result.measurement == repaired.measurement
    assert result.sample_passes > repaired.sample_passes
    assert result.weights is not None
    assert all(torch.isfinite(value).all() for value in safetensors.torch.load(result.weights).values())


def test_models_come_in_evaluation_mode(dense_model: DenseModel) -> None:
    model = dense_model.cut(spec(dense_model, PROXY).policy).shrink()
    assert not model.training
    assert isinstance(model, nn.Module)


def test_a_fine_tune_has_the_gradients_of_the_users_own_module(dense_model: DenseModel) -> None:
    class Reversing(type(dense_model.module)):
        def forward(self, x):
            return Reversed.apply(super().forward(x))

    module = copy.deepcopy(dense_model.module)
    module.__class__ = Reversing
    reversing = dataclasses.replace(
        dense_model, module=module, structure=analyze(module, dense_model.task.example_inputs)
    )
    cut = dense_model.cut(spec(dense_model, BRIEF).policy)
    plain, other = dense_model.trained_form(cut.shrink()), reversing.trained_form(cut.shrink())
    x = torch.stack([dense_model.task.train_set[row][0] for row in range(4)])
    for model in (plain, other):
        model.zero_grad()
        model.train()(x).square().sum().backward()
    assert isinstance(other, Reversing)
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, -p.grad)


@pytest.mark.parametrize("written", ["sparse:75%", "2:4", "int8+sparse:75%@8x1"])
def test_zeros_stay_in_fine_tuning_and_are_counted(dense_model: DenseModel, written: str) -> None:
    treatment = Treatment.parse(written)
    assert treatment.pattern is not None
    policy = dataclasses.replace(spec(dense_model, BRIEF, width=48).policy, treatments={"features.3.weight": treatment})
    trial = TrialSpec(number=1, policy=policy, fidelity=BRIEF, seed=1)
    model = evaluator(dense_model).recovered(trial, SamplePasses())
    left = {name: int((weight != 0).sum()) for name, weight in model.named_parameters()}
    assert left["features.3.weight"] == treatment.pattern.nonzeros(48, 32, 9)
    assert dense_model.sizes(policy)["params"] == sum(left.values())
    dense = dense_model.sizes(policy.timed)
    assert dense_model.sizes(policy)["bytes"] < dense["bytes"]
    assert dense_model.sizes(policy)["macs"] < dense["macs"]
    assert dense_model.relative_cost(policy) == dense_model.relative_cost(policy.timed)


@pytest.mark.parametrize(
    ("name", "form", "shares"), [("full", "native", False), ("full", "graph", True), ("brief", "native", True)]
)
def test_the_teacher_is_asked_anew_where_layers_are_compared_alone(
    dense_model: DenseModel, monkeypatch: pytest.MonkeyPatch, name: str, form: str, shares: bool
) -> None:
    given = []

    def finetune(self: DenseModel, *args: object, memory: object, **options: object) -> None:
        given.append(memory is not None)
        raise TrialError("seen")

    monkeypatch.setattr(DenseModel, "finetune", finetune)
    task = dataclasses.replace(dense_model.task, finetune_recipe=Recipe(layer_weight=5.0))
    comparing = dataclasses.replace(dense_model, task=task, form=ModelForm(name=form, reason="", notes=()))
    with contextlib.suppress(TrialError):
        evaluator(comparing)(spec(dense_model, dataclasses.replace(BRIEF, name=name)))
    assert given == [shares]
