"""Rows of embeddings that the data never use: removed, with the map of ids in the model and in its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import UsageError
from autoprune.export.vocabulary_note import described_vocabularies
from autoprune.pruning.vocabulary import maps_of, with_maps
from autoprune.training.dense import weights_to_bytes

IDS = torch.tensor([[3, 5, 7, 0], [5, 20, 9, 3]])


class Words(nn.Module):
    """A classifier of four words of 50; its padding is 0."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 8, padding_idx=0)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(8 if tied else 16, 50 if tied else 3, bias=False)
        self.tied = tied
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).mean(1)
        return self.head(x if self.tied else torch.relu(self.hidden(x)))


def test_outputs_on_the_data_stay_and_removed_ids_have_one_row() -> None:
    model = Words().eval()
    small = autoprune.cut_vocabulary(model, [IDS[:1], (IDS[1:],)])
    assert torch.equal(small(IDS), model(IDS))
    assert small.words.weight.shape == (7, 8)  # 0, 3, 5, 7, 9, 20 and the mean
    assert small.words.padding_idx == 0
    assert [*autoprune.zeros(small)["name"]] == ["hidden.weight", "head.weight"]  # as without a map
    gone = [row for row in range(50) if row not in IDS]
    torch.testing.assert_close(small.words(torch.tensor(gone)), model.words.weight[gone].mean(0).expand(44, 8))
    named = autoprune.cut_vocabulary(model, [{"ids": IDS}], unknown=1, spare=[2])
    assert named.words.weight.shape == (8, 8)
    assert torch.equal(named.words(torch.tensor([40, 2])), model.words.weight[[1, 2]])
    with pytest.raises(IndexError):
        small(torch.tensor([[50, -1, 0, 0]]))


def test_a_model_with_a_map_is_cut_saved_and_exported(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return autoprune.cut_vocabulary(Words().eval(), [IDS])

    whole, small = autoprune.prune(Words().eval(), IDS, keep=0.5), autoprune.prune(build(), IDS, keep=0.5)
    files = [autoprune.save(each, tmp_path / f"{n}.safetensors") for n, each in enumerate((whole, small))]
    assert files[1].stat().st_size < files[0].stat().st_size - 43 * 8 * 4 + 50 * 4 + 400
    again = autoprune.load(build, files[1])
    ids = torch.cat([IDS, torch.tensor([[49, 1, 2, 40]])])
    assert torch.equal(again(ids), small(ids))
    path = tmp_path / "small.onnx"
    autoprune.export_onnx(small, IDS, path)
    (outputs,) = onnxruntime.InferenceSession(path).run(None, {"ids": ids.numpy()})
    np.testing.assert_allclose(outputs, small(ids).detach(), atol=1e-5)
    assert sum(node.op_type == "Gather" for node in onnx.load(path).graph.node) == 2


def test_maps_of_a_file_make_the_same_rows_and_wrong_ones_none() -> None:
    model = Words().eval()
    small = autoprune.cut_vocabulary(model, [IDS])
    maps = maps_of(small.state_dict())
    again = with_maps(model, maps)
    for name, value in small.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    assert again.words.padding_idx == 0
    assert with_maps(model, {}) is model
    for wrong in (maps["words"][:-1], maps["words"] + 50, maps["words"].float(), -maps["words"]):
        assert isinstance(with_maps(model, {"words": wrong, "head": wrong, "absent": wrong}).words, nn.Embedding)


def test_a_page_says_how_many_rows_are_left(tmp_path: Path) -> None:
    path = tmp_path / "dense.safetensors"
    for model, expected in (
        (Words(), ""),
        (
            autoprune.cut_vocabulary(Words(), [IDS]),
            "`words` has 7 rows for 50 ids; ids that the data never use share a row",
        ),
    ):
        path.write_bytes(weights_to_bytes(model))
        assert described_vocabularies(path) == expected


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (Words(tied=True), [IDS], {}, "no row can go"),
        (nn.Linear(2, 2), [torch.ones(1, 2)], {}, "no row can go.*none of these layers"),
        (Words(), [torch.arange(50)[None]], {}, "no row can go"),
        (Words(), [], {}, "at least one batch"),
        (Words(), IDS, {}, "so pass \\[batch\\]"),
        (Words(), [IDS], {"unknown": 50}, "from 0 to 49; got 50"),
        (Words(), [IDS], {"spare": [-1]}, "from 0 to 49; got -1"),
    ],
)
def test_what_cannot_be_cut_is_one_message(model: nn.Module, data: object, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        autoprune.cut_vocabulary(model, data, **options)
