"""Search spaces: a YAML file and the units of a model give the levels of every unit.

include: ["*"]            # unit names (shell patterns) that take part; default all
exclude: ["stem*"]        # ... but not these
min_keep: 0.125           # smallest and largest share of channels kept
max_keep: 1.0
multiple_of: 8            # levels are multiples of this, and the full width
steps: 8                  # equal steps of the width, rounded up to multiples; default every multiple
levels: [8, 16, 32]       # explicit levels instead (widths)
overrides:                # per pattern, any of the five keys above; later patterns win
  "blocks.0.*": {min_keep: 0.5}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoprune.config import read_yaml, validation_message
from autoprune.errors import ConfigError, unknown_name
from autoprune.records import SearchSpace, Unit, digest_of


class LevelRule(BaseModel):
    """How the levels of some units are made. `None` leaves the value of the enclosing rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_keep: float | None = Field(default=None, gt=0, le=1)
    max_keep: float | None = Field(default=None, gt=0, le=1)
    multiple_of: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    levels: tuple[int, ...] | None = Field(default=None)


class SpaceSpec(LevelRule):
    """Content of a search-space file."""

    description: str = ""
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    overrides: dict[str, LevelRule] = Field(default_factory=dict)


def builtin_spaces() -> dict[str, Path]:
    """Files of the built-in search spaces by name."""
    package = Path(__file__).parent
    folders = [package / "search_spaces", package.parent / "search_spaces"]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def find_space(name_or_path: str) -> Path:
    """Path of a built-in space or of a user's file; an unknown name lists the known ones."""
    known = builtin_spaces()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"no search-space file {name_or_path!r}. Built-in spaces: {', '.join(sorted(known))}.")
    raise unknown_name("space", name_or_path, known)


def load_spec(path: Path) -> SpaceSpec:
    """Read a search-space file; `ConfigError` names the file, the key and the known names."""
    try:
        return SpaceSpec.model_validate(read_yaml(path))
    except ValidationError as error:
        known, nested = SpaceSpec.model_fields, LevelRule.model_fields
        raise ConfigError(validation_message(path, error, known, nested)) from error


def build_space(
    spec: SpaceSpec, units: Sequence[Unit], structure_digest: str, source: object = "search space"
) -> SearchSpace:
    """Levels of every unit; units that do not take part keep their full width as the only level.

    Raises `ConfigError` for a pattern that matches no unit, an empty list of levels, or a space with nothing to search.
    """
    names = [unit.name for unit in units]
    for key, patterns in (("include", spec.include), ("exclude", spec.exclude), ("overrides", spec.overrides)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"{source}: {key}: {pattern!r} matches no unit. Units: {', '.join(names)}.")
    levels = {unit.name: _levels(spec, unit, source) for unit in units}
    if not any(len(found) > 1 for found in levels.values()):
        raise ConfigError(f"{source}: leaves nothing to search: every unit has one level: {levels}")
    key = {"structure": structure_digest, "levels": {name: list(found) for name, found in levels.items()}}
    return SearchSpace(id=digest_of(key), levels=levels)


def _levels(spec: SpaceSpec, unit: Unit, source: object) -> tuple[int, ...]:
    if not _matches(unit.name, spec.include) or _matches(unit.name, spec.exclude):
        return (unit.width,)
    rule: dict[str, Any] = {"min_keep": 0.125, "max_keep": 1.0, "multiple_of": 1, "steps": None, "levels": None}
    rule |= _given(spec)
    for pattern, override in spec.overrides.items():
        if fnmatchcase(unit.name, pattern):
            rule |= _given(override)
    if rule["levels"] is not None:
        found = sorted({level for level in rule["levels"] if level <= unit.width})
    else:
        found = _stepped(unit.width, rule)
    smallest = 0 if unit.removable else 1
    if not found or found[0] < smallest:
        raise ConfigError(
            f"{source}: unit {unit.name!r} (width {unit.width}) needs levels from {smallest} to {unit.width}; "
            f"{rule} gives {list(found) or 'none'}. Change `levels`, `multiple_of` or the keep ratios, or exclude it."
        )
    return tuple(found)


def _stepped(width: int, rule: Mapping[str, Any]) -> list[int]:
    """Multiples between the keep ratios, or those next above equal steps of the width; and the full width."""
    multiple, low, high = rule["multiple_of"], rule["min_keep"] * width, rule["max_keep"] * width
    steps = rule["steps"] or math.ceil(width / multiple)
    size = width / steps if rule["steps"] else multiple
    rounded = {math.ceil(k * size / multiple - 1e-9) * multiple for k in range(1, steps + 1)}
    return sorted({min(w, width) for w in rounded if low <= min(w, width) <= high})


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _given(rule: LevelRule) -> Mapping[str, Any]:
    values = rule.model_dump(include=set(LevelRule.model_fields))
    found = {key: value for key, value in values.items() if value is not None}
    if found.keys() & {"min_keep", "max_keep", "multiple_of", "steps"} and "levels" not in found:
        found["levels"] = None
    return found
