"""Weights with zeros in files: the cheapest form, the bytes that a policy counts, and checks of what a file says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

import autoprune
from autoprune.errors import UsageError
from autoprune.evaluation.zeros import note_treatments, patterns_of
from autoprune.export.packing import LayoutError, packed, unpacked
from autoprune.export.rounded_steps import Steps
from autoprune.quantization.grid import rounded_blocks
from autoprune.records import Policy
from autoprune.recovery.sparse import make_sparse
from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern
from autoprune.sparsity.storage import stored_bytes
from autoprune.structure import analyze, module_tensors
from autoprune.treatments import Treatment

SHAPES = ((16, 32), (8, 16, 3, 3), (6, 5), (7, 3, 3))
FORMS = {"sparse:60%": "mask", "sparse:99%": "rows", "1:4": "groups", "sparse:75%@4x1": "mask", "1:8@2x1": "groups"}


def sparse_weight(shape: tuple[int, ...], pattern: Pattern) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    return weight * pattern_mask(weight.abs(), pattern)


def pattern_of(text: str) -> Pattern:
    pattern = Pattern.parse(text)
    assert pattern is not None
    return pattern


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8", "w4"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", FORMS)
def test_packed_weights_come_back_and_take_the_bytes_that_are_counted(
    text: str, shape: tuple[int, ...], precision: str
) -> None:
    pattern, kernel = pattern_of(text), int(torch.Size(shape[2:]).numel())
    weight = sparse_weight(shape, pattern)
    steps = Steps.of(weight, precision)
    assert (steps is None) == (precision == "fp32" or (precision != "int8" and len(shape) > 2))
    made = packed(weight, pattern, steps)
    taken = stored_bytes("fp32" if steps is None else precision, 4, pattern, shape[0], shape[1], kernel)
    if made is None:
        assert taken == weight.nbytes
        return
    parts, entry = made
    assert sum(part.nbytes for part in parts.values()) == taken
    again = unpacked(parts, json.loads(json.dumps(entry)), shape)
    assert torch.equal(again, weight if steps is None else steps.values)
    if shape == (8, 16, 3, 3) and precision == "fp32":
        assert entry["form"] == FORMS[text]


@pytest.mark.parametrize("precision", ["w8", "w4"])
def test_weights_rounded_in_blocks_have_the_numbers_of_the_deployed_file(precision: str) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    bits = {"w8": 8, "w4": 4}[precision]
    made = packed(weight, None, Steps.of(weight, precision))
    assert made is not None
    parts, entry = made
    assert sum(part.nbytes for part in parts.values()) == stored_bytes(precision, 4, None, 5, 70)
    assert torch.equal(unpacked(parts, entry, (5, 70)), torch.from_numpy(rounded_blocks(weight.numpy(), bits).values))
    for wrong in (
        {"bits": 5}, {"bits": None}, {"bits": 12 - bits}, {"scales": torch.ones(5)}, {"scales": torch.ones(5, 2)},
        {"values": parts["values"].float()}, {"values": parts["values"][:-1]}, {"shape": [5, 71]},
    ):  # fmt: skip
        damaged = {**parts, **{k: v for k, v in wrong.items() if isinstance(v, torch.Tensor)}}
        with pytest.raises((LayoutError, ValueError)):
            unpacked(damaged, {**entry, **{k: v for k, v in wrong.items() if k in entry}}, (5, 70))


def test_kept_numbers_that_are_zero_are_stored_and_other_zeros_are_packed_too() -> None:
    pattern, weight = pattern_of("2:4"), sparse_weight((16, 32), pattern_of("2:4"))
    weight[0] = 0
    made = packed(weight, pattern)
    assert made is not None
    assert sum(part.nbytes for part in made[0].values()) == stored_bytes("fp32", 4, pattern, 16, 32)
    weight[1] = 1.0  # keeps to no pattern any more
    made = packed(weight, pattern)
    assert made is not None
    assert torch.equal(unpacked(*made, (16, 32)), weight)
    assert packed(torch.ones(4, 4)) is None


def _damaged(form: str) -> list[dict[str, Any]]:
    common: list[dict[str, Any]] = [
        {"shape": [1 << 40, 32]}, {"shape": [16]}, {"dtype": "int64"}, {"dtype": "nn"}, {"block": [0, 1]},
        {"block": [1]}, {"form": "zip"}, {"values": torch.ones(3)}, {"values": None}, {"scales": torch.ones(3)},
    ]  # fmt: skip
    own: dict[str, list[dict[str, Any]]] = {
        "mask": [{"mask": torch.ones(1, dtype=torch.uint8)}, {"mask": torch.full((64,), 255, dtype=torch.uint8)}],
        "rows": [
            {"columns": torch.full((6,), 31, dtype=torch.uint8)},
            {"columns": torch.full((6,), 99, dtype=torch.uint8)},
            {"rows": torch.arange(17, dtype=torch.int32) - 5},
            {"rows": torch.arange(3, dtype=torch.int32)},
        ],
        "groups": [
            {"of": [0, 0]}, {"of": [4, 1]}, {"of": [2, 4]}, {"of": [1, 1 << 30]},
            {"places": torch.ones(1, dtype=torch.uint8)},
        ],
    }  # fmt: skip
    return common + own[form]


@pytest.mark.parametrize("text", ["sparse:60%", "sparse:99%", "1:4"])
def test_what_a_file_says_is_checked(text: str) -> None:
    weight = sparse_weight((16, 32), pattern_of(text))
    made = packed(weight, pattern_of(text))
    assert made is not None
    for wrong in _damaged(made[1]["form"]):
        parts = {**made[0], **{k: v for k, v in wrong.items() if isinstance(v, torch.Tensor)}}
        parts = {name: value for name, value in parts.items() if wrong.get(name, 0) is not None}
        entry = {**made[1], **{k: v for k, v in wrong.items() if k in made[1]}}
        with pytest.raises((LayoutError, ValueError, KeyError)):
            unpacked(parts, entry, (16, 32))


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(4, 16, batch_first=True, bidirectional=True), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_weights_of_one_layer_share_its_zeros_and_small_ones_have_fewer(tmp_path) -> None:
    x = torch.randn(8, 5, 4)
    structure = analyze(_Recurrent().eval(), x[:1])
    (recurrent, head) = structure.layers
    policy = Policy(
        space_id="",
        widths=structure.full_widths,
        treatments={recurrent.name: Treatment.parse("sparse:75%"), head.name: Treatment.parse("sparse:50%")},
    )
    model = structure.shrink(structure.dense_policy()).eval()
    make_sparse(model, patterns_of(policy, structure.layers, model), [x])
    note_treatments(model, policy, structure.layers)
    weights = {name: module_tensors(model)[name] for name in recurrent.weights}
    zeros = {name: float((weight == 0).float().mean()) for name, weight in weights.items()}
    assert {name: round(share, 2) for name, share in zeros.items()} == {
        name: 0.42 if "_ih" in name else 0.83 for name in recurrent.weights
    }
    numbers = sum(weight.numel() for weight in weights.values())
    assert sum(int((weight == 0).sum()) for weight in weights.values()) == pytest.approx(0.75 * numbers, abs=4)
    path, layers = autoprune.save(model, tmp_path / "small.safetensors"), tuple(policy.treatments)
    stored = sum(tensor.nbytes for tensor in safetensors.torch.load_file(path).values())
    rows = structure.rows([policy], layers)
    assert stored == structure.bytes(rows, layers)[0]
    left = sum(int((weight != 0).sum()) for weight in model.parameters())
    assert left == pytest.approx(structure.params(rows, layers)[0], abs=4)
    whole = structure.macs(structure.rows([structure.dense_policy()], ()))[0]
    assert structure.macs(rows, layers)[0] == pytest.approx(5 * 0.25 * numbers + 0.5 * 128, abs=5 * 8)
    assert whole == 5 * numbers + 128
    assert torch.equal(autoprune.load(_Recurrent, path)(x), model(x))


@pytest.mark.parametrize("last", ["2:4", "w8", "w4+2:4", "w8+sparse:90%"])
def test_a_saved_model_computes_the_same_and_has_the_bytes_of_its_policy(tmp_path, last: str) -> None:
    x = torch.randn(8, 1, 6, 6)
    structure = analyze(_net().eval(), x[:1])
    written = {"0.weight": "sparse:50%", "3.weight": "int8+sparse:75%", "5.weight": last}
    treatments = {name: Treatment.parse(text) for name, text in written.items()}
    policy = Policy(space_id="", widths=structure.full_widths, treatments=treatments)
    model = structure.shrink(structure.dense_policy()).eval()
    patterns = {name: treatment.pattern for name, treatment in treatments.items() if treatment.pattern is not None}
    note_treatments(make_sparse(model, patterns, [x]), policy, structure.layers)
    plain, rounded = tmp_path / "plain.safetensors", tmp_path / "rounded.safetensors"
    again = autoprune.load(_net, autoprune.save(model, plain))
    assert torch.equal(again(x), model(x))
    of_int8 = autoprune.load(_net, autoprune.save(model, rounded, rounded=True))
    torch.testing.assert_close(of_int8(x), model(x), atol=0.2 if "w4" in last else 0.05, rtol=0.05)
    stored = sum(tensor.nbytes for tensor in safetensors.torch.load_file(rounded).values())
    layers = tuple(policy.treatments)
    assert stored == structure.bytes(structure.rows([policy], layers), layers)[0]
    with safe_open(rounded, framework="pt") as file:
        about = json.loads(file.metadata()["autoprune"])
    about["packed"]["3.weight"]["shape"] = [16, 1 << 40]
    metadata = {"autoprune": json.dumps(about)}
    rounded.write_bytes(safetensors.torch.save(safetensors.torch.load_file(rounded), metadata))
    with pytest.raises(UsageError, match=r"packed weight '3.weight' .* is damaged"):
        autoprune.load(_net, rounded)
