"""A run goes on only from what it wrote: each file is proven, made again, or refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import autoprune
from autoprune.errors import RunFolderError
from autoprune.manifest import Manifest, State
from autoprune.pipeline.events import Silent
from autoprune.pipeline.folder_check import check_folder
from autoprune.runfolder import ModelFolder, RunFolder
from tests.measurers import SimulatedMeasurer


class Notes(Silent):
    """Keeps every note."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def add_noise(path: Path) -> None:
    weights = load_file(path)
    save_file({name: w + 0.1 if w.is_floating_point() else w for name, w in weights.items()}, path)


def resumed(run: autoprune.Run, events: Notes | None = None) -> autoprune.Run:
    return autoprune.search(run_dir=run.folder.path, measurer=SimulatedMeasurer(), events=events)


def three_models(run: autoprune.Run) -> list[ModelFolder]:
    """Return the folders of three models of a run, on the front or not."""
    digests = dict.fromkeys(model.digest for model in (*run.models, *run.others, *run.baselines))
    return [run.folder.model(digest) for digest in digests][:3]


def test_changed_files_are_made_again_and_the_front_is_the_same(copied: autoprune.Run) -> None:
    folder, before = copied.folder, copied.folder.front.read_bytes()
    first, second, third = three_models(copied)
    weights, onnx = first.weights.read_bytes(), third.onnx.read_bytes()
    flip_a_bit(first.weights)
    first.policy.write_text("garbage")
    second.onnx.write_bytes(onnx)
    third.onnx.write_bytes(onnx[:1000])
    third.metrics.write_text(third.metrics.read_text().replace('"score": 0', '"score": 1'))
    folder.order.write_text('{"schema": 1, "order": {"features.0": ["a", 1000000000]}}')
    folder.form.write_text("")
    folder.measured.write_text('{"schema": 1, "ratios": {"x": "fast"}}')
    events, damaged = Notes(), {first.weights, first.policy, second.onnx, third.onnx, third.metrics}
    damaged |= {folder.order, folder.form, folder.measured}
    known = check_folder(folder.path, events, redo=False)
    names = {path.relative_to(folder.path).as_posix() for path in damaged}
    assert {file.name for file in known.files if file.state is State.CHANGED} == names
    assert not known.is_whole
    checked = check_folder(folder.path, events, measurer=SimulatedMeasurer())
    assert checked.is_whole
    assert {file.name for file in checked.files if file.redone} >= names
    assert folder.front.read_bytes() == before
    assert (first.weights.read_bytes(), third.onnx.read_bytes()) == (weights, onnx)
    assert {file.state for file in Manifest(folder).states()} == {State.PROVEN}
    redone = [note for note in events.lines if "is not what this run wrote; it is made again" in note]
    assert len(redone) == 8


def test_files_of_a_version_without_a_manifest_are_checked_by_what_it_noted(copied: autoprune.Run) -> None:
    folder, (first, second, _) = copied.folder, three_models(copied)
    before, weights = folder.front.read_bytes(), first.weights.read_bytes()
    folder.manifest.unlink()
    flip_a_bit(first.weights)
    second.onnx.write_bytes(b"")
    assert resumed(copied).folder.front.read_bytes() == before
    assert first.weights.read_bytes() == weights
    assert second.onnx.stat().st_size > 0


def swap_table(folder: RunFolder) -> None:
    table = json.loads(folder.table.read_text())
    folder.table.write_text(json.dumps(table))


def other_task(folder: RunFolder) -> None:
    folder.environment.unlink()
    document = json.loads(folder.manifest.read_text())
    folder.manifest.write_text(json.dumps(document | {"task": "another"}))


def other_version(folder: RunFolder) -> None:
    with closing(sqlite3.connect(folder.study)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")


def other_results(folder: RunFolder) -> None:
    with closing(sqlite3.connect(folder.study)) as database, database:
        database.execute("""UPDATE trial_user_attributes SET value_json = '{"policy": 3}' WHERE key = 'result'""")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: add_noise(folder.dense), "dense.safetensors is not the file that this run wrote"),
        (swap_table, "latency_table.json is not the file that this run wrote"),
        (other_task, "holds a run of another task"),
        (other_version, "study.db cannot be used"),
        (other_results, "study.db cannot be used"),
    ],
)
def test_what_results_stand_on_is_refused(
    copied: autoprune.Run, damage: Callable[[RunFolder], None], message: str
) -> None:
    damage(copied.folder)
    with pytest.raises(RunFolderError, match=message):
        resumed(copied)


def test_dense_weights_that_are_gone_are_trained_again_and_must_be_the_same(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied.folder.dense.unlink()
    monkeypatch.setattr("autoprune.pipeline.dense.train_dense", lambda task, **_: task.build_model())
    torch.manual_seed(1)
    with pytest.raises(RunFolderError, match="another than the one that the search began with"):
        resumed(copied)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"score": 0', '"score": "a0'), ('"onnx": "models', '"onnx": "/etc'), ('"onnx": "models/', '"onnx": "../x/'),
        ('"latency_ratio": ', '"latency_ratio": null, "x": '), ('"features.0": 2', '"features.0": 1'),
        ('"provider": "CPU', '"provider": "\\"]); import os  # '), ('"models": [', '"models": 3, "x": ['),
        ('"score": 0', '"score": 1'),
    ],
)  # fmt: skip
def test_a_front_that_was_changed_is_refused_by_whoever_reads_it(
    copied: autoprune.Run, old: str, new: str, with_manifest: bool
) -> None:
    text = copied.folder.front.read_text()
    assert old in text
    changed = text.replace(old, new)
    if new.startswith('"score": "a'):
        changed = text.replace('"score": 0.8', '"score": "0.8"', 1)
    copied.folder.front.write_text(changed)
    if with_manifest:
        with pytest.raises(RunFolderError, match=r"front\.json"):
            autoprune.Run.open(copied.folder.path)
    elif new != '"score": 1':
        copied.folder.manifest.unlink()
        with pytest.raises(RunFolderError, match=r"front\.json"):
            autoprune.Run.open(copied.folder.path)


def test_a_changed_file_is_not_handed_out(copied: autoprune.Run, tmp_path: Path) -> None:
    candidate = copied.candidate(copied.models[0].digest)
    files = copied.folder.model(candidate.digest)
    metrics = files.metrics.read_text()
    files.metrics.write_text(metrics.replace('"dtype": "float32"', '"dtype": "float32\\");import os#"'))
    with pytest.raises(RunFolderError, match=r"metrics\.json is not the file"):
        candidate.export(tmp_path / "a.onnx")
    files.metrics.write_text(metrics)
    flip_a_bit(files.weights)
    with pytest.raises(RunFolderError, match=r"weights\.safetensors is not the file"):
        candidate.model()
    files.onnx.write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"model\.onnx is not the file"):
        candidate.export(tmp_path / "a.onnx")
    assert not list(tmp_path.glob("a*"))
