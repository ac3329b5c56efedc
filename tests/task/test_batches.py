import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset, TensorDataset

from autoprune.errors import TaskError
from autoprune.task.batches import batches, sample_rows, take

NUMBERS = TensorDataset(torch.arange(20.0)[:, None], torch.arange(20))


def test_all_kinds_of_data_sets_give_the_same_batch():
    rows = torch.tensor([4, 0, 7])
    as_list = [(x.clone(), int(y)) for x, y in NUMBERS]
    expected = take(NUMBERS, rows)
    assert expected[1].tolist() == [4, 0, 7]
    for dataset in (as_list, Subset(as_list, range(20)), Subset(Subset(NUMBERS, range(20)), list(range(20)))):
        for got, want in zip(take(dataset, rows), expected, strict=True):
            assert torch.equal(got, want)


def test_a_subset_is_indexed_through():
    assert take(Subset(NUMBERS, [9, 5, 1]), torch.tensor([2, 0]))[1].tolist() == [1, 9]


def test_a_subclass_keeps_its_own_getitem():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x * 2, y

    assert take(Doubled(*NUMBERS.tensors), torch.tensor([3]))[0].item() == 6.0


@given(size=st.integers(1, 20), batch_size=st.integers(1, 25))
def test_batches_cover_everything_once_in_order(size, batch_size):
    parts = list(batches(Subset(NUMBERS, range(size)), batch_size))
    assert torch.cat([y for _, y in parts]).tolist() == list(range(size))
    assert all(len(y) == batch_size for _, y in parts[:-1])


def test_items_of_different_shapes_are_refused():
    with pytest.raises(TaskError, match="same shapes"):
        take([(torch.zeros(2), 0), (torch.zeros(3), 0)], torch.tensor([0, 1]))


@given(size=st.integers(1, 200), small=st.integers(0, 250), large=st.integers(0, 250), seed=st.integers(0, 5))
def test_samples_are_distinct_ascending_and_nested(size, small, large, seed):
    first, second = (sample_rows(size, count, seed=seed).tolist() for count in (small, large))
    assert first == sorted(set(first))
    assert len(first) == (small if 0 < small < size else size)
    if 0 < small <= large:
        assert set(first) <= set(second)
