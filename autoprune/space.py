"""Search spaces: a YAML file and the units of a model give the levels of every unit.

include: ["*"]            # unit names (shell patterns) that take part; default all
exclude: ["stem*"]        # ... but not these
min_keep: 0.125           # smallest and largest share of channels kept
max_keep: 1.0
levels: efficient         # the widths that no larger one beats on the measured latency table (at most `steps`, 8)
levels: [8, 16, 32]       # or explicit widths, without the keep ratios, `multiple_of` and `steps` in the same rule
multiple_of: 8            # or, for devices without a table: multiples of this, and the full width; also of `efficient`
steps: 8                  # ... in equal steps of the width, rounded up to multiples; default every multiple
removable: true           # also width 0 where that removes a residual branch (default); a list of widths says it itself
overrides:                # per pattern, any of the six keys above; later patterns win
  "blocks.0.*": {min_keep: 0.5}
treatments:               # levels of layers, by patterns of their names; later patterns win; without it all are dense
  "*": [fp32, int8]       # for layers without static int8, such as LSTMs, int8 is int8-dynamic
  "blocks.*": [fp32, "rank:*", "int8+rank:24"] # two factors for a weight: a few ranks that fit each layer, or this one
  "fc*": [fp32, "sparse:*", "2:4", "int8+sparse:80%"] # zeros among weights: a few shares; N:M; this share
  "head": [fp32]          # the name of a layer's module, or of its weight
treat_if_faster: true     # all layers are dense where treated models are measured to be no faster; default false
vocabulary: true          # rows of embeddings whose ids the training data never use go before all else; default false
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from autoprune.config_file import Texts, as_list, read_yaml, validation_message, without_booleans
from autoprune.errors import ConfigError, unknown_name
from autoprune.layer_levels import layer_levels, require_readable
from autoprune.records import SearchSpace, Unit, digest_of
from autoprune.treatments import Layer, Level, level_to_json

EFFICIENT = "efficient"
_MOST_CANDIDATES = 32
_EFFICIENT_STEPS = 8
_WIDTH_KEYS = ("min_keep", "max_keep", "multiple_of", "steps")
_DEFAULTS = {"min_keep": 0.125, "max_keep": 1.0, "removable": True}

Useful = Mapping[str, Sequence[int]]
"""Widths of every unit, and codes of the treatments of every layer, that pay on a latency table."""


class LevelRule(BaseModel):
    """Rule that gives the levels of some units. `None` leaves the value of the enclosing rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_keep: float | None = Field(default=None, gt=0, le=1)
    max_keep: float | None = Field(default=None, gt=0, le=1)
    multiple_of: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    levels: Annotated[tuple[int, ...], BeforeValidator(as_list)] | Literal["efficient"] | None = Field(default=None)
    removable: bool | None = Field(default=None)

    @field_validator(*_WIDTH_KEYS, "levels", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return without_booleans(value)

    @field_validator("levels", mode="before")
    @classmethod
    def _widths(cls, value: Any) -> Any:
        """Refuse anything but widths or `efficient` in one sentence, where pydantic names both types."""
        widths = as_list(value)
        named = value is None or value == EFFICIENT
        if not named and not (isinstance(widths, (list, tuple)) and all(map(_is_width, widths))):
            raise ValueError(f"levels are whole numbers of channels, such as [8, 16], or {EFFICIENT}; got {value!r}")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        beside = [key for key in _WIDTH_KEYS if getattr(self, key) is not None]
        if isinstance(self.levels, tuple) and beside:
            raise ValueError(
                f"explicit `levels` are taken as they are: leave out {', '.join(beside)}, or the levels; "
                f"got both in one rule, levels {list(self.levels)}"
            )
        return self


class SpaceSpec(LevelRule):
    """Content of a search-space file."""

    description: str = ""
    include: Texts = ("*",)
    exclude: Texts = ()
    overrides: dict[str, LevelRule] = Field(default_factory=dict)
    treatments: dict[str, Texts] = Field(default_factory=dict)
    treat_if_faster: bool = False
    vocabulary: bool = False

    @field_validator("treatments", mode="before")
    @classmethod
    def _by_pattern(cls, value: Any) -> Any:
        shown = value.items() if isinstance(value, dict) else [(None, None)]
        for pattern, texts in shown:
            listed = as_list(texts)
            right = isinstance(listed, (list, tuple)) and all(isinstance(text, str) for text in listed)
            if not (isinstance(pattern, str) and right):
                raise ValueError(
                    'treatments are texts by patterns of layer names, such as {"*": [fp32, int8]}; '
                    f"got {value if pattern is None else {pattern: texts}!r}"
                )
        return value

    @model_validator(mode="after")
    def _treats(self) -> Self:
        if self.treat_if_faster and not self.treatments:
            raise ValueError(
                "treat_if_faster says when the layers of `treatments` are treated; got it alone. Leave it out, or add "
                "treatments"
            )
        return self

    @field_validator("treatments")
    @classmethod
    def _readable(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        require_readable(value)
        return value


def _is_width(value: object) -> bool:
    """Return whether pydantic reads a value as a whole number."""
    return isinstance(value, Integral) or str(value).removeprefix("-").isdecimal()


def builtin_spaces() -> dict[str, Path]:
    """Return the files of the built-in search spaces by name."""
    package = Path(__file__).parent
    folders = [package / "search_spaces", package.parent / "search_spaces"]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def find_space(name_or_path: str) -> Path:
    """Return the path of a built-in space or of a user's file; the error for an unknown name lists the known ones."""
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


def without_treatments(spec: SpaceSpec) -> SpaceSpec:
    """Return a space in which all layers are dense."""
    return spec.model_copy(update={"treatments": {}, "treat_if_faster": False})


def needs_table(spec: SpaceSpec) -> bool:
    """Return whether some levels of a space come from a latency table."""
    return EFFICIENT in (spec.levels, *(rule.levels for rule in spec.overrides.values()))


def build_space(
    spec: SpaceSpec,
    units: Sequence[Unit],
    structure_digest: str,
    source: object = "search space",
    useful: Useful | None = None,
    layers: Sequence[Layer] = (),
) -> SearchSpace:
    """Build a search space: units that do not take part keep their full width as the only level.

    `efficient` levels are the `useful` widths. Without a latency table they are the widths that a table should scan: at
    most 32 a unit, in steps of a power of two.

    Args:
        spec: content of a search-space file.
        units: units of the model.
        structure_digest: names the structure; a part of the space's `id`.
        source: the file, for messages.
        useful: what pays on the latency table: widths by unit that no larger width beats, and codes of treatments by
            layer.
        layers: layers of the model; those that a pattern of `treatments` names become decisions.

    Raises:
        ConfigError: for a pattern that matches no unit, an empty list of levels, or a space with nothing to search.
    """
    names = [unit.name for unit in units]
    for key, patterns in (("include", spec.include), ("exclude", spec.exclude), ("overrides", spec.overrides)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"{source}: {key}: {pattern!r} matches no unit. Units: {', '.join(names)}.")
    levels: dict[str, tuple[Level, ...]] = {unit.name: _levels(spec, unit, source, useful) for unit in units}
    levels |= layer_levels(spec.treatments, layers, source, useful)
    if not any(len(of_decision) > 1 for of_decision in levels.values()):
        why = (
            " (no smaller width of any unit that the rules allow is measurably faster on this target; `levels` of its "
            "own searches all)"
        )
        why = why if useful else ""
        raise ConfigError(f"{source}: leaves nothing to search: every unit has one level{why}: {levels}")
    key = {"structure": structure_digest, "levels": {name: [*map(level_to_json, ls)] for name, ls in levels.items()}}
    return SearchSpace(id=digest_of(key), levels=levels)


def _levels(spec: SpaceSpec, unit: Unit, source: object, useful: Useful | None) -> tuple[int, ...]:
    if not _matches(unit.name, spec.include) or _matches(unit.name, spec.exclude):
        return (unit.width,)
    rule: dict[str, Any] = dict.fromkeys(LevelRule.model_fields) | _DEFAULTS
    rule |= _given(spec, rule)
    for pattern, override in spec.overrides.items():
        if fnmatchcase(unit.name, pattern):
            rule |= _given(override, rule)
    if rule["levels"] == EFFICIENT:
        levels = _efficient(unit, rule, useful)
    elif rule["levels"] is not None:
        levels = sorted({level for level in rule["levels"] if level <= unit.width})
    else:
        levels = _stepped(unit.width, rule)
    smallest = 0 if unit.removable else 1
    if levels and unit.removable and rule["removable"] and not isinstance(rule["levels"], tuple):
        levels = [0, *levels]
    if not levels or levels[0] < smallest:
        raise ConfigError(
            f"{source}: unit {unit.name!r} (width {unit.width}) needs levels from {smallest} to {unit.width}; "
            f"{rule} gives {list(levels) or 'none'}. Change `levels`, `multiple_of` or the keep ratios, or exclude it."
        )
    return tuple(levels)


def _stepped(width: int, rule: Mapping[str, Any]) -> list[int]:
    """Return multiples between the keep ratios, or those next above equal steps of the width; and the full width."""
    multiple, low, high = rule["multiple_of"] or 1, rule["min_keep"] * width, rule["max_keep"] * width
    steps = rule["steps"] or math.ceil(width / multiple)
    size = width / steps if rule["steps"] else multiple
    rounded = {math.ceil(k * size / multiple - 1e-9) * multiple for k in range(1, steps + 1)}
    return sorted({min(w, width) for w in rounded if low <= min(w, width) <= high})


def _efficient(unit: Unit, rule: Mapping[str, Any], useful: Useful | None) -> list[int]:
    """Return the useful widths between the keep ratios, thinned to `steps`; or the widths that a table should scan.

    Useful widths that are no multiples of `multiple_of` are left out: a table of another space may have such.
    """
    width, low, high = unit.width, rule["min_keep"] * unit.width, rule["max_keep"] * unit.width
    if useful is None:
        step = rule["multiple_of"] or 2 ** max(0, math.ceil(math.log2(width / _MOST_CANDIDATES)))
        return sorted({w for w in (*range(step, width + 1, step), width) if low <= w <= high})
    multiple = rule["multiple_of"] or 1
    inside = [w for w in useful[unit.name] if low <= w <= high and (w % multiple == 0 or w == width)]
    count = min(rule["steps"] or _EFFICIENT_STEPS, len(inside))
    last = len(inside) - 1
    return sorted({inside[round(i * last / max(count - 1, 1))] for i in range(count)} | set(inside[-1:]))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _given(rule: LevelRule, before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys that a rule sets; a rule that describes levels replaces explicit ones of the enclosing rule."""
    values = rule.model_dump(include=set(LevelRule.model_fields))
    given = {key: value for key, value in values.items() if value is not None}
    if given.keys() & set(_WIDTH_KEYS) and before["levels"] != EFFICIENT:
        given.setdefault("levels", None)
    return given
