"""Zeros of a policy change places in full fine-tunes, and stay as many in their patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

import pytest
import safetensors.torch
import torch
from torch import Tensor

from autoprune.config import RunConfig
from autoprune.evaluation import DenseModel, Evaluator
from autoprune.evaluation.zeros import SCHEDULES
from autoprune.pruning import channel_order, score_units
from autoprune.records import Policy
from autoprune.recovery.sparsify_arguments import SCHEDULES as ALL_SCHEDULES
from autoprune.structure import ModelForm, analyze
from autoprune.task.recipe import Recipe
from autoprune.training.dense import train_dense
from autoprune.training.sample_passes import SamplePasses
from autoprune.treatments import Treatment
from autoprune.trials import Fidelity, TrialSpec
from tests.task.toys import toy_task
from tests.training.test_own_trainer import elsewhere, loop, wrapped

RECIPE = Recipe(batch_size=16, lr=0.1, precision="fp32")
ZEROS = {"0.weight": "sparse:50%", "5.weight": "2:4"}


def toy(form: str = "native", trainer: Callable[..., object] | None = None) -> DenseModel:
    task = toy_task(finetune_recipe=RECIPE, finetune=trainer)
    dense = train_dense(toy_task(recipe=Recipe(batch_size=16, epochs=2, precision="fp32")), seed=0)
    structure = analyze(dense, task.example_inputs)
    order = channel_order(score_units(structure, "l2"))
    return DenseModel(task=task, module=dense, structure=structure, order=order, form=ModelForm(name=form))


def trial(dense_model: DenseModel, zeros: Mapping[str, str] = ZEROS, rung: str = "full") -> TrialSpec:
    """Return a trial of the toy in which some layers have zeros."""
    treatments = {name: Treatment.parse(text) for name, text in zeros.items()}
    policy = Policy(space_id="s", widths=dense_model.structure.full_widths, treatments=treatments)
    return TrialSpec(number=0, policy=policy, fidelity=Fidelity(name=rung, rung=3, finetune_samples=288), seed=1)


def evaluator(dense_model: DenseModel, schedule: str) -> Evaluator:
    return Evaluator(dense_model=dense_model, predict_ms=lambda _: 1.0, schedule=schedule)


def trained(dense_model: DenseModel, schedule: str, zeros: Mapping[str, str] = ZEROS) -> dict[str, Tensor]:
    """Return the weights after a full fine-tune."""
    result = evaluator(dense_model, schedule)(trial(dense_model, zeros))
    assert result.weights is not None
    assert not result.undone
    return safetensors.torch.load(result.weights)


def places(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return where the layers are zero."""
    return {name: weights[name] == 0 for name in ZEROS}


@pytest.mark.parametrize("schedule", ["set", "rigl"])
@pytest.mark.parametrize("form", ["native", "graph"])
@pytest.mark.parametrize("precision", ["", "int8+"])
def test_as_many_zeros_in_the_same_patterns_are_elsewhere(schedule: str, form: str, precision: str) -> None:
    zeros = {name: precision + text for name, text in ZEROS.items()}
    still, moved = (places(trained(toy(form), each, zeros)) for each in ("one-shot", schedule))
    for name in ZEROS:
        assert int(moved[name].sum()) == int(still[name].sum()) == still[name].numel() // 2
        assert not torch.equal(moved[name], still[name]), name
    assert (moved["5.weight"].unflatten(1, (-1, 4)).sum(2) == 2).all()


def test_an_exchange_depends_on_policy_and_seed_alone() -> None:
    first, again = (trained(toy(), "rigl") for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("trainer", [loop, elsewhere, wrapped])
def test_own_trainers_exchange_zeros_where_they_train_the_model_itself(trainer: Callable[..., object]) -> None:
    still, moved = (places(trained(toy(trainer=trainer), schedule)) for schedule in ("one-shot", "rigl"))
    for name in ZEROS:
        assert int(moved[name].sum()) == int(still[name].sum())
        assert torch.equal(moved[name], still[name]) == (trainer is elsewhere)


def test_shorter_fine_tunes_leave_zeros_where_they_are() -> None:
    dense_model = toy()
    longer = trial(dense_model, rung="longer")
    models = [evaluator(dense_model, each).recovered(longer, SamplePasses()) for each in ("one-shot", "rigl")]
    still, kept = (places(model.state_dict()) for model in models)
    assert all(torch.equal(still[name], kept[name]) for name in ZEROS)


def test_an_exchange_that_lowers_the_score_is_undone() -> None:
    dense_model = toy()
    still = places(trained(dense_model, "one-shot"))
    ruinous = Recipe(batch_size=16, lr=50.0, clip_norm=0, precision="fp32")
    ruined = replace(dense_model, task=replace(dense_model.task, finetune_recipe=ruinous))
    result = evaluator(ruined, "rigl")(trial(ruined))
    assert result.undone
    assert result.weights is not None
    kept = places(safetensors.torch.load(result.weights))
    assert all(torch.equal(still[name], kept[name]) for name in ZEROS)


def test_a_search_names_schedules_as_sparsify_does() -> None:
    assert tuple(SCHEDULES) == get_args(RunConfig.model_fields["schedule"].annotation)
    assert set(SCHEDULES) <= set(ALL_SCHEDULES)
