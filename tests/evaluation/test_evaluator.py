from __future__ import annotations

import dataclasses

import pytest
import safetensors.torch
import torch
from torch import nn

from autoprune.errors import TrialError
from autoprune.evaluation import Bench, Evaluator
from autoprune.pruning import channel_order, score_units
from autoprune.records import Policy
from autoprune.structure import analyze
from autoprune.training.dense import train_dense
from autoprune.training.sample_passes import SamplePasses
from autoprune.trials import Fidelity, TrialResult, TrialSpec
from tests.pipeline import tiny

PROXY = Fidelity(name="proxy", rung=0, val_samples=100)
BRIEF = Fidelity(name="brief", rung=1, finetune_samples=96)


@pytest.fixture(scope="module")
def bench() -> Bench:
    task = tiny.make_task()
    dense = train_dense(task)
    structure = analyze(dense, task.example_inputs)
    return Bench(task=task, dense=dense, structure=structure, order=channel_order(score_units(structure, "l2")))


def spec(bench: Bench, fidelity: Fidelity, width: int = 16, seed: int = 1) -> TrialSpec:
    policy = Policy(space_id="s", widths=bench.structure.full_widths | {"features.3": width})
    return TrialSpec(number=7, policy=policy, fidelity=fidelity, seed=seed)


def evaluator(bench: Bench) -> Evaluator:
    return Evaluator(bench=bench, predict_ms=lambda policy: policy.widths["features.3"] / 100)


def test_the_full_width_policy_does_not_diverge(bench: Bench) -> None:
    found = evaluator(bench)(spec(bench, dataclasses.replace(PROXY, val_samples=0), width=48)).measurement
    pruned = evaluator(bench)(spec(bench, PROXY, width=8)).measurement
    assert found is not None
    assert pruned is not None
    # Recalibrated statistics differ a little from the running ones of training.
    assert found.loss < pruned.loss
    assert found.params == sum(p.numel() for p in bench.dense.parameters())
    assert pruned.params < found.params
    assert (found.latency_ms, pruned.latency_ms) == (0.48, 0.08)


@pytest.mark.parametrize("fidelity", [PROXY, BRIEF])
def test_a_trial_depends_on_policy_fidelity_and_seed_alone(bench: Bench, fidelity: Fidelity) -> None:
    first, again = (evaluator(bench)(spec(bench, fidelity)) for _ in range(2))
    assert first.measurement == again.measurement
    assert first.sample_passes == again.sample_passes > 0


def test_the_seed_changes_a_fine_tune(bench: Bench) -> None:
    one, two = (evaluator(bench)(spec(bench, BRIEF, seed=seed)).measurement for seed in (1, 2))
    assert one != two


def test_fine_tuning_costs_its_samples_weighted_by_size(bench: Bench) -> None:
    passes = evaluator(bench)(spec(bench, BRIEF)).sample_passes
    cost = bench.relative_cost(spec(bench, BRIEF).policy)
    proxy = evaluator(bench)(spec(bench, dataclasses.replace(PROXY, val_samples=0))).sample_passes
    # Training at the pruned model's cost, and the teacher's forward passes at a third each.
    assert passes - proxy == pytest.approx(96 * cost)


def test_the_dense_model_is_untouched(bench: Bench) -> None:
    before = {name: value.clone() for name, value in bench.dense.state_dict().items()}
    evaluator(bench)(spec(bench, BRIEF))
    assert all(torch.equal(value, before[name]) for name, value in bench.dense.state_dict().items())


def test_full_fine_tunes_give_their_weights_back(bench: Bench) -> None:
    result = evaluator(bench)(spec(bench, dataclasses.replace(BRIEF, name="full")))
    assert result.weights is not None
    assert safetensors.torch.load(result.weights).keys() == bench.dense.state_dict().keys()
    assert "weights" not in result.to_json()
    assert evaluator(bench)(spec(bench, BRIEF, width=24)).weights is None


def test_a_full_fine_tune_that_lowers_the_score_is_undone(bench: Bench) -> None:
    full = spec(bench, dataclasses.replace(BRIEF, name="full"), width=40)
    recipe = dataclasses.replace(bench.task.finetune_recipe, lr=2.0)
    ruined = dataclasses.replace(bench, task=dataclasses.replace(bench.task, finetune_recipe=recipe))
    result, repaired = (
        evaluator(ruined)(full),
        evaluator(bench)(spec(bench, dataclasses.replace(PROXY, val_samples=0), 40)),
    )
    assert result.undone
    assert result.measurement == repaired.measurement
    assert result.weights is not None
    kept = bench.shrink(full.policy)
    bench.repair(kept, full.policy, SamplePasses())
    for name, value in safetensors.torch.load(result.weights).items():
        assert torch.equal(value, kept.state_dict()[name]), name
    assert TrialResult.from_json(result.to_json()).undone
    assert evaluator(ruined)(spec(bench, BRIEF, width=40)).measurement != repaired.measurement


def test_a_loss_that_is_not_finite_ends_the_trial(bench: Bench) -> None:
    recipe = dataclasses.replace(bench.task.finetune_recipe, lr=1e30, clip_norm=0.0)
    broken = dataclasses.replace(bench, task=dataclasses.replace(bench.task, finetune_recipe=recipe))
    with pytest.raises(TrialError, match="finite"):
        evaluator(broken)(spec(broken, BRIEF))


def test_a_full_fine_tune_that_diverges_is_undone_and_counted(bench: Bench) -> None:
    full = spec(bench, dataclasses.replace(BRIEF, name="full"))
    recipe = dataclasses.replace(bench.task.finetune_recipe, lr=1e30, clip_norm=0.0)
    broken = dataclasses.replace(bench, task=dataclasses.replace(bench.task, finetune_recipe=recipe))
    result = evaluator(broken)(full)
    repaired = evaluator(bench)(spec(bench, dataclasses.replace(PROXY, val_samples=0)))
    assert result.undone
    assert result.measurement == repaired.measurement
    assert result.sample_passes > repaired.sample_passes
    assert result.weights is not None
    assert all(torch.isfinite(value).all() for value in safetensors.torch.load(result.weights).values())


def test_models_come_in_evaluation_mode(bench: Bench) -> None:
    model = bench.shrink(spec(bench, PROXY).policy)
    assert not model.training
    assert isinstance(model, nn.Module)
