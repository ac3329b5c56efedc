"""The manifest of a run folder: the digest of every file that the run wrote, and of those that it was made from.

It finds what was changed, cut off, swapped or left over, by accident or by hand; it is no signature, because whoever
can write the folder can write the manifest, too. A file that does not hold what the run wrote is made again when the
run makes it from others, and refused when results stand on it that cannot be had again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from autoprune.errors import RunFolderError
from autoprune.files import digest_of_bytes, digest_of_file, write_atomic
from autoprune.runfolder import ModelFolder, RunFolder, json_bytes, read_json, write_json

_DIGESTS, _SOURCES, _TASK = "sha256", "made_from", "task"


class State(StrEnum):
    """Digest and sources of a file of a run."""

    PROVEN = "proven"
    """It holds what the run wrote, from files that are the same now."""
    CHANGED = "changed"
    """It holds something else."""
    STALE = "stale"
    """A file that it was made from was made anew since."""
    ABSENT = "absent"
    """The run wrote it, and it is gone."""
    UNRECORDED = "unrecorded"
    """The run has no note of it: it was cut off between the two, or is of a version without manifests."""


@dataclass(frozen=True, kw_only=True)
class FileState:
    """State of one file, `name` relative to its run folder; a `basis` is never made again by itself."""

    name: str
    state: State
    basis: bool


@dataclass(frozen=True)
class Manifest:
    """Writes the files of a run with their digests, and compares them later."""

    folder: RunFolder

    def write(self, path: Path, data: bytes, sources: Iterable[Path] = ()) -> None:
        """Write a file of the run, atomically, and note its digest and those of the files it was made from.

        After a kill at any moment the file that is there is one that the manifest knows.
        """
        digest, name = digest_of_bytes(data), self._name(path)
        before = self._entries().get(name, {}).get(_DIGESTS, [])
        self._note(name, [digest, *before[:1]], sources)
        write_atomic(path, data)
        self._note(name, [digest], sources)

    def write_again(self, path: Path, data: bytes, sources: Iterable[Path] = ()) -> None:
        """Write a file on which the trials of a search stand, as `write` does.

        Raises:
            RunFolderError: when the search has begun with another one.
        """
        known = self.digest(path)
        if self.folder.has_study and known not in (None, digest_of_bytes(data)):
            raise RunFolderError(
                f"{path} was made again, and is another than the one that the search began with: its data, its code or "
                "a library was changed. Restore the file from a copy, or begin a run of its own with another --run-dir."
            )
        self.write(path, data, sources)

    def write_json(self, path: Path, value: dict[str, Any], sources: Iterable[Path] = ()) -> None:
        """Write a JSON object with the schema version, as `write` does."""
        self.write(path, json_bytes(value), sources)

    def record(self, *paths: Path, sources: Iterable[Path] = ()) -> None:
        """Note files that are there and were just written."""
        for path in paths:
            self._note(self._name(path), [digest_of_file(path)], sources)

    def digest(self, path: Path) -> str | None:
        """Return the digest that a file should have; `None` when none was noted."""
        return next(iter(self._entries().get(self._name(path), {}).get(_DIGESTS, [])), None)

    @property
    def task(self) -> str | None:
        """Fingerprint of the task that the run is about; `None` in runs of versions without manifests."""
        return self._document().get(_TASK)

    def forget(self, path: Path) -> None:
        """Remove a file of the run and its note."""
        document = self._document()
        if document["files"].pop(self._name(path), None) is not None:
            write_json(self.folder.manifest, document)
        path.unlink(missing_ok=True)

    def claim(self, task: str) -> None:
        """Note the fingerprint of the task."""
        if self.task != task:
            write_json(self.folder.manifest, self._document() | {_TASK: task})

    def require(self, *paths: Path) -> None:
        """Raise `RunFolderError` when one of some files is there and does not hold what the run wrote."""
        entries = self._entries()
        for path in paths:
            if path.exists() and self._state(path, entries) is State.CHANGED:
                raise self._changed(path)

    def states(self) -> list[FileState]:
        """Return the state of every file that the run has noted or that has the name of one, sorted by name."""
        entries = self._entries()
        there = {self._name(path) for path in (*self._basis(), *self._derived()) if path.exists()}
        basis = {self._name(path) for path in self._basis()}
        return [
            FileState(name=name, state=self._state(self.folder.path / name, entries), basis=name in basis)
            for name in sorted({*entries, *there})
        ]

    def settle(self) -> list[FileState]:
        """Make sure that a run goes on from what it wrote: remove what is not that and will be made again.

        The front and the sensitivities stay until they are written over: that they are there says how far a run is.

        Returns:
            The files that will be made again, each with the state that it had. Those without a note are noted as they
            are.

        Raises:
            RunFolderError: for a changed file that other results stand on.
        """
        states, removed = self.states(), []
        for file in states:
            path = self.folder.path / file.name
            if file.state is State.CHANGED and file.basis:
                raise self._changed(path)
            if file.state in (State.CHANGED, State.STALE) and not file.basis:
                removed.append(file)
                if path not in (self.folder.front, self.folder.sensitivity):
                    path.unlink()
            elif file.state is State.UNRECORDED:
                self.record(path)
        return removed

    def _state(self, path: Path, entries: Mapping[str, Any]) -> State:
        entry = entries.get(self._name(path))
        if entry is None:
            return State.CHANGED if self._contradicted(path) else State.UNRECORDED
        if not path.is_file():
            return State.ABSENT
        if digest_of_file(path) not in entry[_DIGESTS]:
            return State.CHANGED
        now = {name: entries.get(name, {}).get(_DIGESTS, [None]) for name in entry[_SOURCES]}
        same = all(digest in now[name] for name, digest in entry[_SOURCES].items())
        return State.PROVEN if same else State.STALE

    def _contradicted(self, path: Path) -> bool:
        """Return whether weights are others than those that were verified; versions without manifests noted these."""
        model = ModelFolder(path.parent)
        if path != model.weights or not model.metrics.exists():
            return False
        return read_json(model.metrics).get("weights_sha256", digest_of_file(path)) != digest_of_file(path)

    def _basis(self) -> list[Path]:
        folder = self.folder
        return [folder.dense, folder.table, folder.dense_latency, folder.recipe, folder.effort]

    def _derived(self) -> list[Path]:
        folder = self.folder
        files = [folder.order, folder.form, folder.measured, folder.sensitivity, folder.latency_parts, folder.front]
        models = sorted(path for path in (folder.path / "models").glob("*/*") if not path.name.startswith("."))
        return [*files, folder.dense_onnx, *models]

    def _changed(self, path: Path) -> RunFolderError:
        return RunFolderError(
            f"{path} is not the file that this run wrote (its SHA-256 begins with {digest_of_file(path)[:12]}, the "
            f"manifest says {(self.digest(path) or '')[:12]}). Restore it from a copy, or begin a run of its own with "
            "another --run-dir"
            + ("." if path in self._basis() else "; `autoprune search` on this folder makes it again.")
        )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()

    def _document(self) -> dict[str, Any]:
        path = self.folder.manifest
        return _checked(path, read_json(path, "files")) if path.exists() else {"files": {}}

    def _entries(self) -> dict[str, Any]:
        return self._document()["files"]

    def _note(self, name: str, digests: list[str], sources: Iterable[Path]) -> None:
        document = self._document()
        files = document["files"]
        known = {source: files.get(source, {}).get(_DIGESTS, []) for source in map(self._name, sources)}
        made_from = {source: theirs[0] for source, theirs in known.items() if theirs}
        files[name] = {_DIGESTS: digests, _SOURCES: made_from}
        write_json(self.folder.manifest, document)


def _checked(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest whose entries are digests of files inside the folder; `RunFolderError` for any other."""
    files = document["files"]
    good = isinstance(files, dict) and isinstance(document.get(_TASK, ""), str)
    for name, entry in files.items() if good else ():
        good = good and _is_inside(name) and isinstance(entry, dict) and set(entry) == {_DIGESTS, _SOURCES}
        good = good and isinstance(entry[_DIGESTS], list) and isinstance(entry[_SOURCES], dict)
        good = good and all(isinstance(text, str) for text in (*entry[_DIGESTS], *entry[_SOURCES].values()))
    if not good:
        raise RunFolderError(
            f"{path} is damaged: it holds something else than digests of files. Restore it, or delete it: the files of "
            "the run are then taken as they are."
        )
    return document


def _is_inside(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts
