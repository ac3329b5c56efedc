"""Which channels go first, and what strategies are told about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.config import RunConfig
from autoprune.pipeline.channel_order import importance, importance_passes, make_dense_model
from autoprune.pipeline.events import Silent
from autoprune.runfolder import RunFolder, read_json
from autoprune.structure import analyze
from autoprune.training.dense import build_dense
from autoprune.trials import FORWARD_SHARE
from tests.pipeline import tiny


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def dense_model_of(folder, task=None, events=None, **options):
    task = task or tiny.make_task()
    dense = build_dense(task)
    structure = analyze(dense, task.example_inputs)
    run = RunFolder(folder)
    return make_dense_model(RunConfig(**options), run, task, dense, structure, events or Silent()), read_json(run.order)


def test_the_surgeons_order_and_the_reconstruction_are_the_default(tmp_path):
    dense_model, written = dense_model_of(tmp_path)
    assert written["scores"] == "obs"
    assert dense_model.reconstruction is not None
    assert dense_model.not_reconstructed == ()
    examples = min(512, len(dense_model.task.train_set))
    assert written["sample_passes"] == pytest.approx(FORWARD_SHARE * (examples + 256), rel=0.5)
    for unit in dense_model.structure.units:
        assert sorted(dense_model.order[unit.name]) == list(range(unit.width))


def test_an_order_that_is_there_is_taken(tmp_path):
    first, _ = dense_model_of(tmp_path, scores="l2")
    again, _ = dense_model_of(tmp_path, scores="random")
    assert again.order == first.order


def test_without_reconstruction_and_scores_on_data_nothing_is_passed(tmp_path):
    dense_model, written = dense_model_of(tmp_path, scores="l2", reconstruct=False)
    assert dense_model.reconstruction is None
    assert written["sample_passes"] == 0
    assert len(dense_model.not_reconstructed) == len(dense_model.structure.units)


def test_expressions_join_ranks_and_count_the_passes_of_their_scores(tmp_path):
    joined, written = dense_model_of(tmp_path / "joined", scores="0.9*obs+0.1*fisher")
    examples = len(joined.task.train_set)
    assert written["sample_passes"] >= min(examples, 128) + FORWARD_SHARE * min(examples, 512)
    for order in joined.order.values():
        assert sorted(order) == list(range(len(order)))
    surgeon, _ = dense_model_of(tmp_path / "surgeon")
    nearly, _ = dense_model_of(tmp_path / "nearly", scores="0.999*obs+0.001*random")
    assert nearly.order == surgeon.order


class _Squares(nn.Module):
    """A bilinear layer, which least squares does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(8, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(1, -1).contiguous()
        return self.bilinear(x, x).movedim(-1, 1)


def test_units_that_are_not_reconstructed_are_named(tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), _Squares(), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(),
            nn.LazyLinear(4),
        )  # fmt: skip

    task = tiny.make_task()
    shape = task.example_inputs[0].shape
    model = build()
    model(torch.zeros(shape))
    events = Notes()
    structure = analyze(model.eval(), (torch.zeros(shape),))
    dense_model = make_dense_model(RunConfig(), RunFolder(tmp_path), task, model, structure, events)
    assert 0 < len(dense_model.not_reconstructed) < len(structure.units)
    (note,) = events.notes
    assert "no least squares for" in note
    assert dense_model.not_reconstructed[0] in note


def test_importance_is_for_the_strategies_that_go_by_it():
    task = tiny.make_task()
    structure = analyze(build_dense(task), task.example_inputs)
    assert importance(RunConfig(strategy="guided"), structure, task) is None
    assert importance_passes(RunConfig(strategy="global-magnitude"), 1_000) == 0
    assert importance_passes(RunConfig(strategy="halp"), 300) == 300
    found = importance(RunConfig(strategy="halp"), structure, task)
    assert {name: len(values) for name, values in found.items()} == structure.full_widths
    assert all(np.isfinite(values).all() for values in found.values())
