import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autoprune.errors import TaskError
from autoprune.pruning import prune
from autoprune.task.check import check_task
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from tests.task.toys import toy_data, toy_model, toy_task, unlabelled_task

IMAGES, TARGETS = toy_data(32, 1).tensors


class Two(nn.Module):
    def forward(self, x):
        return x, x


def spoiled(value):
    images = IMAGES.clone()
    images[:, 0, 0, 0] = value
    return TensorDataset(images, TARGETS)


@pytest.mark.parametrize("task", [toy_task(), unlabelled_task()])
def test_good_tasks_pass(task):
    check_task(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_set": spoiled(torch.nan)}, "train_set holds NaN"),
        ({"test_set": spoiled(torch.inf)}, "test_set holds an infinite value"),
        ({"val_set": TensorDataset(IMAGES[:, :, :5], TARGETS)}, r"items of val_set must look like example_inputs"),
        ({"train_set": TensorDataset(IMAGES.double(), TARGETS)}, "float64"),
        (
            {"train_set": TensorDataset(IMAGES, IMAGES, TARGETS)},
            "model's 1 inputs and one target; one of train_set has 2 after",
        ),
        ({"test_set": TensorDataset(IMAGES, TARGETS + 4)}, r"class indices below 4 .* got 4 to 7"),
        ({"build_model": lambda: 3}, "build_model must return an nn.Module; it returned int"),
        ({"build_model": Two}, "must return one tensor; that of 'toy' returns tuple"),
        ({"build_model": lambda: nn.Linear(3, 3)}, "failed on example_inputs: RuntimeError"),
        ({"build_model": lambda: nn.Flatten(0)}, "first dimension of the outputs"),
        ({"loss": lambda outputs, targets: outputs}, "must return a scalar tensor"),
        ({"loss": lambda outputs, targets: outputs.sum() * torch.inf}, "the loss returns"),
        ({"loss": lambda outputs: outputs}, "the loss failed on train_set: TypeError"),
        ({"augment": lambda images, generator: images[:, :, 1:]}, "must keep the shape"),
        ({"augment": lambda images: images}, "failed: TypeError"),
        ({"augment": lambda images, generator: images / 0 * 0}, "augment returns NaN"),
    ],
)
def test_bad_tasks_are_refused(changes, message):
    with pytest.raises(TaskError, match=message):
        check_task(toy_task(**changes))


def test_without_a_loss_what_follows_the_inputs_is_ignored():
    check_task(unlabelled_task(train_set=toy_data(8, 0)))


def test_the_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    check_task(toy_task())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_some_or_all_targets_may_be_left_out():
    images, labels = toy_data(8, 0).tensors
    for kept in (4, 0):
        some = TensorDataset(images, torch.where(torch.arange(8) < kept, labels, -100))
        check_task(toy_task(train_set=some))
    with pytest.raises(TaskError, match="must be class indices below"):
        check_task(toy_task(train_set=TensorDataset(images, labels - 200)))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_accuracy_needs_an_output_for_each_class(shape):
    """A binary classifier with one logit trains with a loss of its own, but nothing says what is right."""

    class Binary(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(36, 1)

        def forward(self, x):
            return self.linear(x.flatten(1)).reshape(len(x), *shape)

    def loss(outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs.reshape(-1), (targets > 0).float())

    with pytest.raises(TaskError, match=r"accuracy needs an output for each class; .* Give a metric"):
        check_task(toy_task(build_model=Binary, loss=loss))
    check_task(toy_task(build_model=Binary, loss=loss, metric=lambda model, data: 0.5))


def test_a_builder_is_a_function_that_works():
    with pytest.raises(TaskError, match=r"build_model must be a function .*`lambda: model`.*; got Linear"):
        toy_task(build_model=nn.Linear(36, 3))

    def fails():
        raise FileNotFoundError("no weights.pt here")

    with pytest.raises(
        TaskError, match=r"build_model failed: FileNotFoundError: no weights.pt here \(test_check.py, li"
    ):
        check_task(toy_task(build_model=fails))


class Auxiliary(nn.Module):
    """Returns a second head in training mode alone."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head, self.side = (
            nn.Linear(36, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 4),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        hidden = self.norm(self.body(x.flatten(1)))
        return (self.head(hidden), self.side(hidden)) if self.training else self.head(hidden)


def first_head(outputs):
    return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


def both_heads(model, batch):
    head, side = model(batch[0])
    return nn.functional.cross_entropy(head, batch[1]) + nn.functional.cross_entropy(side, batch[1])


def test_outputs_in_training_mode_must_be_one_tensor_too():
    with pytest.raises(TaskError, match=r"in training mode, too; .* returns tuple\. .* such as `lambda out"):
        check_task(toy_task(build_model=Auxiliary))
    with pytest.raises(TaskError, match=r"in training mode, too; .* returns tuple"):
        check_task(toy_task(build_model=Auxiliary, train_step=both_heads))


def test_auxiliary_heads_that_are_left_out_or_trained_by_the_task_pass():
    own = Recipe(distill_weight=0.0, batch_size=16)
    for changes in ({"outputs": first_head}, {"train_step": both_heads, "finetune_recipe": own}):
        task = toy_task(build_model=Auxiliary, **changes)
        check_task(task)
        dense = task.build_model().eval()
        finetune(prune(dense, task.example_inputs, multiple_of=1), task, samples=32, seed=0, teacher=dense)


def test_a_check_leaves_the_model_as_it_was():
    model = toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    check_task(toy_task(build_model=lambda: model))
    check_task(toy_task(build_model=lambda: model, train_step=lambda net, batch: net(batch[0]).sum()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
