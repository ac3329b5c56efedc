import numpy as np
import pytest
import torch

from autoprune.errors import TaskError
from autoprune.model.streams import read_batches

X = torch.arange(6.0).reshape(3, 2)
RAGGED = [torch.ones(1), torch.ones(2), torch.ones(3)]


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X, X[:, 0]),
        (X, RAGGED),
        (X, [{"boxes": box, "label": 1} for box in RAGGED]),
        (X, {"mean": X[:, 0], "boxes": RAGGED, "name": ["a", "b", "c"]}),
        (X, (X[:, 0], {"deep": X}), RAGGED),
        {"x": X, "target": {"a": RAGGED, "b": [1, 2, 3]}},
        (np.ones((3, 2)), [0.5, 1.5, 2.5]),
    ],
)
def test_items_make_batches_of_the_same_form_again(batch):
    items, joined, size = read_batches("train_set", iter([batch, batch]))
    assert (len(items), size) == (6, 3)
    again = joined(items[3:])
    given = (batch,) if isinstance(batch, torch.Tensor) else batch
    assert flat(again) == flat(given)


def flat(value):
    if isinstance(value, dict):
        return [entry for key in value for entry in (key, *flat(value[key]))]
    if isinstance(value, list | tuple) and not all(isinstance(entry, int | float) for entry in value):
        return [entry for part in value for entry in flat(part)]
    return [value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value]


@pytest.mark.parametrize(
    "batches",
    [
        [(X, X[:2])],
        [(X, RAGGED[:2])],
        [(X, {"a": X[:2]})],
        [(X, "name")],
        [(X, X), (X,)],
        [{"x": X}, {"y": X}],
        [(X, {"a": X}), (X, {"b": X})],
        [(torch.tensor(1),)],
        [("a", "b")],
    ],
)
def test_parts_without_an_entry_for_each_example_are_refused(batches):
    with pytest.raises(TaskError, match="equally long tensors, or of lists with an entry for each example"):
        read_batches("train_set", batches)
