"""The search-space file of a run, read once, and the spaces that it gives before and after a profile."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autoprune.config import RunConfig
from autoprune.device.target import Target
from autoprune.errors import ConfigError
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.channel_order import OBS
from autoprune.records import SearchSpace, Unit
from autoprune.search.strategies import JOINT
from autoprune.space import SpaceSpec, Useful, build_space, find_space, load_spec, needs_table, without_treatments
from autoprune.structure import Structure
from autoprune.treatments import Layer, Treatment, level_code


@dataclass(frozen=True, kw_only=True)
class SpaceFile:
    """A search-space file for the units and layers of one model.

    `name` is what users call the space, `structure_digest` the model's; `timed`: some budget limits the latency,
    `stored`: some limits the bytes.
    """

    name: str
    file_name: str
    spec: SpaceSpec
    units: Sequence[Unit]
    layers: Sequence[Layer]
    structure_digest: str
    timed: bool
    stored: bool = False

    @classmethod
    def read(cls, config: RunConfig, structure: Structure) -> SpaceFile:
        """Read the file that a configuration names; `UsageError` or `ConfigError` for an unknown or a wrong one."""
        path = find_space(config.space)
        spec = load_spec(path)
        if spec.treat_if_faster and config.strategy not in JOINT:
            spec = without_treatments(spec)
        return cls(
            name=config.space,
            file_name=path.name,
            spec=spec,
            units=structure.units,
            layers=structure.layers,
            structure_digest=structure.digest(),
            timed=any(budget.timed for budget in config.parsed_budgets()),
            stored=any(bound.cost == "bytes" for budget in config.parsed_budgets() for bound in budget.bounds),
        )

    @property
    def efficient(self) -> bool:
        """Whether the levels of some unit are the useful widths of a latency table."""
        return needs_table(self.spec)

    def scanned(self) -> SearchSpace:
        """Return the space before there is a table: with efficient levels, the widths that a profile scans."""
        return self._built()

    def profiled(self) -> SearchSpace:
        """Return the space that a latency table is measured for: that of `scanned` without patterns of zeros."""
        return self.scanned().timed()

    def narrowed(self, useful: Useful, all_levels: Mapping[str, Sequence[int]] | None = None) -> SearchSpace:
        """Return the space of useful widths.

        Where no width is faster than another and no budget limits the latency, it is the space of `all_levels`
        (default: those that a profile scans).

        Raises:
            ConfigError: when no width is faster than another and a budget limits the latency.
        """
        if self.timed:
            return self._built(useful)
        try:
            space = self._built(useful)
        except ConfigError:  # nothing is left to search
            return self._built(all_levels)
        widths = any(len(space.levels[name]) > 1 for name in space.unit_names)
        return space if widths else self._built(all_levels)

    def of_table(self, table: LatencyTable) -> SearchSpace:
        """Return the space to search with a table; `LatencyError` when the table lacks one of its widths.

        With `treat_if_faster` it treats layers if the table does. Under a budget of bytes all treatments are searched,
        also those that save bytes alone.
        """
        if self.spec.treat_if_faster and not table.layers:
            return self.widths_alone().of_table(table)
        if not self.efficient:
            space = self._built()
            table.require_space(space.timed())
            return space
        levels = {name: [*map(level_code, of_decision)] for name, of_decision in table.space.levels.items()}
        saving = {*table.layers} if self.stored else set()
        useful = {
            name: [code for code in codes if name in saving or code in table.useful.get(name, ())]
            for name, codes in levels.items()
        }
        return self.narrowed(useful, levels)

    def without_table(self, *, treated: bool) -> SearchSpace:
        """Return the space to search when no latency is known: evenly spaced widths.

        Args:
            treated: whether the target runs treated layers. Where a file treats layers if they are faster, they are
                treated under a budget of bytes, which they save in any case, and dense under all others.
        """
        dense = self.spec.treat_if_faster and not (treated and self.stored)
        return (self.widths_alone() if dense else self).evenly_spaced()

    def evenly_spaced(self) -> SearchSpace:
        """Return a space of evenly spaced widths, for a device that cannot be asked which of them are useful."""
        scanned = self.scanned()
        if not self.efficient:
            return scanned
        useful = {name: [*map(level_code, levels)] for name, levels in scanned.levels.items()}
        return build_space(self.spec, self.units, self.structure_digest, self.name, useful, self.layers)

    def require_target(self, target: Target) -> None:
        """Raise `UsageError` where the file treats layers in any case and the target cannot run such models."""
        if self.spec.treat_if_faster or not self.spec.treatments:
            return
        if any(len(self.profiled().levels[name]) > 1 for name in self.profiled().layer_names):
            target.require_treated_layers()

    def require_zeros(self, schedule: str) -> None:
        """Raise `ConfigError` for a schedule that exchanges zeros, where no level has any."""
        levels = itertools.chain.from_iterable(self.scanned().levels.values())
        if schedule == "one-shot" or any(isinstance(level, Treatment) and level.pattern for level in levels):
            return
        raise ConfigError(
            f"the schedule {schedule} exchanges zeros while models are fine-tuned, and the space {self.name} "
            "has none. Leave out --schedule, or choose a space with zeros, such as unstructured"
        )

    def require_widths(self, scores: str) -> None:
        """Raise `ConfigError` for scores of channels, other than the default, where all widths stay."""
        space = self.scanned()
        if scores == OBS or any(len(space.levels[name]) > 1 for name in space.unit_names):
            return
        raise ConfigError(
            f"scores rank the channels of units, and the space {self.name} keeps all widths; got --scores {scores}. "
            "Leave it out, or choose a space with widths, such as widths"
        )

    def widths_alone(self) -> SpaceFile:
        """Return the space in which all layers are dense."""
        return replace(self, spec=without_treatments(self.spec))

    def _built(self, useful: Useful | None = None) -> SearchSpace:
        return build_space(self.spec, self.units, self.structure_digest, self.file_name, useful, self.layers)
