import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import autoprune
from autoprune.errors import TaskError, UsageError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3)
    )


@pytest.fixture
def small():
    torch.manual_seed(1)
    return autoprune.prune(build(), (X,), multiple_of=1).eval()


@pytest.mark.parametrize("native", [False, True])
def test_a_round_trip(small, tmp_path, native):
    path = autoprune.save(small, tmp_path / "small.safetensors")
    again = autoprune.load(build, path, (X,), native=native)
    assert isinstance(again, nn.Sequential) is native
    assert not again.training
    torch.testing.assert_close(again(X), small(X))
    assert again.pruned_to == small.pruned_to
    assert autoprune.load(build, autoprune.save(again, tmp_path / "again"), (X,)).pruned_to == small.pruned_to


def test_the_file_says_what_the_model_takes(small, tmp_path):
    path = autoprune.save(small, tmp_path / "f")
    again = autoprune.load(build, path, native=True)
    torch.testing.assert_close(again(X), small(X))
    assert again.pruned_to == small.pruned_to
    tensors, text = load_file(path), {"schema": 1, "widths": {"0": 4}, "kept": {"0": [0, 1, 2, 3]}}
    save_file(tensors, path, {"autoprune": json.dumps(text)})
    with pytest.raises(UsageError, match="does not say what the model takes; give example_inputs"):
        autoprune.load(build, path)


def test_inputs_by_keyword_and_of_other_types_are_known_again(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, tokens, *, weights):
            return self.b(self.a(self.words(tokens)).relu().mul(weights[..., None]).sum(1))

    torch.manual_seed(0)
    inputs = {"tokens": torch.randint(0, 9, (3, 5)), "weights": torch.rand(3, 5)}
    small = autoprune.prune(Words(), inputs, multiple_of=1).eval()
    again = autoprune.load(Words, autoprune.save(small, tmp_path / "f"))
    torch.testing.assert_close(again(**inputs), small(**inputs))
    assert again.pruned_to == small.pruned_to


def test_native_classes_are_proven_on_masks_that_leave_nothing_out(tmp_path):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x, mask):
            return self.b((self.a(x).relu() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    torch.manual_seed(0)
    inputs = (torch.randn(3, 5, 4), torch.ones(3, 5, dtype=torch.int64))
    small = autoprune.prune(Mean(), inputs, multiple_of=1).eval()
    again = autoprune.load(Mean, autoprune.save(small, tmp_path / "f"), native=True)
    torch.testing.assert_close(again(*inputs), small(*inputs))


def test_what_is_not_in_the_state_dict_is_cut_to_the_kept_channels(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("scale", torch.arange(8.0), persistent=False)

        def forward(self, x):
            return self.b(self.a(x) * self.scale)

    torch.manual_seed(0)
    x = torch.randn(3, 4)
    small = autoprune.prune(Scaled(), (x,), multiple_of=1).eval()
    again = autoprune.load(Scaled, autoprune.save(small, tmp_path / "f"), (x,))
    torch.testing.assert_close(again(x), small(x))


def test_only_pruned_models_are_saved(tmp_path):
    with pytest.raises(UsageError, match="only models that autoprune pruned can be saved; this Sequential"):
        autoprune.save(build(), tmp_path / "f")


def test_files_that_do_not_fit(small, tmp_path):
    path = autoprune.save(small, tmp_path / "small.safetensors")
    with pytest.raises(TaskError, match="must fit the model; 8 do not"):
        autoprune.load(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), path, (torch.zeros(1, 4),))
    with pytest.raises(UsageError, match=r"build_model is a function .*`lambda: model`; got Sequential"):
        autoprune.load(build(), path, (X,))
    with pytest.raises(UsageError, match="is of another model than build_model returns"):
        autoprune.load(lambda: build(3), path, (X,))
    tensors = load_file(path)
    metadata = {"autoprune": json.dumps({"schema": 1, "widths": {"0": 4}, "kept": {"0": [0, 1, 2, 3]}})}
    save_file(tensors | {"0.weight": torch.zeros(5, 3, 3, 3)}, path, metadata)
    with pytest.raises(TaskError, match=r"must fit the model; 1 do not: 0.weight has \(5, 3, 3, 3\), the model \(4,"):
        autoprune.load(build, path, (X,))
    wrong = {"keyword": None, "dtype": "load", "shape": [2]}
    for text, message in (
        (json.dumps({"schema": 9}), "has schema 9; this version reads 1"),
        ("{", "metadata of .* is damaged"),
        (json.dumps({"schema": 1}), "metadata of .* is damaged"),
        (json.dumps({"schema": 1, "widths": {}, "kept": {}, "inputs": [{"dtype": "load"}]}), "is damaged"),
        (json.dumps({"schema": 1, "widths": {}, "kept": {}, "inputs": [wrong]}), "is damaged"),
        (
            json.dumps({"schema": 1, "widths": {}, "kept": {}, "inputs": [wrong | {"dtype": "int8", "keyword": 7}]}),
            r"is damaged: inputs\.0\.keyword",
        ),
    ):
        save_file(tensors, path, {"autoprune": text})
        with pytest.raises(UsageError, match=message):
            autoprune.load(build, path, (X,))
    save_file(tensors, path)
    with pytest.raises(UsageError, match=r"was not written by autoprune.save"):
        autoprune.load(build, path, (X,))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        autoprune.load(build, path, (X,))
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        autoprune.load(build, tmp_path / "absent", (X,))
