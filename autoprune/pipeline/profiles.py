"""Profiles outside a run: measure a table, check it, look at it, and have a device measure it."""

from __future__ import annotations

import errno
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoprune.config import RunConfig, load_config
from autoprune.device.address import split_address
from autoprune.device.kit import read_manifest
from autoprune.errors import UsageError
from autoprune.latencies import Staircase
from autoprune.latency.efficient_widths import staircases
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.configuration import check_names
from autoprune.pipeline.events import Events
from autoprune.pipeline.measurer import DeviceMeasurer, Measurer
from autoprune.pipeline.run import open_task
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.tables import profiled_table
from autoprune.pipeline.vocabulary import built_model
from autoprune.profiling.kit_profile import import_kit, make_kit
from autoprune.profiling.report import accuracy_lines, check_lines
from autoprune.profiling.table_check import CLOCK_TOLERANCE, TableCheck, check_table
from autoprune.runfolder import write_atomic
from autoprune.structure import Structure, analyze
from autoprune.task.builtin import TASKS

_KIT_OPTIONS = ("task", "model", "data_dir", "space", "seed")
_TASK_OPTIONS = ("task", "model", "data_dir")


def structure_of(config: RunConfig) -> Structure:
    """Return the structure of the model that a configuration names, untrained: weights do not matter to latency."""
    task = open_task(config)
    return analyze(built_model(config, task), task.example_inputs, task.outputs)


def profile_table(
    destination: Path, events: Events, *, measurer: Measurer | None = None, **options: Any
) -> LatencyTable:
    """Measure a latency table and write it; an older table at `destination` stays until the new one is complete.

    Args:
        destination: JSON file of the table.
        events: receives progress.
        measurer: measures (default: the device that the option `target` names).
        **options: fields of `RunConfig`.

    Raises:
        UsageError: before anything is measured, when no file can be written at `destination`.
    """
    config = load_config(None, options)
    check_names(config)
    _require_writable(destination)
    measurer = measurer or DeviceMeasurer.of(config)
    structure = structure_of(config)
    space_file, allowed = SpaceFile.read(config, structure), config.allow_noise
    table = profiled_table(structure, space_file, measurer, config.seed, destination, events, allow_noise=allowed)
    events.note(f"written to {destination}")
    return table


def check_profile(path: Path, events: Events, *, measurer: Measurer | None = None, **options: Any) -> TableCheck:
    """Measure held-out policies of a table again, and return how well it predicts now, and whether it still holds.

    Args:
        path: the table. Target, threads, batch and precision are those that it was measured with.
        events: receives progress and the errors.
        measurer: measures (default: the table's target on this host).
        **options: fields of `RunConfig`.

    Raises:
        LatencyError: for a table of another machine.
    """
    table = LatencyTable.load(path)
    known = {key: table.target[key] for key in ("threads", "batch", "precision")} | {"target": table.target["name"]}
    config = load_config(None, known | options)
    measurer = measurer or DeviceMeasurer.of(config)
    table.require(measurer.target, allow_foreign=config.allow_foreign_table)
    structure = structure_of(config)
    table.require_structure(structure)
    events.stage("Checking the latency table")
    timer = measurer.policy_timer(
        structure,
        layers=table.layers,
        seed=config.seed,
        on_progress=lambda stage, done, total: events.advance(done, total, stage),
    )
    check = check_table(table, structure, measurer.target, timer=timer)
    for line in check_lines(check):
        events.note(line)
    if check.holds and abs(check.dense_ms_now / check.dense_ms_before - 1) > CLOCK_TOLERANCE:
        events.note("for shares of the dense latency; before a budget in milliseconds, `autoprune profile` again")
    return check


def explained(path: Path, **options: Any) -> tuple[LatencyTable, tuple[Staircase, ...]]:
    """Return a table and the staircase of every unit."""
    table = LatencyTable.load(path)
    structure = structure_of(load_config(None, options))
    priced = PricedOperators.of(structure, table.layers)
    return table, staircases(table.predictor(structure), table.space, priced.varying)


