import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from autoprune.errors import TaskError
from autoprune.model.examples import Items, items_of, original
from autoprune.pipeline.identity import task_fingerprint
from autoprune.pruning import prune
from autoprune.structure import analyze
from autoprune.task.base import Task
from autoprune.task.batches import length, take
from autoprune.task.check import check_task
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from autoprune.training.scoring import evaluate
from tests.task.toys import toy_data

DATA = toy_data(10, 0)
DICTS = [{"image": image, "text": "cat", "label": int(label), "weight": 1.0} for image, label in DATA]


def read(data, inputs=(), target="", *, all_keys=False, labelled=True):
    return items_of("train_set", data, inputs, target, all_keys=all_keys, labelled=labelled)


def test_a_data_set_of_tuples_stays_as_it_is():
    pairs = list(DATA)
    assert read(DATA) is DATA
    assert read(pairs) is pairs


def test_dicts_are_read_by_key():
    data = read(DICTS, ("image",), "label")
    images, labels = take(data, torch.tensor([3, 1]))
    assert torch.equal(images, DATA.tensors[0][[3, 1]])
    assert labels.tolist() == [3, 1]
    assert data[3][1] == 3
    assert take(Subset(data, [5, 3]), torch.tensor([1]))[1].tolist() == [3]
    assert original(data) is DICTS
    assert original(Subset(data, [2]))[0] is DICTS[2]


def test_the_target_is_the_key_that_is_left_or_asked_for():
    alone = [{"image": entry["image"], "label": entry["label"]} for entry in DICTS]
    assert read(alone, ("image",)).keys == ("image", "label")
    assert read(DICTS, ("image",), labelled=False).keys == ("image",)
    assert read(DICTS, ("image",), "label", all_keys=True).keys == ("image", "label", "weight")
    with pytest.raises(TaskError, match=r"besides the inputs it has label, weight\. Name the target by `target=`"):
        read(DICTS, ("image",))
    with pytest.raises(TaskError, match="needs pixels; it has image, text, label, weight"):
        read(DICTS, ("pixels",), "label")
    with pytest.raises(TaskError, match="example_inputs must be one too"):
        read(DICTS)


def test_a_data_loader_gives_its_data_set_and_its_collate_function():
    def doubled(items):
        images, labels = default_collate(items)
        return images * 2, labels

    data = read(DataLoader(DATA, batch_size=4, shuffle=True, collate_fn=doubled))
    assert length(data) == 10
    images, labels = take(data, torch.tensor([7, 0]))
    assert torch.equal(images, 2 * DATA.tensors[0][[7, 0]])
    assert labels.tolist() == [3, 0]
    assert torch.equal(data[7][0], images[0])
    batches = list(original(Subset(data, [0, 1, 2, 3, 4])))
    assert [len(labels) for _, labels in batches] == [4, 1]
    assert torch.equal(batches[0][0], 2 * DATA.tensors[0][:4])


def test_a_data_loader_of_dicts():
    data = read(DataLoader(DICTS, batch_size=5), ("image",), "label")
    assert take(data, torch.tensor([2]))[1].tolist() == [2]
    assert set(next(iter(original(data)))) == set(DICTS[0])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


@pytest.mark.parametrize(
    "loader", [DataLoader(Stream(), batch_size=4), iter([DATA[:4], DATA[4:10]]), (DATA[i : i + 5] for i in (0, 5))]
)
def test_other_iterables_of_batches_are_kept(loader):
    data = read(loader)
    assert isinstance(data, Items)
    images, labels = take(data, torch.arange(10))
    assert torch.equal(images, DATA.tensors[0])
    assert torch.equal(labels, DATA.tensors[1])
    assert sum(len(labels) for _, labels in original(data)) == 10


def test_one_box_an_image_is_a_list_as_several_are():
    items = [(torch.zeros(1, 2, 2), [torch.ones(1)], 3) for _ in range(4)]
    data = read(DataLoader(items, 2, collate_fn=lambda pairs: (torch.stack([p[0] for p in pairs]), [*pairs[0][1]] * 2)))
    assert isinstance(take(data, torch.tensor([0, 1]))[1], list)


def test_an_iterable_of_dicts():
    data = read(iter([{"image": DATA.tensors[0], "label": DATA.tensors[1]}]), ("image",))
    assert take(data, torch.tensor([6]))[1].tolist() == [2]


def test_data_that_gives_no_batches_is_refused(monkeypatch):
    with pytest.raises(TaskError, match="must give batches of equally long tensors"):
        read(iter([1]))
    with pytest.raises(TaskError, match="must give batches of equally long tensors"):
        read(iter([(torch.zeros(3), torch.zeros(2))]))
    with pytest.raises(TaskError, match="must hold at least one item"):
        read(iter([]))
    monkeypatch.setattr("autoprune.memory_limits.ITERABLE_DATA_BYTES", 100)
    with pytest.raises(TaskError, match="so it is read into memory"):
        read(iter([DATA[:4]]))


