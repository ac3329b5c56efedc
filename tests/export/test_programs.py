from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import StructureError, VerificationError
from autoprune.export.programs import runner_of, write_pt2, write_torchscript
from autoprune.export.verify import output_difference
from autoprune.structure import GraphModel
from autoprune.structure.capture import quiet
from autoprune.structure.input_sizes import at_second


class Tagger(nn.Module):
    """Two inputs, named outputs, and a length that is free where no layer is recurrent."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(16, 3)
        self.body = nn.LSTM(8, 16, batch_first=True) if recurrent else nn.Linear(8, 16)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(ids) * scale[:, None, None]
        hidden = self.body(x)[0] if isinstance(self.body, nn.LSTM) else self.body(x).relu()
        return {"logits": self.head(hidden[:, -1]), "hidden": hidden}


INPUTS = (torch.arange(140).reshape(20, 7) % 20, torch.rand(20) + 0.5)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_program_has_names_and_free_sizes(tmp_path: Path, recurrent: bool) -> None:
    path, examples = tmp_path / "m.pt2", [x[:2] for x in INPUTS]
    small = autoprune.prune(Tagger(recurrent), examples, keep=0.5, native=False).eval()
    assert isinstance(small, GraphModel)
    sizes = write_pt2(small, examples, path)
    assert (sizes is None) == recurrent, "PyTorch unrolls recurrent layers for one length"
    second = None if sizes is None else at_second(sizes, examples)
    assert output_difference(small, runner_of("pt2", path), INPUTS, source=path, second=second) < 1e-5
    program = torch.export.load(path)
    assert program.graph_signature.user_inputs == ("ids", "scale")
    outputs = program.module(check_guards=False)(*(x[:1] for x in INPUTS))
    assert outputs.keys() == {"logits", "hidden"}


NAMES = {"input_names": ("tokens", "hidden"), "output_names": ("scores", "ids")}


def test_files_have_the_names_that_are_asked_for(tmp_path: Path) -> None:
    examples = [x[:2] for x in INPUTS]
    small = autoprune.prune(Tagger(False), examples, keep=0.5, native=False).eval()
    assert isinstance(small, GraphModel)
    path = autoprune.export_onnx(small, examples, tmp_path / "m.onnx", **NAMES)  # `hidden` and `ids` change sides
    graph = onnx.load(path).graph
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert [v.name for v in (*graph.input, *graph.output)] == ["tokens", "hidden", "scores", "ids"]
    assert sizes == [["batch", "tokens_1"], ["batch"], ["batch", 3], ["batch", "tokens_1", 16]]
    write_torchscript(small, examples, tmp_path / "m.pt", **NAMES)
    with quiet():
        outputs = torch.jit.load(tmp_path / "m.pt")(tokens=INPUTS[0], hidden=INPUTS[1])
    assert outputs.keys() == {"scores", "ids"}
    torch.testing.assert_close(outputs["scores"], small(*INPUTS)["logits"])


def test_torchscript_of_own_classes_keeps_the_batch_free(tmp_path: Path) -> None:
    path, own = tmp_path / "m.pt", nn.Sequential(nn.Linear(4, 3), nn.Flatten())
    write_torchscript(own, [torch.rand(1, 4)], path)
    assert output_difference(own, runner_of("torchscript", path), [torch.rand(9, 4)], source=path) == 0


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    path, own = tmp_path / "m.pt", nn.Linear(4, 3)
    write_torchscript(own, [torch.rand(1, 4)], path)
    run = runner_of("torchscript", path)
    with pytest.raises(VerificationError, match="computes something else"):
        output_difference(nn.Linear(4, 3), run, [torch.rand(9, 4)], source=path)
    with pytest.raises(VerificationError, match="does not run at batch 1: "):
        output_difference(nn.Linear(5, 3), run, [torch.rand(9, 5)], source=path)


def test_a_model_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    class Words(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return {"kind": "a word", "x": x}

    with pytest.raises(StructureError, match="cannot be traced to TorchScript: "):
        write_torchscript(Words(), [torch.rand(1, 4)], tmp_path / "m.pt")
