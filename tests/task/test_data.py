import gzip
import struct
import sys

import numpy as np
import pytest
import torch

from autoprune.errors import TaskError
from autoprune.task import data


def write_idx(path, array, *, packed):
    raw = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if packed else raw)


def write_fashion(folder, *, packed=True, train=6000, test=100):
    generator = np.random.default_rng(0)
    suffix = ".gz" if packed else ""
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images, packed=packed)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels, packed=packed)


def rows_of(dataset):
    return {row.numpy().tobytes() for row in dataset.tensors[0]}


def check_split(splits, sizes, side):
    parts = (splits.train, splits.val, splits.test)
    assert tuple(len(part) for part in parts) == sizes
    for part in parts:
        images, labels = part.tensors
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape[1:] == (1, side, side)
        assert images.min() == 0
        counts = torch.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= max(2, 0.1 * counts.max())
    assert 0.7 < float(splits.train.tensors[0].std()) < 1.3


def test_mnist5k():
    splits = data.load_mnist5k()
    check_split(splits, (3500, 500, 1000), 28)
    assert torch.bincount(splits.test.tensors[1]).tolist() == [100] * 10
    assert len(rows_of(splits.train) | rows_of(splits.val) | rows_of(splits.test)) == 5000
    assert torch.equal(splits.val.tensors[0], data.load_mnist5k().val.tensors[0])


def test_digits():
    check_split(data.load_digits(), (1197, 250, 350), 8)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_from_a_folder(tmp_path, packed):
    write_fashion(tmp_path, packed=packed)
    splits = data.load_fashion_mnist(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1000, 5000, 100)
    assert torch.bincount(splits.val.tensors[1]).tolist() == [500] * 10
    assert not rows_of(splits.train) & rows_of(splits.val)


def test_fashion_mnist_from_the_environment(tmp_path, monkeypatch):
    write_fashion(tmp_path)
    monkeypatch.setenv("AUTOPRUNE_DATA", str(tmp_path))
    assert len(data.load_fashion_mnist().test) == 100


def test_absent_fashion_mnist_names_all_three_ways(tmp_path):
    with pytest.raises(TaskError) as caught:
        data.load_fashion_mnist(tmp_path)
    for way in ("--data-dir", "$AUTOPRUNE_DATA", "dataset-fashion-mnist", str(tmp_path)):
        assert way in str(caught.value)


def test_one_absent_file_is_named(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(TaskError, match=r"needs t10k-labels-idx1-ubyte\.gz"):
        data.load_fashion_mnist(tmp_path)


def test_images_and_labels_must_match(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(7, dtype=np.uint8), packed=True)
    with pytest.raises(TaskError, match="100 t10k images and 7 labels"):
        data.load_fashion_mnist(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros((7, 1), dtype=np.uint8), packed=True)
    with pytest.raises(TaskError, match="must have 1 dimensions"):
        data.load_fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with 00 00 08"),
        (b"<html>not found</html>", "starts with 00 00 08"),
        (b"\0\0\x0d\x01\0\0\0\x01....", "starts with 00 00 08"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "announces"),
        (b"\0\0\x08\x03\0\0", "announces"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab", mtime=0)[:-9], "cannot read"),
        (b"\x1f\x8b\x08\x00damaged", "cannot read"),
    ],
)
def test_a_damaged_idx_file_is_a_clear_error(tmp_path, content, message):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message):
        data.read_idx(path)


def test_an_absent_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"pip install 'autoprune\[demo\]'"):
        data.load_mnist5k()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TaskError, match=r"pip install 'autoprune\[dev\]'"):
        data.load_digits()
