"""The latency table of a run, and the search space that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autoprune.budgets import Budget
from autoprune.config import RunConfig
from autoprune.device.target import Target, differences
from autoprune.errors import ConfigError, LatencyError, RunFolderError
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.events import Events
from autoprune.profiling.profile import profile
from autoprune.profiling.report import accuracy_lines
from autoprune.records import SearchSpace
from autoprune.runfolder import RunFolder
from autoprune.space import Useful, build_space, find_space, load_spec, needs_table
from autoprune.structure import Structure


def space_of(config: RunConfig, structure: Structure, table: LatencyTable | None = None) -> SearchSpace:
    """The search space of a structure, from the file that the configuration names.

    Efficient levels are the useful ones of a table; without one, those that a profile should scan. Raises
    `LatencyError` when the table was not made for some width of the space.
    """
    path = find_space(config.space)
    spec = load_spec(path)
    units, digest = structure.units, structure.digest()
    if table is None:
        return build_space(spec, units, digest, path.name)
    if not needs_table(spec):
        space = build_space(spec, units, digest, path.name)
        table.require_space(space)
        return space
    useful = {
        unit.name: [w for w in table.useful.get(unit.name, ()) if w in table.space.levels[unit.name]] for unit in units
    }
    return _efficient(config, structure, useful, table.space.levels)


def _efficient(
    config: RunConfig, structure: Structure, useful: Useful, all_levels: Mapping[str, Sequence[int]] | None = None
) -> SearchSpace:
    """The space of useful widths; of all when none is faster than another and no budget limits latency."""
    path = find_space(config.space)
    spec, units, digest = load_spec(path), structure.units, structure.digest()
    try:
        return build_space(spec, units, digest, path.name, useful)
    except ConfigError:
        if any(Budget.parse(text).timed for text in config.budgets):
            raise
    return build_space(spec, units, digest, path.name, all_levels)


def latency_table(
    config: RunConfig, folder: RunFolder, structure: Structure, target: Target, events: Events
) -> LatencyTable:
    """The table of the folder, the one that was given, or one that is profiled now.

    Raises `RunFolderError` when a search has begun with another table or space.
    """
    stored = LatencyTable.load(folder.table) if folder.table.exists() else None
    given = LatencyTable.load(config.table) if config.table else None
    if given is not None and not (stored is not None and stored.continues(given)):
        if stored is not None and folder.has_study:
            raise RunFolderError(
                f"the search in {folder.path} has begun with another latency table than {config.table}; leave out "
                "--table to go on with it, or choose another --run-dir."
            )
        _require(given, config, structure, target)
        space_of(config, structure, given)  # the table that is there stays when the given one does not fit
        given.save(folder.table)
        return given
    if stored is not None:
        _require(stored, config, structure, target)
        foreign = bool(differences(target.fingerprint(), stored.target))  # which cannot be measured anew here
        if given is not None or foreign or _answers(config, structure, stored):
            return stored
        if folder.has_study:
            raise RunFolderError(
                f"the search space {config.space!r} was changed since this search began; its table no longer fits. "
                "Undo the change, or choose another --run-dir."
            )
    return profiled_table(config, structure, target, events, folder.table)


def _require(table: LatencyTable, config: RunConfig, structure: Structure, target: Target) -> None:
    """Raise `LatencyError` unless the table is of this model, and of this target as far as the configuration asks."""
    table.require(target, allow_foreign=config.allow_foreign_table).require_structure(structure)
    # A foreign table is of another device, but what is exported runs there at its batch and precision.
    shipped = {key: table.target[key] for key in ("batch", "precision") if table.target[key] != getattr(target, key)}
    if shipped:
        options = " ".join(f"--{key} {value}" for key, value in shipped.items())
        raise LatencyError(
            f"a foreign latency table is of another device, not of other models; search with {options} as it was "
            "measured, or measure it anew"
        )


def _answers(config: RunConfig, structure: Structure, table: LatencyTable) -> bool:
    try:
        space_of(config, structure, table)
    except (LatencyError, ConfigError):
        return False
    return True


def profiled_table(
    config: RunConfig, structure: Structure, target: Target, events: Events, destination: Path
) -> LatencyTable:
    """Profile now, write the table, and say how well it predicts."""
    events.stage("Latency table")
    path = find_space(config.space)
    spec = load_spec(path)

    def narrow(useful: Useful) -> SearchSpace:
        return _efficient(config, structure, useful)

    table = profile(
        structure,
        space_of(config, structure),
        target,
        narrow=narrow if needs_table(spec) else None,
        seed=config.seed,
        on_progress=lambda stage, done, total: events.advance(done, total, stage),
    )
    table.save(destination)
    for line in accuracy_lines(table):
        events.note(line)
    return table
