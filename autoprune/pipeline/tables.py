"""The latency table of a run: the one in its folder, a given one, or one that is measured now."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from autoprune.config import RunConfig
from autoprune.device.noise import NoiseError
from autoprune.device.target import Target, adds_in_16_bits, differences
from autoprune.device.timing import Protocol
from autoprune.errors import AutopruneError, ConfigError, LatencyError, RunFolderError
from autoprune.latency.sampling import whole_models
from autoprune.latency.stand_in import StandInTable
from autoprune.latency.table import LatencyTable
from autoprune.manifest import Manifest
from autoprune.pipeline.accuracy_levels import measured_accuracy_levels
from autoprune.pipeline.events import TABLE, Events
from autoprune.pipeline.measurer import Measurer
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.time_watch import watch_space
from autoprune.profiling.duration import MAX_SECONDS
from autoprune.profiling.journal import Journal
from autoprune.profiling.policy_timer import PolicyTimer
from autoprune.profiling.profile import open_journal, profile
from autoprune.profiling.report import accuracy_lines
from autoprune.quantization.arithmetic import NOT_CHOSEN
from autoprune.quantization.calibration import calibrated, split_treatments
from autoprune.quantization.twin import make_twin
from autoprune.records import Policy, SearchSpace
from autoprune.runfolder import RunFolder, samples_beside
from autoprune.structure import Structure
from autoprune.structure.layer_decisions import policy_of

_COMPARING = "comparing precisions"
_FASTER = 0.95
"""Treated models are faster when they take at most this share of the time: noise and conversions eat smaller gains."""


def latency_table(
    config: RunConfig,
    folder: RunFolder,
    structure: Structure,
    space_file: SpaceFile,
    measurer: Measurer,
    events: Events,
    *,
    max_seconds: float = MAX_SECONDS,
) -> LatencyTable:
    """Return the table of the folder, the one that was given, or one that is measured now.

    Raises:
        RunFolderError: when a search has begun with another table or space.
        LatencyError: for a table of another model, target or space.
    """
    stored = LatencyTable.load(folder.table) if folder.table.exists() else None
    given = LatencyTable.load(config.table) if config.table else None
    target = measurer.target
    if given is not None and not (stored is not None and stored.continues(given)):
        if stored is not None and folder.has_study:
            raise RunFolderError(
                f"the search in {folder.path} has begun with another latency table than {config.table}; leave out "
                "--table to go on with it, or choose another --run-dir."
            )
        require_fitting(given, config, structure, target)
        space_file.of_table(given)  # the table that is there stays when the given one does not fit
        Manifest(folder).write(folder.table, given.content())
        return given
    if stored is not None:
        require_fitting(stored, config, structure, target)
        foreign = bool(differences(target.fingerprint(), stored.target))  # which cannot be measured again here
        if given is not None or foreign or _answers(stored, space_file):
            samples_beside(folder.table).unlink(missing_ok=True)  # of a kill right after the table was written
            return stored
        if folder.has_study:
            raise RunFolderError(
                f"the search space {config.space!r} was changed since this search began; its table no longer fits. "
                "Undo the change, or choose another --run-dir."
            )
    return profiled_table(
        structure, space_file, measurer, config.seed, folder.table, events, folder,
        max_seconds=max_seconds, allow_noise=config.allow_noise,
    )  # fmt: skip


def stand_in_table(
    folder: RunFolder, structure: Structure, space: SearchSpace, measurer: Measurer, seed: int, events: Events
) -> StandInTable:
    """Return what takes the place of a table where no budget limits latency; the dense model is measured once.

    Args:
        folder: of the run, which keeps it.
        structure: of the model.
        space: that is searched.
        measurer: measures the dense model.
        seed: of the timer.
        events: are told why there is no table.
    """
    if not folder.dense_latency.exists():
        timer = measurer.policy_timer(structure, layers=space.layer_names, seed=seed)
        timings = measurer.timings([timer.build(structure.dense_policy())], timer.dense, timer.feeds)
        made = StandInTable(
            target=measurer.target.fingerprint(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            dense_ms=timings.reference_ms,
            noise=timings.noise,
            layers=space.layer_names,
        )
        made.save(folder.dense_latency)
        Manifest(folder).record(folder.dense_latency)
    events.note("no latency table is measured, because no budget limits the latency (--measure-table asks for one)")
    stored = StandInTable.load(folder.dense_latency)
    if adds_in_16_bits(stored.target) != adds_in_16_bits(measurer.target.fingerprint()):
        events.note(
            f"int8 weights are rounded for the device that the run began on, {stored.target['cpu']}; this one "
            f"({measurer.target.cpu}) computes with others"
        )
    return stored


def require_fitting(table: LatencyTable, config: RunConfig, structure: Structure, target: Target) -> None:
    """Raise `LatencyError` unless the table is of this model, and of this target as far as the configuration asks."""
    table.require(target, allow_foreign=config.allow_foreign_table).require_quiet(allow_noise=config.allow_noise)
    table.require_structure(structure)
    # A foreign table is of another device, but exported models run there at its batch and precision.
    shipped = {key: table.target[key] for key in ("batch", "precision") if table.target[key] != getattr(target, key)}
    if shipped:
        options = " ".join(f"--{key} {value}" for key, value in shipped.items())
        raise LatencyError(
            f"a foreign latency table is of another device, not of other models; search with {options} as it was "
            "measured, or measure it again"
        )


def _answers(table: LatencyTable, space_file: SpaceFile) -> bool:
    """Return whether the table has every width of the space."""
    try:
        space_file.of_table(table)
    except (LatencyError, ConfigError):
        return False
    return True


def profiled_table(
    structure: Structure,
    space_file: SpaceFile,
    measurer: Measurer,
    seed: int,
    destination: Path,
    events: Events,
    folder: RunFolder | None = None,
    *,
    max_seconds: float = MAX_SECONDS,
    allow_noise: bool = False,
) -> LatencyTable:
    """Measure a table now, write it to `destination` (a file of `folder`, if given), and note how well it predicts.

    Measurements are appended to a file beside it, from which an interrupted profile goes on.

    Raises:
        NoiseError: latencies vary too much to be used; what was measured is deleted, since it would be no better later.
    """
    events.stage(TABLE)
    if space_file.spec.treat_if_faster and not measurer.target.treats_layers:
        space_file = space_file.widths_alone()
    timer = measurer.policy_timer(
        structure,
        layers=space_file.profiled().layer_names,
        seed=seed,
        on_progress=lambda stage, done, total: events.advance(done, total, stage),
    )
    journal = open_journal(
        samples_beside(destination), structure, space_file.profiled(), timer,
        seed=seed, narrowed=space_file.efficient, on_note=events.note,
    )  # fmt: skip
    space_file, timer = _as_treated(space_file, timer, journal, events)
    try:
        table = profile(
            structure,
            space_file.profiled(),
            measurer.target,
            timer=timer,
            narrow=(lambda useful: space_file.narrowed(useful).timed()) if space_file.efficient else None,
            seed=seed,
            journal=journal,
            on_note=events.note,
            max_seconds=max_seconds,
            allow_noise=allow_noise,
        )
    except NoiseError:
        samples_beside(destination).unlink(missing_ok=True)
        raise
    if folder is None:
        table.save(destination)
    else:
        Manifest(folder).write(destination, table.content())
    samples_beside(destination).unlink(missing_ok=True)
    for line in accuracy_lines(table):
        events.note(line)
    return table


def _as_treated(
    space_file: SpaceFile, timer: PolicyTimer, journal: Journal, events: Events
) -> tuple[SpaceFile, PolicyTimer]:
    """Return the space without treatments where they do not pay, and the timer with the accuracy levels that do."""
    doubtful = space_file.spec.treat_if_faster and timer.layers
    if doubtful and not _treatments_pay(space_file.profiled(), timer, journal, events):
        space_file = space_file.widths_alone()
        timer = replace(timer, layers=())
        watch_space(events, space_file.scanned())
    levels = measured_accuracy_levels(space_file.profiled(), timer, journal, events) if timer.layers else NOT_CHOSEN
    return space_file, replace(timer, accuracy_levels=levels)


def _treatments_pay(space: SearchSpace, timer: PolicyTimer, journal: Journal, events: Events) -> bool:
    """Measure the model with all layers treated, at its widths and at half of them, and note whether that is faster."""
    rows = whole_models(space)
    treated = policy_of(timer.columns, rows[1], timer.layers)
    try:
        timings = journal.timings(_COMPARING, rows, partial(timer.time, rows, _COMPARING, Protocol()))
        ratios = np.array(timings.ratios).reshape(-1, 2)
        full, half = ratios[:, 1] / ratios[:, 0]
        pays = bool(min(full, half) <= _FASTER)
        if pays:
            _require_twin(timer.structure, treated)
    except RunFolderError:
        raise
    except AutopruneError as error:
        events.note(f"widths alone are searched, because the layers cannot be treated: {error}")
        return False
    then = "the precision of every layer is searched, too" if pays else "widths alone are searched"
    what = " and ".join(dict.fromkeys(map(str, treated.treatments.values())))
    events.note(f"{what} takes {full:.0%} of the fp32 latency, at half the widths {half:.0%}: {then}")
    return pays


def _require_twin(structure: Structure, treated: Policy) -> None:
    """Run what scores a treated model, on the examples: raises `StructureError` now instead of in every trial."""
    model = structure.shrink(structure.dense_policy(), prove=False).eval()
    placement, inputs = structure.placement_in(model.captures[False].graph), tuple(structure.example_inputs)
    int8, local = split_treatments({name: treatment.of_factors for name, treatment in treated.treatments.items()})
    with torch.no_grad():
        make_twin(model, placement, calibrated(model, placement, int8, inputs, local))(*inputs)
