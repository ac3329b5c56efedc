"""Tasks of every form: what users write, and the plain form that later stages read."""

import copy
import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from autoprune.errors import TaskError
from autoprune.model.adapters import adapted, own_class
from autoprune.pruning import prune
from autoprune.structure import GraphModel, analyze
from autoprune.task.base import Task
from autoprune.task.batches import take
from autoprune.task.check import check_task
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from autoprune.training.scoring import evaluate, predict_outputs
from tests.task.toys import toy_data, toy_model, toy_task


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor
    loss: torch.Tensor | None = None


class Encoder(nn.Module):
    """In the manner of Hugging Face: keywords in, a dataclass out."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.pooler, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids=None, attention_mask=None, labels=None, **options):
        x = self.embed(input_ids)
        x = x + self.down(F.gelu(self.up(x)))
        mask = attention_mask.unsqueeze(-1).to(x.dtype)
        x = (x * mask).sum(1) / mask.sum(1)
        return Output(logits=self.head(torch.tanh(self.pooler(x))), hidden=x)


def sentences(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for number in range(count):
        mask = (torch.arange(6) < 3 + number % 4).long()
        ids = (torch.randint(0, 4, (6,), generator=generator) + 4 * (number % 3)) * mask
        items.append({"input_ids": ids, "attention_mask": mask, "labels": number % 3, "text": "not a number"})
    return items


def encoder_task(**changes):
    torch.manual_seed(0)
    given = {
        "build_model": Encoder,
        "example_inputs": {key: sentences(1)[0][key][None] for key in ("input_ids", "attention_mask")},
        "outputs": "logits",
        "train_set": sentences(96),
        "val_set": sentences(33, 1),
        "test_set": sentences(33, 2),
        "loss": F.cross_entropy,
    }
    return Task(**given | changes)


def trained(task, samples=960):
    torch.manual_seed(0)
    model = task.build_model()
    finetune(model, task, samples=samples, seed=0, recipe=Recipe(batch_size=16, lr=0.1))
    return model


def test_dict_batches_and_a_selected_output():
    task = encoder_task()
    check_task(task)
    assert task.name == "Encoder"
    assert task.metric_name == "accuracy"
    assert take(task.train_set, torch.tensor([4]))[2].tolist() == [1]
    model = trained(task)
    assert isinstance(model, Encoder)
    assert model.state_dict().keys() == Encoder().state_dict().keys()
    assert evaluate(model, task, task.val_set).score > 0.9
    small = prune(model, task.example_inputs, multiple_of=1, outputs=task.outputs, native=False)
    assert small.input_names == ("input_ids", "attention_mask")
    assert small.get_parameter("up.weight").shape == (8, 4)
    finetune(small, task, samples=480, seed=0, teacher=model)
    assert evaluate(small, task, task.val_set).score > 0.9


def test_a_task_that_is_plain_stays_as_it_is():
    task = encoder_task(metric=lambda model, data: 0.0)
    again = dataclasses.replace(task, name="again")
    assert again.train_set is task.train_set
    assert again.build_model is task.build_model
    check_task(again)


def test_outputs_by_function_and_by_key():
    data = TensorDataset(*toy_data(32, 0).tensors)

    class Structured(nn.Sequential):
        def forward(self, x):
            return {"out": super().forward(x), "aux": [x]}

    def build():
        return Structured(*toy_model())

    for outputs in ("out", lambda outputs: outputs["out"]):
        task = toy_task(build_model=build, outputs=outputs, train_set=data)
        check_task(task)
        model = task.build_model()
        assert torch.equal(model(data.tensors[0])["out"], task.select(model(data.tensors[0])))
        assert analyze(model, task.example_inputs, task.outputs).full_widths == {"0": 8}
    with pytest.raises(TaskError, match=r"returns dict. Say which part counts by `outputs=`.*dict has out"):
        check_task(toy_task(build_model=build))
    with pytest.raises(TaskError, match="the model's outputs have no 'logits'; dict has out"):
        check_task(toy_task(build_model=build, outputs="logits"))


def test_a_view_shares_and_copies():
    model = Encoder()
    view = adapted(model, ("input_ids", "attention_mask"))
    assert view.head.weight is model.head.weight
    assert type(model) is Encoder
    assert type(own_class(view)) is Encoder
    twin = copy.deepcopy(view)
    assert twin.head.weight is not model.head.weight
    item = sentences(1)[0]
    ids, mask = item["input_ids"][None], item["attention_mask"][None]
    nn.init.zeros_(twin.embed.weight)
    assert not torch.equal(twin(ids, mask).logits, view(attention_mask=mask, input_ids=ids).logits)
    assert adapted(model) is model


def test_the_metric_sees_the_data_as_given():
    seen = []

    def errors(model, data):
        seen.append(data)
        return -float(sum(int(model(**{k: d[k][None] for k in inputs}).logits.argmax() != d["labels"]) for d in data))

    inputs = ("input_ids", "attention_mask")
    task = encoder_task(metric=errors)
    model = task.build_model()
    small = prune(model, task.example_inputs, multiple_of=1)
    assert task.metric_name == "errors"
    assert evaluate(model, task, task.val_set, limit=5).score <= 0
    assert evaluate(small, task, task.val_set).score <= 0
    assert [len(data) for data in seen] == [5, 33]
    assert seen[0][0]["text"] == "not a number"


def test_a_metric_on_a_loader():
    def accuracy(model, loader):
        hits = [(model(x).argmax(1) == y).float().mean() for x, y in loader]
        return float(torch.stack(hits).mean())

    loader = DataLoader(toy_data(32, 1), batch_size=8)
    task = toy_task(val_set=loader, train_set=DataLoader(toy_data(96, 0), batch_size=8, shuffle=True), metric=accuracy)
    check_task(task)
    model = trained(task)
    assert evaluate(model, task, task.val_set).score > 0.9


def weighted(model, batch):
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return (F.cross_entropy(outputs.logits, batch["labels"], reduction="none") * batch["weight"]).mean()


def test_an_own_training_step_on_dict_batches():
    weights = [entry | {"weight": 1.0 + number % 2} for number, entry in enumerate(sentences(96))]
    task = encoder_task(train_set=weights, train_step=weighted, target="labels")
    check_task(task)
    model = trained(task)
    assert evaluate(model, task, task.val_set).score > 0.9
    small = prune(model, task.example_inputs, keep=0.25, multiple_of=1)
    finetune(small, task, samples=480, seed=0, teacher=model)
    assert evaluate(small, task, task.val_set).score > 0.8


def test_an_own_step_distils_on_the_inputs_that_it_gives_the_model():
    """With weight 1 the step's own loss counts for nothing: its calls say which inputs the teacher is asked on."""

    def step(model, batch):
        return model(batch[0] + 1).sum() * 1e6

    task = toy_task(train_step=step, loss=None, finetune_recipe=Recipe(distill_weight=1.0, batch_size=16, lr=0.01))
    teacher = toy_task().build_model()
    student = copy.deepcopy(teacher)
    result = finetune(student, task, samples=16, seed=0, teacher=teacher)
    assert abs(result.train_loss) < 10


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda model, batch: 3.0, "must return a scalar tensor that depends on the model; got float"),
        (lambda model, batch: torch.zeros(()), "depends on the model"),
        (lambda model, batch: torch.zeros((), requires_grad=True), "must call `model`"),
        (lambda model, batch: model(batch[0]).sum() * torch.nan, "train_step returns NaN"),
        (lambda model: 0, "failed: TypeError"),
    ],
)
def test_bad_training_steps_are_refused(step, message):
    with pytest.raises(TaskError, match=message):
        check_task(toy_task(train_step=step))


