import pytest

from autoprune.errors import UsageError
from autoprune.task.builtin import MODELS, TASKS, make_task
from autoprune.task.check import check_task


@pytest.mark.parametrize("model", [None, *MODELS])
def test_digits_runs_with_every_model(model):
    check_task(make_task("digits", model))


def test_mnist5k_is_complete():
    task = make_task("mnist5k")
    check_task(task)
    assert task.recipe is not None
    assert task.metric_name == "accuracy"
    assert task.example_inputs[0].shape == (1, 1, 28, 28)


def test_defaults_are_built_in():
    assert all(task.default_model in MODELS for task in TASKS.values())


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown task 'mnist'.*fashion-mnist"):
        make_task("mnist")
    with pytest.raises(UsageError, match=r"unknown model 'resnet9'.*Did you mean 'resnet8'"):
        make_task("digits", "resnet9")


def test_transformers_are_trained_by_adamw():
    recipes = [(task.recipe, task.tuning_recipe) for task in (make_task("digits", "vit"), make_task("digits", "mlp"))]
    assert [[recipe.optimizer for recipe in pair] for pair in recipes] == [["adamw"] * 2, ["sgd"] * 2]
