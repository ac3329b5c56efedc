"""The configuration of a run: a file, options over it, and what the run folder says already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autoprune.config import FOUNDATION, QUESTION, RunConfig, load_config
from autoprune.device.target import check_target
from autoprune.errors import RunFolderError, TaskError, unknown_name
from autoprune.executors.cluster import check_address, check_resources
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.channel_order import SCORES
from autoprune.pruning.expressions import parse_scores
from autoprune.runfolder import RunFolder
from autoprune.search.strategies import STRATEGIES
from autoprune.space import find_space, load_spec
from autoprune.study.location import absolute
from autoprune.study.samplers import SAMPLERS


def check_names(config: RunConfig) -> None:
    """Refuse unknown names before anything costs time; each error lists the known ones."""
    parse_scores(config.scores, SCORES, "scores")
    known = {"strategy": STRATEGIES, "sampler": SAMPLERS}
    for key, names in known.items():
        if getattr(config, key) not in names:
            raise unknown_name(key, getattr(config, key), names)
    load_spec(find_space(config.space))
    if config.dense and not Path(config.dense).is_file():
        raise TaskError(f"there is no weights file {config.dense}; give a .safetensors file of the dense model")
    check_target(config.target, config.precision)


def check_cluster(config: RunConfig) -> None:
    """Refuse a Ray cluster that cannot be reached or lacks the resources; nothing for other executors."""
    if config.executor == "ray":
        check_address(config.ray_address)
        check_resources(config.ray_address, config.resources, config.workers, torch.cuda.device_count())


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
            f"the studies of {folder.path} are kept in {before.storage or folder.study}; move them with "
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
    options = dict(given)
    for key in ("data_dir", "dense", "table", "warm_start"):
        if options.get(key):
            options[key] = str(Path(options[key]).resolve())
    if options.get("storage"):
        options["storage"] = absolute(options["storage"])
    source, colon, function = str(options.get("task", "")).rpartition(":")
    if colon and source.endswith(".py"):
        options["task"] = f"{Path(source).resolve()}:{function}"
    if str(options.get("space", "")).endswith((".yaml", ".yml")):
        options["space"] = str(Path(options["space"]).resolve())
    return options
