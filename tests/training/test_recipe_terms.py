"""Terms of a recipe change weights as they say."""

import copy
import math

import pytest
import torch
from torch import nn

from autoprune import zeros
from autoprune.errors import StructureError, UsageError
from autoprune.pruning import prune
from autoprune.structure import analyze
from autoprune.task.recipe import TERMS, Recipe
from autoprune.training.finetune import finetune
from autoprune.training.scoring import evaluate
from autoprune.training.terms import Step
from autoprune.training.unit_groups import unit_groups
from tests.task.toys import toy_model, toy_task
from tests.training.test_own_trainer import loop

STRENGTHS = {"l1": 0.05, "group-lasso": 0.3, "l0": 0.01}
TASK = toy_task()


def fresh(seed=0):
    torch.manual_seed(seed)
    return toy_model()


def trained(*terms, model=None, task=TASK, samples=320, seed=0):
    recipe = Recipe(batch_size=16, lr=0.2, precision="fp32", weight_decay=0.0, terms=terms)
    model = model or fresh()
    if task.finetune is not None:
        finetune(model, toy_task(finetune=task.finetune, finetune_recipe=recipe), samples=samples, seed=seed)
    else:
        finetune(model, task, samples=samples, seed=seed, recipe=recipe)
    return model


@pytest.mark.parametrize(("trainer", "names"), [(None, ("l1", "group-lasso", "l0")), (loop, ("l1",))])
def test_terms_make_zeros_and_the_model_still_learns(trainer, names):
    task = toy_task(finetune=trainer)
    for name in names:
        model = trained(f"{name}:{STRENGTHS[name]}", task=task)
        assert evaluate(model, TASK, TASK.test_set).score > 0.8, name
        assert zeros(model)["zeros"].sum() > 0.1 * zeros(model)["weights"].sum(), name


def test_the_seed_decides_the_gates():
    one, again, other = (trained("l0:0.01", samples=64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[0].weight, again[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


@pytest.mark.parametrize("term", ["group-lasso:0.3", "l0-units:0.3"])
def test_channels_that_fell_to_zero_are_cut_without_a_change(term):
    model = trained(term)
    table = zeros(model).set_index("name")
    kept = 8 - int(table.loc["0.weight", "zero_filters"])
    assert 0 < kept < 8
    small = prune(model, TASK.example_inputs, keep=kept / 8, multiple_of=1)
    x = torch.rand(5, 1, 6, 6)
    torch.testing.assert_close(small(x), model(x))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_proximal_steps_by_hand():
    from autoprune.training.group_lasso import GroupLasso
    from autoprune.training.weight_terms import Clipping, Decay, SoftThreshold

    start = torch.tensor([[3.0, -4.0], [0.1, -0.1]])
    expected = {
        SoftThreshold(0.5): [[2.95, -3.95], [0.05, -0.05]],
        Decay(1.0): [[2.7, -3.6], [0.09, -0.09]],
        Decay(1.0, grows=True): [[2.85, -3.8], [0.095, -0.095]],
        Clipping(1.0): [[1.0, -1.0], [0.1, -0.1]],
        # 2 weights in a group: shorter by 0.1 * 2 * sqrt(2), which is more than the norm of the second one
        GroupLasso(2.0): [[3 * (1 - 0.2 * 2**0.5 / 5), -4 * (1 - 0.2 * 2**0.5 / 5)], [0.0, 0.0]],
    }
    for term, wanted in expected.items():
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        with torch.no_grad():
            model[0].weight.copy_(start)
        term.begin(model, toy_task(example_inputs=(torch.zeros(1, 2),)))
        term.after_step(Step(number=1, share=0.5, rate=0.1))
        torch.testing.assert_close(model[0].weight.detach(), torch.tensor(wanted))


def test_groups_hold_all_that_writes_a_channel():
    (groups,) = unit_groups(fresh(), TASK)
    assert groups.width == 8
    assert groups.sizes().tolist() == [9 + 1 + 1] * 8  # filter, scale and shift
    structure = analyze(fresh(), TASK.example_inputs)
    assert groups.name == structure.units[0].name


@pytest.mark.parametrize("text", ["l3:1", "l1", "l1:", "l1:0", "l1:-1", "l1:nan", "l1:inf", "clip:0", "l1:1:2", ""])
def test_terms_that_cannot_be_are_one_message(text):
    with pytest.raises(UsageError, match=f"a recipe's term is one of {', '.join(TERMS)} with a strength above 0"):
        Recipe(terms=(text,))


def test_a_recipe_with_terms_survives_json():
    import dataclasses
    import json

    recipe = Recipe(terms=["l1:0.0010", "clip:1"])
    assert recipe.terms == ("l1:0.001", "clip:1")
    assert Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_zeros_of_a_quantized_model_are_one_message():
    model = nn.Sequential(nn.Linear(4, 4))
    quantized = copy.deepcopy(model)
    quantized[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(StructureError, match="0 is quantized"):
        zeros(quantized)
    with pytest.raises(UsageError, match="none was chosen"):
        zeros(nn.BatchNorm2d(3))
    assert math.isclose(zeros(model)["share"][0], 0.0)
