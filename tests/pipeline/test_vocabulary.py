"""A search whose space says `vocabulary: true`: rows that the data never use are gone in every model and file."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import autoprune
from autoprune.config import RunConfig
from autoprune.errors import ConfigError, RunFolderError
from autoprune.evaluation import EvaluatorFactory
from autoprune.pipeline.check import check_up
from autoprune.pipeline.commands import finetune_model, verify_again
from autoprune.pipeline.events import Silent
from autoprune.pipeline.profiles import structure_of
from autoprune.pruning.vocabulary import MappedEmbedding
from autoprune.training.dense import train_dense, weights_to_bytes
from tests.conftest import QUICK, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline import words

TASK = f"{Path(words.__file__)}:make_task"


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "words.yaml"
    path.write_text("multiple_of: 8\nvocabulary: true\n")
    return path


class Notes(Silent):
    """Events that keep their notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.texts.append(text)


@pytest.fixture(scope="module")
def searched(space: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[autoprune.Run, Notes]:
    """A run that begins with trained weights of the model with all rows."""
    folder, notes = tmp_path_factory.mktemp("run"), Notes()
    dense = folder / "whole.safetensors"
    dense.write_bytes(weights_to_bytes(train_dense(words.make_task())))
    options = QUICK | {"budgets": ["bytes:70%"], "space": str(space), "dense": str(dense)}
    run = autoprune.search(TASK, run_dir=folder / "r", measurer=SimulatedMeasurer(), events=notes, **options)
    return run, notes


def test_all_models_of_a_run_have_the_rows_of_the_data(searched: tuple[autoprune.Run, Notes]) -> None:
    run, notes = searched
    assert any("words has 22 rows for 200 ids" in text for text in notes.texts)  # the padding, and one for all others
    model = (run.models or run.baselines)[0]
    small = run.candidate(model.digest).model()
    assert type(small).__name__ == "Net"  # their own class
    assert isinstance(small.words, MappedEmbedding)
    assert small.words.num_embeddings == 22
    assert run.document["dense"]["params"] == 22 * 16 + 16 * 32 + 32 + 32 * 2 + 2
    assert run.document["dense"]["test_score"] == model.test_score == 1.0
    whole = words.Net()
    whole.load_state_dict(safetensors.torch.load_file(run.config.dense or ""))
    x, _ = words.sentences(8, 3).tensors
    torch.testing.assert_close(run.dense_model.module(x), whole.eval()(x))


def test_files_hold_the_map(searched: tuple[autoprune.Run, Notes], tmp_path: Path) -> None:
    run, _ = searched
    candidate = run.candidate((run.models or run.baselines)[0].digest)
    candidate.export(tmp_path / "small.onnx")
    readme = (tmp_path / "small_README.md").read_text()
    assert "`words` has 22 rows for 200 ids; ids that the data never use share a row; the map is a part" in readme
    small = candidate.model()
    again = autoprune.load(words.Net, autoprune.save(small, tmp_path / "small.safetensors"))
    ids = torch.tensor([[0, 10, 35, 150, 199]])
    assert torch.equal(again(ids), small(ids))


def test_later_commands_and_workers_see_the_same_rows(searched: tuple[autoprune.Run, Notes], space: Path) -> None:
    run, _ = searched
    folder, digest = run.folder.path, (run.models or run.baselines)[0].digest
    before = run.folder.dense.read_bytes()
    measurer = SimulatedMeasurer()
    measurer.policy_timer(run.dense_model.structure, seed=0)  # which tells it the model
    assert verify_again(folder, digest, measurer)["score"] == 1.0
    finetune_model(folder, digest, 0.1, Silent(), measurer)
    space.unlink()  # the rows are those of the dense model from now on
    try:
        factory = EvaluatorFactory(task=TASK, model=None, data_dir=None, run_dir=str(folder)).packed()
        assert factory().dense_model.structure.digest() == run.dense_model.structure.digest()
    finally:
        space.write_text("multiple_of: 8\nvocabulary: true\n")
    config = RunConfig(task=TASK, space=str(space))
    assert structure_of(config).digest() == run.dense_model.structure.digest()
    resumed = autoprune.search(run_dir=folder, measurer=measurer)
    assert resumed.folder.dense.read_bytes() == before
    with pytest.raises(RunFolderError, match="space was"):
        autoprune.search(run_dir=folder, measurer=SimulatedMeasurer(), space="widths")


def test_a_model_without_such_rows_is_refused(space: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocabulary: no row can go.* none of these layers"):
        autoprune.search(SPEC, run_dir=tmp_path / "r", space=str(space), **QUICK)


def test_a_check_says_how_many_rows_stay(space: Path) -> None:
    config = RunConfig(task=TASK, space=str(space), budgets=("bytes:70%",))
    texts = [finding.text for finding in check_up(config, SimulatedMeasurer()).findings]
    assert any("; words has 22 rows for 200 ids" in text for text in texts)
