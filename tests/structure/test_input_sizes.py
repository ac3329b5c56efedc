"""Sizes of inputs: free where the model leaves them free, fixed and refused by name elsewhere."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

import autoprune
from autoprune.errors import UsageError
from autoprune.structure import analyze, capture
from autoprune.structure.input_sizes import evaluated, resized
from autoprune.structure.size_formulas import printed


class _Resizing(nn.Module):
    """Scores of each pixel at a quarter of the size, brought back to the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.mix, self.out = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores = self.out(F.relu(self.mix(F.relu(self.down(image)))))
        return F.interpolate(scores, size=image.shape[2:], mode="nearest")


class _PaddedToEight(_Resizing):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows, columns = (-size % 8 for size in image.shape[2:])
        return self.out(F.relu(self.mix(F.relu(self.down(F.pad(image, (0, columns, 0, rows)))))))


class _PooledByHand(_Resizing):
    """The window of the pool is the whole image, as old classifiers wrote it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.mix(F.relu(self.down(image))))
        return self.out(F.avg_pool2d(x, tuple(x.shape[2:]))).flatten(1)


class _Windows(nn.Module):
    """Mixes windows of four columns, for which each block pads the image, and crops it again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)
        self.mixers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(6))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(image))
        for number, mixer in enumerate(self.mixers):
            batch, channels, rows, columns = x.shape
            x = F.pad(x, (0, -columns % 4, 0, -rows % (2 + number % 2)))
            windows = x.reshape(batch, channels, x.shape[2], x.shape[3] // 4, 4)
            x = (windows + windows.mean(-1, keepdim=True)).reshape(x.shape)[:, :, :rows, :columns]
            x = F.relu(mixer(x))
        return self.out(x)


class _Tokens(nn.Module):
    """Attention over the tokens that a mask leaves, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(30, 8), nn.Embedding(64, 8)
        self.mix, self.out = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        x = torch.relu(self.mix(self.table(ids) + self.place(torch.arange(length))))
        weights = (x @ x.transpose(1, 2) / length).masked_fill(mask[:, None] == 0, -1e9).softmax(-1)
        return self.out((weights @ x)[:, length - 1])


class _Last(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], layers: int) -> None:
        super().__init__()
        self.layer, self.out = kind(4, 6, num_layers=layers, batch_first=True), nn.Linear(6, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.layer(rows)
        return self.out(outputs[:, rows.size(1) - 1]) / rows.size(1)


class _Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x)).flatten(1))


class _Branching(nn.Module):
    """Odd lengths take another way than even ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.out(x.sum(1) if x.shape[1] % 2 else x.mean(1))


@pytest.mark.parametrize("build", [_Resizing, _PaddedToEight])
@pytest.mark.parametrize("training", [False, True])
def test_images_of_another_size(build, training):
    model, image = build().train(training), torch.randn(2, 3, 27, 45)
    same = autoprune.prune(model, torch.randn(1, 3, 32, 32), keep=1.0, native=False).train(training)
    assert torch.allclose(same(image), model(image), atol=1e-5)
    half = autoprune.prune(model, torch.randn(1, 3, 32, 32), keep=0.5, native=False)
    assert half(image).shape == model(image).shape


def test_a_formula_that_python_cannot_compute_has_no_code():
    rows = sympy.Symbol("s0", integer=True)
    assert evaluated(printed(rows**2 + 3))(s0=4) == 19
    assert printed(rows ** sympy.Rational(1, 3)) == ""


def test_inputs_of_one_size_are_free_together():
    model, ids, mask = _Tokens().eval(), torch.randint(0, 30, (3, 14)), torch.ones(3, 14)
    mask[0, 5:] = 0
    structure = analyze(model, (ids[:1, :9], mask[:1, :9]))
    assert [(number, dim) for number, dim, _ in structure.sizes.free()] == [(0, 1), (1, 1)]
    same = structure.shrink(structure.dense_policy())
    assert torch.allclose(same(ids, mask), model(ids, mask), atol=1e-5)
    with pytest.raises(UsageError, match="dimension 1 of the input 'mask' follows from other sizes"):
        same(ids, mask[:, :9])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_sequences_of_another_length(kind, layers):
    model = _Last(kind, layers).eval()
    same = autoprune.prune(model, torch.randn(2, 9, 4), keep=1.0, native=False).eval()
    for length in (5, 14):
        rows = torch.randn(3, length, 4)
        assert torch.allclose(same(rows), model(rows), atol=1e-5)


def test_a_fixed_size_is_listed_and_refused_by_name():
    table = autoprune.units(_Flat(), torch.randn(1, 3, 8, 8))
    rows = table[table["kind"] == "input size"].set_index("members")
    assert rows["width"].to_dict() == {"x[1]": 3, "x[2]": 8, "x[3]": 8}
    pruned = autoprune.prune(_Flat(), torch.randn(1, 3, 8, 8), native=False)
    with pytest.raises(UsageError, match=r"dimension 2 of the input 'x' is fixed to 8, .* got 12"):
        pruned(torch.randn(2, 3, 12, 8))
    with pytest.raises(UsageError, match="'x' has 4 dimensions"):
        pruned(torch.randn(3, 8, 8))
    assert pruned(torch.randn(7, 3, 8, 8)).shape == (7, 2)


def test_a_window_as_large_as_the_image_follows_it():
    model = _PooledByHand().eval()
    same = autoprune.prune(model, torch.randn(1, 3, 32, 32), keep=1.0, native=False).eval()
    for side in (32, 40):
        x = torch.randn(2, 3, side, side)
        assert torch.allclose(same(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "dims"),
    [
        (nn.AvgPool1d(2, 2, 1, True, False), 1),
        (nn.AvgPool2d(3, 2, 1, True, False, 5), 2),
        (nn.AvgPool3d(2), 3),
        (nn.MaxPool1d(2), 1),
        (nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True), 2),
        (nn.MaxPool3d(2), 3),
        (lambda x: F.avg_pool2d(x, 2, 2, 0, False, True, None), 2),
        (lambda x: F.max_pool2d(x, 2, 2, 0, 1, False, False), 2),
        (lambda x: F.avg_pool2d(input=x, kernel_size=x.shape[2:], count_include_pad=False), 2),
        (lambda x: F.avg_pool3d(x, (2, *x.shape[3:])), 3),
    ],
)
def test_pools_keep_their_options_at_every_size(pool, dims):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
            self.first, self.out = convolution(2, 8, 1), convolution(8, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(pool(torch.relu(self.first(x))))

    model = Pooled().eval()
    same = autoprune.prune(model, torch.randn(1, 2, *(12,) * dims), keep=1.0, native=False).eval()
    x = torch.randn(2, 2, *(12,) * dims)
    assert torch.allclose(same(x), model(x), atol=1e-5)


def test_sizes_stay_free_where_each_block_pads_and_crops_again():
    """Without names for long formulas, the algebra of torch about the sizes of such nets takes minutes."""
    model, image = _Windows().eval(), torch.randn(2, 1, 19, 24)
    same = autoprune.prune(model, torch.randn(1, 1, 14, 21), keep=1.0, native=False).eval()
    assert torch.allclose(same(image), model(image), atol=1e-5)


def test_the_line_that_fixes_a_size_is_named():
    (channels, *_) = analyze(_Flat(), torch.randn(1, 3, 8, 8)).fixed_sizes
    assert "test_input_sizes.py line" in channels.reason


def test_a_branch_on_a_size_is_refused_at_sizes_of_the_other_branch():
    model = _Branching().eval()
    same = autoprune.prune(model, torch.randn(1, 6, 4), keep=1.0, native=False).eval()
    x = torch.randn(2, 10, 4)
    assert torch.allclose(same(x), model(x), atol=1e-6)
    with pytest.raises(UsageError, match=r"another branch .*test_input_sizes.py line"):
        same(x[:, :7])


def test_a_size_of_one_stays():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    sizes = analyze(model, torch.randn(2, 1, 4)).fixed_sizes
    assert [(size.dim, size.size) for size in sizes] == [(1, 1), (2, 4)]
    assert "a size of 1" in sizes[0].reason


def test_only_the_batch_is_free_when_sizes_take_too_long(monkeypatch):
    monkeypatch.setattr(capture, "_SECONDS", 0.0)
    pruned = autoprune.prune(_Resizing(), torch.randn(1, 3, 32, 32), keep=1.0, native=False)
    assert pruned(torch.randn(5, 3, 32, 32)).shape == (5, 2, 32, 32)
    with pytest.raises(UsageError, match="deciding about free sizes takes more than 0 seconds"):
        pruned(torch.randn(1, 3, 40, 32))


def test_a_batch_written_in_forward_is_named_with_its_line():
    class Written(_Flat):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.conv(x)).view(1, -1))

    with pytest.raises(autoprune.AutopruneError, match=r"number of examples; its forward fixes the batch size .*line"):
        autoprune.units(Written(), torch.randn(1, 3, 8, 8))


def test_examples_are_repeated_or_cut_to_another_shape():
    x = torch.arange(6).reshape(1, 6)
    assert resized(x, (1, 8)).tolist() == [[0, 1, 2, 3, 4, 5, 0, 1]]
    assert resized(x, (3, 4)).tolist() == [[0, 1, 2, 3]]
