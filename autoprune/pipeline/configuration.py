"""The configuration of a run: a file, options over it, and what the run folder says already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoprune.config import FOUNDATION, QUESTION, RunConfig, load_config
from autoprune.errors import RunFolderError
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.prepare import place_of
from autoprune.runfolder import RunFolder
from autoprune.study.location import absolute


def resolve(folder: RunFolder, config_file: Path | None, given: dict[str, Any], *, fresh: bool = False) -> RunConfig:
    """Configuration of a new run, or of the one in the folder with the given options over it.

    Raises `RunFolderError` that lists what differs when that would be another run.
    """
    stored = folder.read_config()
    if stored is None:
        return _loaded(config_file, given)
    if fresh:
        raise RunFolderError(
            f"{folder.path} already holds a run. Leave out --fresh to resume it, or choose another one."
        )
    before = _loaded(None, stored)
    kept = {"run_id": before.run_id}
    config = _loaded(config_file, kept | given) if config_file else _loaded(None, kept | stored | given)
    if before.storage and "storage" not in config.model_fields_set:  # studies may have moved since the file was written
        config = config.model_copy(update={"storage": before.storage})
    fixed = FOUNDATION if folder.table.exists() or folder.dense.exists() else ()
    fixed += (*QUESTION, "storage", "run_id") if folder.has_study else ()
    changed = [
        f"{key} was {getattr(before, key)!r} and is {getattr(config, key)!r}"
        for key in fixed
        if getattr(before, key) != getattr(config, key)
    ]
    if changed and folder.has_study and before.storage != config.storage:
        raise RunFolderError(
            f"the studies of {folder.path} are kept in {place_of(before, folder)}; move them with "
            f"`autoprune study copy {folder.path} --to URL`, which the run then goes on with"
        )
    if changed:
        raise RunFolderError(f"{folder.path} holds another run: {'; '.join(changed)}. Choose another --run-dir.")
    return config


def _loaded(config_file: Path | None, given: dict[str, Any]) -> RunConfig:
    """A configuration file with options over it, all paths absolute."""
    values = with_absolute_paths(load_config(config_file, given).model_dump(mode="json", exclude_unset=True))
    return load_config(None, _of_table(values) | values)


def _of_table(values: dict[str, Any]) -> dict[str, Any]:
    """What a given latency table was measured with, for the options that say nothing else.

    Of another device the batch and the precision alone, which decide what is exported.
    """
    if not values.get("table"):
        return {}
    target = LatencyTable.load(values["table"]).target
    keys = ("batch", "precision") if values.get("allow_foreign_table") else ("batch", "precision", "threads")
    return {key: target[key] for key in keys}


def with_absolute_paths(given: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute, so that a run resumes from any folder."""
    found = dict(given)
    for key in ("data_dir", "dense", "table"):
        if found.get(key):
            found[key] = str(Path(found[key]).resolve())
    if found.get("storage"):
        found["storage"] = absolute(found["storage"])
    source, colon, function = str(found.get("task", "")).rpartition(":")
    if colon and source.endswith(".py"):
        found["task"] = f"{Path(source).resolve()}:{function}"
    if str(found.get("space", "")).endswith((".yaml", ".yml")):
        found["space"] = str(Path(found["space"]).resolve())
    return found