def test_regression_and_dense_prediction():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 1, 6, 6, generator=generator)
    maps = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    cases = (
        (toy_model, torch.rand(24, 4, generator=generator), F.mse_loss),
        (lambda: copy.deepcopy(maps), torch.randint(0, 2, (24, 6, 6), generator=generator), F.cross_entropy),
    )
    for build, targets, loss in cases:
        data = TensorDataset(images, targets)
        task = toy_task(build_model=build, train_set=data, val_set=data, test_set=data, loss=loss)
        check_task(task)
        assert task.metric_name == "closeness"
        model = task.build_model().eval()
        outputs = predict_outputs(model, task, data)
        small = prune(model, task.example_inputs, multiple_of=1)
        finetune(small, task, samples=24, seed=0, teacher=model)
        assert evaluate(small, task, data, dense_outputs=outputs).score < 1


def test_embeddings_without_labels_keep_them_for_the_metric():
    def recall(model, data):
        images, labels = data.tensors
        features = F.normalize(model(images))
        near = (features @ features.T).fill_diagonal_(-2).argmax(1)
        return float((labels[near] == labels).float().mean())

    task = toy_task(loss=None, metric=recall)
    check_task(task)
    model = task.build_model()
    finetune(copy.deepcopy(model), task, samples=32, seed=0, teacher=model)
    assert 0 <= evaluate(model, task, task.val_set).score <= 1


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x, y):
            return self.c(torch.relu(self.a(x) + self.b(y)))

    data = TensorDataset(torch.zeros(8, 3), torch.zeros(8, 5), torch.arange(8) % 2)
    task = Task(
        build_model=Two,
        example_inputs=(torch.zeros(1, 3), torch.zeros(1, 5)),
        train_set=data,
        val_set=data,
        test_set=data,
        loss=F.cross_entropy,
    )
    check_task(task)
    small = prune(task.build_model(), task.example_inputs, multiple_of=1, native=False)
    assert isinstance(small, GraphModel)
    assert torch.equal(small(data.tensors[0], data.tensors[1]), small(y=data.tensors[1], x=data.tensors[0]))
    with pytest.raises(TypeError, match="takes the inputs x, y; got z"):
        small(data.tensors[0], z=data.tensors[1])


@pytest.mark.parametrize("name", ["input ids", "class", "self", "__debug__", 3])
def test_keywords_must_be_names_of_parameters(name):
    with pytest.raises(TaskError, match=f"{name!r} cannot be one"):
        adapted(Encoder(), (name,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_refused_for_a_search(dtype):
    with pytest.raises(TaskError, match=rf"trains and exports in float32; .* {dtype}"):
        check_task(toy_task(build_model=lambda: toy_model().to(dtype)))
