"""Whose folder it is: a fingerprint of the task, and the versions that a run was made with."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata

import torch

from autoprune.errors import RunFolderError
from autoprune.manifest import Manifest
from autoprune.model.nesting import tensors_in
from autoprune.records import digest_of
from autoprune.runfolder import RunFolder, read_json, write_json
from autoprune.structure import Structure
from autoprune.task.base import Task
from autoprune.task.batches import batches, length


def claim(folder: RunFolder, task: Task, structure: Structure) -> None:
    """Note versions and the task in the folder.

    Raises:
        RunFolderError: when the folder holds the results of another task.
    """
    fingerprint = task_fingerprint(task, structure)
    noted = read_json(folder.environment) if folder.environment.exists() else {}
    stored = {noted.get("task")}
    manifest = Manifest(folder)
    stored.add(manifest.task)
    if stored - {None, fingerprint} and (folder.dense.exists() or folder.has_study):
        raise RunFolderError(
            f"{folder.path} holds a run of another task: its data, metric or model differ (task {task.name!r}), or it "
            "was made by another version of autoprune. "
            "Choose another --run-dir."
        )
    # Who ran the trials of a search stays noted while one of its models is verified or trained on.
    workers = {key: value for key, value in noted.items() if key == "workers"}
    write_json(folder.environment, environment() | {"task": fingerprint} | workers)
    manifest.claim(fingerprint)


def note_workers(folder: RunFolder, executor: str, slots: int) -> None:
    """Note who runs the trials, for `autoprune status`."""
    write_json(folder.environment, read_json(folder.environment) | {"workers": {"executor": executor, "slots": slots}})


def task_fingerprint(task: Task, structure: Structure) -> str:
    """Return a hash of the structure, the metric, and the size and first items of every data set.

    Tensors that differ when the items are asked for again (their data set draws at random) are left out.
    """
    data = []
    for part in (task.train_set, task.val_set, task.test_set):
        first, again = (tensors_in(next(batches(part, 4))) for _ in range(2))
        same = [t for t, other in zip(first, again, strict=True) if torch.equal(t, other)]
        data.append([length(part), *(hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in same)])
    return digest_of([task.name, task.metric_name, structure.digest(), data])


def environment() -> dict[str, object]:
    """Return versions and host, for the record."""
    packages = ("autoprune", "torch", "optuna", "numpy", "onnxruntime", "onnx")
    versions = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "platform": platform.platform(), "versions": versions}