def write_kit(destination: Path, events: Events, **options: Any) -> None:
    """Write a device kit; nothing about the device needs to be known but its kind of target.

    Raises `UsageError` for a target with an address and, at once, when no file can be written at `destination`.
    """
    config = load_config(None, options)
    name, address = split_address(config.target)
    if address:
        raise UsageError("a kit is for devices that cannot be reached; over ssh, `autoprune profile` does it all")
    _require_writable(destination)
    events.stage("Device kit")
    structure = structure_of(config)
    space_file = SpaceFile.read(config, structure)
    if space_file.spec.treat_if_faster:  # nothing can be measured there before the kit is made
        space_file = space_file.widths_alone()
    content = make_kit(
        structure,
        space_file.evenly_spaced().timed(),
        name,
        scanned=space_file.profiled().codes,
        threads=config.threads,
        batch=config.batch,
        precision=config.precision,
        seed=config.seed,
        origin={key: getattr(config, key) for key in _KIT_OPTIONS},
        on_progress=lambda stage, done, total: events.advance(done, total, stage),
    )
    write_atomic(destination, content)
    events.note(f"{destination}: {len(content) / 1e6:.1f} MB. Unpack it on the device, run `python3 measure.py` there")
    events.note("(it needs numpy and onnxruntime, and goes on after an interruption), and bring results.json back:")
    named = "" if config.task in TASKS else f" --task {shlex.quote(config.task)}"
    named += f" --space {shlex.quote(config.space)}" if space_file.spec.vocabulary else ""
    events.note(f"autoprune profile import results.json --kit {destination} --out table.json{named}")


def import_results(
    results: Path,
    kit: Path,
    destination: Path,
    events: Events,
    *,
    allow: Callable[[str], bool] = lambda task: False,
    **options: Any,
) -> LatencyTable:
    """Build and write the table of a device; an older one at `destination` stays when the results are refused.

    Args:
        results: what the device measured.
        kit: that it measured. Whoever made it also wrote down which task it is of.
        destination: JSON file of the table.
        events: receives progress and the errors.
        allow: is asked whether the code of the task that the kit names may run, where it is no built-in one.
        **options: the fields `task`, `model` and `data_dir` of `RunConfig`, in place of what the kit names; and `space`
            where it cuts the vocabulary of the model.

    Raises:
        UsageError: when no file can be written at `destination`, or the task of the kit is not allowed.
    """
    _require_writable(destination)
    events.stage("Device results")
    structure = structure_of(load_config(None, _task_of(kit, options, allow)))
    table = import_kit(results, kit, structure)
    table.save(destination)
    for line in accuracy_lines(table):
        events.note(line)
    events.note(f"written to {destination}; search with --table {destination} --allow-foreign-table")
    return table


def _task_of(kit: Path, given: dict[str, Any], allow: Callable[[str], bool]) -> dict[str, Any]:
    """Return the options that name the task of a kit: the user's, or the kit's where nobody's code is run for it."""
    if "task" in given:
        return given
    stored = read_manifest(kit)["origin"].get("options")
    named = (
        {k: v for k, v in stored.items() if k in _TASK_OPTIONS and v is not None} if isinstance(stored, dict) else {}
    )
    task = named.get("task", RunConfig.model_fields["task"].default)
    if not isinstance(task, str) or not (task in TASKS or allow(task)):
        raise UsageError(
            f"{kit} names the task {task!r}, whose code would run here. Say which task it is of: --task "
            "package.module:function or --task file.py:function"
        )
    return named | given


def _require_writable(destination: Path) -> None:
    """`UsageError` when no file can be written there: what goes there takes minutes."""
    try:
        if destination.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=destination.parent, prefix=f".{destination.name}."):
            pass
    except OSError as error:
        raise UsageError(
            f"{destination} cannot be written: {error.strerror or error}. Give another file with --out."
        ) from error