def test_items_of_different_shapes_are_refused():
    dicts = [{"x": torch.zeros(2), "y": 0}, {"x": torch.zeros(3), "y": 0}]
    with pytest.raises(TaskError, match="same shapes"):
        take(read(dicts, ("x",)), torch.tensor([0, 1]))


def test_a_plain_set_is_read_again_as_it_is():
    data = read(DICTS, ("image",), "label")
    assert read(data) is data
    assert original(TensorDataset(torch.zeros(1))).tensors[0].shape == (1,)


class SizedStream(IterableDataset):
    """Items in an order of their own, and random; how many there are is known."""

    def __len__(self):
        return 10

    def __iter__(self):
        return ((image * torch.rand(()) * random.random(), label) for image, label in DATA)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_known_length_is_read_once_and_the_same_by_everyone(workers):
    first, again = (read(DataLoader(SizedStream(), batch_size=4, num_workers=workers)) for _ in range(2))
    assert length(first) == 10
    images, labels = take(first, torch.arange(10))
    assert labels.tolist() == DATA.tensors[1].tolist()
    assert torch.equal(images, take(again, torch.arange(10))[0])


@pytest.mark.parametrize("make", [lambda data: data, lambda data: DataLoader(data, batch_size=4)])
def test_a_first_item_that_cannot_be_read_says_so(make):
    class Broken(Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, row):
            raise OSError("no such picture")

    with pytest.raises(TaskError, match=r"item 0 of Broken cannot be read: OSError: no such picture \(test_examples"):
        read(make(Broken()))


class Boxes(Dataset):
    """Images with as many boxes as their number says."""

    def __len__(self):
        return 12

    def __getitem__(self, row):
        generator = torch.Generator().manual_seed(row)
        count = 1 + row % 3
        target = {"boxes": torch.rand(count, 4, generator=generator), "labels": torch.arange(count)}
        return torch.rand(1, 8, 8, generator=generator), target, torch.rand(count, generator=generator)


def detector():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def box_step(model, batch):
    images, targets, scores = batch
    assert [len(target["boxes"]) for target in targets] == [len(score) for score in scores]
    centre = torch.stack([target["boxes"].mean(0) for target in targets])
    return F.mse_loss(model(images), centre)


def together(items):
    """A collate function of the kind that detectors have."""
    images, targets, scores = zip(*items, strict=True)
    return torch.stack(images), list(targets), list(scores)


class BoxStream(IterableDataset):
    def __iter__(self):
        return map(Boxes().__getitem__, range(12))


@pytest.mark.parametrize(
    "data", [Boxes(), DataLoader(Boxes(), 3, collate_fn=together), DataLoader(BoxStream(), 3, collate_fn=together)]
)
def test_targets_of_any_nesting_reach_the_training_step(data):
    task = Task(
        build_model=detector,
        example_inputs=torch.zeros(1, 1, 8, 8),
        train_set=data,
        val_set=data,
        test_set=data,
        train_step=box_step,
    )
    check_task(task)
    model = task.build_model().eval()
    result = finetune(copy.deepcopy(model), task, samples=24, seed=0, teacher=model, recipe=Recipe(batch_size=4))
    assert result.samples == 24
    assert not task.classifies
    structure = analyze(model, task.example_inputs)
    assert task_fingerprint(task, structure) == task_fingerprint(task, structure)


class Sentences(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, row):
        return torch.arange(1, 3 + row), row % 2


def padded(items):
    words, labels = zip(*items, strict=True)
    return nn.utils.rnn.pad_sequence(words, batch_first=True), torch.tensor(labels)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, words):
        return self.head(self.lstm(self.embed(words))[0].mean(1))


def test_a_collate_function_pads_to_a_length_of_its_own():
    data = DataLoader(Sentences(), 4, collate_fn=padded)
    task = Task(
        build_model=Reader,
        example_inputs=torch.ones(1, 7, dtype=torch.long),
        train_set=data,
        val_set=data,
        test_set=data,
        loss=F.cross_entropy,
    )
    check_task(task)
    model = task.build_model().eval()
    small = prune(model, task.example_inputs, multiple_of=1)
    finetune(small, task, samples=20, seed=0, teacher=model, recipe=Recipe(batch_size=4))
    assert 0 <= evaluate(small, task, task.val_set).score <= 1


def test_sentences_of_several_lengths_need_padding():
    with pytest.raises(TaskError, match="must have the same shapes"):
        take(Sentences(), torch.arange(3))
