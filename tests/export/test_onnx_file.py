from functools import partial

import onnx
import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import StructureError, UsageError, VerificationError
from autoprune.export.onnx_file import OnnxModule, export_candidate
from autoprune.export.verify import parity
from autoprune.model.adapters import adapted
from autoprune.onnxgraph.axes import dynamic_axes
from autoprune.records import Policy
from autoprune.structure import analyze
from tests.model.test_adapters import Encoder, sentences
from tests.small_nets import NETS


@pytest.mark.parametrize("name", NETS)
def test_a_shrunk_model_becomes_a_file_with_a_dynamic_batch(name, tmp_path):
    example = (torch.randn(1, 1, 8, 8),)
    structure = analyze(NETS[name]().eval(), example)
    policy_widths = {unit.name: unit.width // 2 for unit in structure.units}
    shrunk = structure.shrink(Policy(space_id="s", widths=policy_widths))
    path = export_candidate(shrunk, example, tmp_path / "models" / "model.onnx")
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    weights = {i.name for i in model.graph.initializer}
    assert not weights & {i.name for i in model.graph.input}
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_two_inputs_keep_their_order(tmp_path):
    class Two(nn.Module):
        def forward(self, left, right):
            return left - 2 * right

    path = export_candidate(Two(), (torch.ones(1, 3), torch.ones(1, 3)), tmp_path / "two.onnx")
    assert [entry.name for entry in onnx.load(str(path)).graph.input] == ["left", "right"]


def test_any_module_is_exported_and_proven(tmp_path):
    item = sentences(2)
    inputs = {key: torch.stack([entry[key] for entry in item]) for key in ("input_ids", "attention_mask")}
    model = adapted(Encoder(), tuple(inputs))
    small = autoprune.prune(model, inputs, multiple_of=1)
    path = autoprune.export_onnx(small, inputs, tmp_path / "small.onnx")
    assert [entry.name for entry in onnx.load(path).graph.input] == list(inputs)
    kept = path.read_bytes()
    with pytest.raises(StructureError, match="cannot be exported"):
        autoprune.export_onnx(small, torch.zeros(1, 3), path)
    assert path.read_bytes() == kept


def test_a_wrong_export_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("autoprune.export.onnx_file.parity", partial(parity, limit=-1.0))
    with pytest.raises(VerificationError):
        autoprune.export_onnx(nn.Linear(3, 2), torch.zeros(1, 3), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_model_in_half_precision_is_proven_by_what_that_can_tell_apart(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    path = autoprune.export_onnx(model.half(), torch.zeros(1, 8).half(), tmp_path / "half.onnx")
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    with pytest.raises(UsageError, match=r"does not run bfloat16: export model.float\(\)"):
        autoprune.export_onnx(model.bfloat16(), torch.zeros(1, 8).bfloat16(), path)


class OfLogarithm(nn.Linear):
    def forward(self, x):
        return super().forward(torch.log(x))


def test_a_model_of_positive_inputs_is_proven_on_its_examples(tmp_path):
    path = autoprune.export_onnx(OfLogarithm(4, 2), torch.rand(2, 4) + 0.1, tmp_path / "log.onnx")
    assert path.exists()


def test_a_model_without_numbers_on_its_examples_is_to_blame_itself(tmp_path):
    with pytest.raises(VerificationError, match="the PyTorch model itself gives NaN") as caught:
        autoprune.export_onnx(OfLogarithm(4, 2), -torch.rand(2, 4), tmp_path / "log.onnx")
    assert "report the model" not in str(caught.value)
    assert not (tmp_path / "log.onnx").exists()


def test_a_model_that_returns_a_parameter_is_exported(tmp_path):
    class Tied(nn.Linear):
        def forward(self, x):
            return super().forward(x), self.weight

    assert autoprune.export_onnx(Tied(4, 2), torch.rand(1, 4), tmp_path / "tied.onnx").exists()


class _Centred(nn.Module):
    """Scores of pixels less their mean, padded to a multiple of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        scores = self.out(torch.relu(self.first(x)))
        return scores - scores.sum((2, 3), keepdim=True) / (scores.shape[2] * scores.shape[3])


@pytest.mark.parametrize("pruned", [False, True])
def test_free_sizes_are_named_axes_of_the_file(tmp_path, pruned):
    model, x = _Centred().eval(), torch.randn(1, 3, 16, 16)
    exported = autoprune.prune(model, x, keep=0.5).eval() if pruned else model
    path = autoprune.export_onnx(exported, x, tmp_path / "centred.onnx")
    assert dynamic_axes(path) == {"x": {"0": "batch", "2": "x_2", "3": "x_3"}}
    other = torch.randn(3, 3, 21, 34)
    with torch.no_grad():
        assert torch.allclose(OnnxModule(path)(other), exported(other), atol=1e-5)
