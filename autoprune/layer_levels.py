"""Levels of layers: the treatments that the texts of a search-space file stand for, by patterns of layer names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from autoprune.errors import ConfigError, PolicyError
from autoprune.sparsity.thresholds import Threshold
from autoprune.treatments import (
    DENSE,
    INT8,
    INT8_DYNAMIC,
    PRECISIONS,
    Layer,
    Level,
    Treatment,
    replaces,
    sorted_treatments,
    timed_code,
)

ANY_RANK = "rank:*"
ANY_SHARE = "sparse:*"
_SHARES = ("50%", "75%", "87.5%", "95%", "98%")
"""Shares of zeros that `sparse:*` stands for."""

_FINE_SHARES = (
    "50%", "60%", "70%", "75%", "80%", "84%", "87.5%", "90%", "92%", "94%", "95%", "96%", "97%", "97.5%", "98%",
    "98.5%", "99%",
)  # fmt: skip
_LARGE = 0.1
"""Layers with this share of the weights or more, of which there are 10 at most, have finer steps: theirs are the large
ones of the whole model."""

_SOME_SHARE = "sparse:50%"
"""Stands for a threshold where a text is only checked."""

_ALL = "*"

_SHOWN = 3
"""Layers that a message names."""


def require_readable(texts_of: Mapping[str, Sequence[str]]) -> None:
    """Raise `ValueError` unless the treatments of every pattern of layer names can be read, fp32 among them."""
    for pattern, texts in texts_of.items():
        try:
            levels = [level for text in texts for level in _with_any_share(text.replace(ANY_RANK, "rank:1"))]
        except PolicyError as error:
            raise ValueError(f"{pattern!r}: {error}") from error
        if DENSE not in levels or len(set(texts)) < len(texts):
            raise ValueError(
                f"treatments of {pattern!r} are distinct precisions ({', '.join(PRECISIONS)}), ranks (rank:24, "
                f"rank:*, int8+rank:24) and patterns of zeros (sparse:80%, sparse:*, 2:4, threshold:0.01), and fp32 "
                f"is one of them; got {', '.join(texts) or 'none'}"
            )


def layer_levels(
    texts_of: Mapping[str, Sequence[str]],
    layers: Sequence[Layer],
    source: object,
    useful: Mapping[str, Sequence[int]] | None,
) -> dict[str, tuple[Level, ...]]:
    """Return the treatments of the layers that some pattern names, in the order of the layers.

    Args:
        texts_of: treatments as they are written, by patterns of layer names; later patterns win.
        layers: of the model.
        source: the file, for messages.
        useful: codes of the treatments that pay on a latency table, by layer; those with zeros are as useful as the
            same without.

    Raises:
        ConfigError: for a pattern that names no layer, one whose layers a later pattern decides about, or a treatment
            that no layer that it names can have ("*" may list treatments for layers that the model lacks).
    """
    for pattern in texts_of if layers else ():
        if not any(_names(layer, pattern) for layer in layers):
            known = ", ".join(dict.fromkeys(layer.module for layer in layers))
            raise ConfigError(f"{source}: treatments: {pattern!r} matches no layer. Layers: {known}.")
        _require_effect(pattern, texts_of, layers, source)
        _require_precisions(pattern, texts_of[pattern], layers, source)
        _require_ranks(pattern, texts_of[pattern], layers, source)
        _require_divided(pattern, texts_of[pattern], layers, source)
    levels: dict[str, tuple[Level, ...]] = {}
    large = _LARGE * sum(map(_numbers, layers))
    for layer in layers:
        shares = _FINE_SHARES if _numbers(layer) >= large else _SHARES
        wanted: tuple[Treatment, ...] = ()
        for pattern, texts in texts_of.items():
            if _names(layer, pattern):
                wanted = tuple(treatment for text in texts for treatment in _read(text, layer, shares))
        possible = dict.fromkeys(treatment for treatment in wanted if layer.allows(treatment))
        if len(possible) > 1:  # a layer none of whose treatments pays stays, with one level: a table has its column
            pays = None if useful is None else {*map(timed_code, useful.get(layer.name, ()))}
            levels[layer.name] = sorted_treatments(
                t for t in possible if t == DENSE or pays is None or t.timed.code in pays
            )
    return levels


def _require_effect(pattern: str, texts_of: Iterable[str], layers: Sequence[Layer], source: object) -> None:
    """Raise `ConfigError` for a pattern that is contradicted by a later one, which names all its layers."""
    if pattern == _ALL:
        return
    patterns, named = [*texts_of], [layer for layer in layers if _names(layer, pattern)]
    for later in patterns[patterns.index(pattern) + 1 :]:
        if all(_names(layer, later) for layer in named):
            raise ConfigError(
                f"{source}: treatments: {pattern!r} has no effect, because {later!r} below it names its layers, too, "
                f"and later patterns win; got {', '.join(patterns)}. Write {pattern!r} last, or leave it out"
            )


def _require_precisions(pattern: str, texts: Iterable[str], layers: Sequence[Layer], source: object) -> None:
    """Raise `ConfigError` for a precision that no layer can have of those that a pattern names, unless that is all."""
    named = [layer for layer in layers if _names(layer, pattern)]
    possible = [precision for precision in PRECISIONS if any(precision in layer.precisions for layer in named)]
    for text in texts if pattern != _ALL else ():
        treatment = _with_any_share(text.replace(ANY_RANK, "rank:1"))[0]
        if not any(_in_own_int8(treatment, layer).precision in layer.precisions for layer in named):
            kinds = ", ".join([*dict.fromkeys(f"{layer.module} ({layer.op})" for layer in named)][:_SHOWN])
            raise ConfigError(
                f"{source}: treatments: {pattern!r}: {kinds} can be {', '.join(possible)}; got {text}. Leave it out"
            )


def _require_ranks(pattern: str, texts: Iterable[str], layers: Sequence[Layer], source: object) -> None:
    """Raise `ConfigError` for a rank above the full one of every layer that a pattern names, or that shrinks none."""
    named = [layer for layer in layers if _names(layer, pattern)]
    full = max(min(layer.matrix) for layer in named)
    for text in texts:
        rank = 0 if ANY_RANK in text or ANY_SHARE in text else Treatment.parse(_without_thresholds(text, None)).rank
        if rank > full:
            why = f"the largest full rank of these layers is {full}" if full else "none of these layers can be factors"
            raise ConfigError(f"{source}: treatments: {pattern!r}: {why}; got {text}. Write a lower rank, or rank:*")
        if rank and not any(replaces(rank, *layer.matrix) for layer in named):
            most = max(layer.largest_rank for layer in named)
            raise ConfigError(
                f"{source}: treatments: {pattern!r}: two factors of a rank above {most} have no fewer numbers than the "
                f"weight of any of these layers; got {text}. "
                + ("Write a lower rank, or rank:*" if most > 0 else "Leave it out")
            )


def _require_divided(pattern: str, texts: Iterable[str], layers: Sequence[Layer], source: object) -> None:
    """Raise `ConfigError` for blocks or groups that divide no layer that a pattern names."""
    named = [layer for layer in layers if _names(layer, pattern)]
    for zeros in (level.pattern for text in texts if ANY_RANK not in text for level in _with_any_share(text)):
        if zeros is not None and not any(layer.divided_by(zeros) for layer in named):
            shapes = ", ".join(f"{layer.module} {'x'.join(map(str, layer.shapes[0]))}" for layer in named[:_SHOWN])
            raise ConfigError(
                f"{source}: treatments: {pattern!r}: {zeros} has blocks of {zeros.block[0]} outputs and "
                f"{zeros.block[1] * max(zeros.of, 1)} consecutive inputs, and no such layer can be divided into them "
                f"({shapes}). Write smaller ones, or sparse:50%"
            )


def _numbers(layer: Layer) -> int:
    return sum(map(math.prod, layer.shapes))


def _with_any_share(text: str, shares: Sequence[str] = _SHARES) -> list[Treatment]:
    """Return the treatments that a text without any rank stands for."""
    text = _without_thresholds(text, None)
    texts = [text.replace(ANY_SHARE, f"sparse:{share}") for share in shares] if ANY_SHARE in text else [text]
    return [Treatment.parse(each) for each in texts]


def _without_thresholds(text: str, layer: Layer | None) -> str:
    """Return a treatment with the share of a layer's weights that a threshold makes zero in the place of it.

    Without a layer that has weights, any share stands for it.
    """
    parts: list[str] = []
    for part in text.split("+"):
        threshold = Threshold.parse(part)
        if threshold is None:
            parts.append(part)
        elif layer is None or layer.magnitudes is None:
            parts.append(_SOME_SHARE)
        elif pattern := threshold.pattern_of(layer.magnitudes()):
            parts.append(str(pattern))
    return "+".join(parts) or str(DENSE)


def _read(text: str, layer: Layer, shares: Sequence[str]) -> list[Treatment]:
    """Return the treatments that a text stands for: with any rank, those that are worth measuring for the layer."""
    texts = [text.replace(ANY_RANK, f"rank:{rank}") for rank in layer.ranks] if ANY_RANK in text else [text]
    read = [treatment for each in texts for treatment in _with_any_share(_without_thresholds(each, layer), shares)]
    return [_in_own_int8(treatment, layer) for treatment in read]


def _in_own_int8(treatment: Treatment, layer: Layer) -> Treatment:
    """Return a treatment with the form of int8 that the layer has: recurrent layers have the dynamic one alone."""
    own = {INT8.precision, INT8_DYNAMIC.precision}.intersection(layer.precisions)
    if treatment.precision == INT8.precision and own == {INT8_DYNAMIC.precision}:
        return replace(treatment, precision=INT8_DYNAMIC.precision)
    return treatment


def _names(layer: Layer, pattern: str) -> bool:
    return fnmatchcase(layer.module, pattern) or fnmatchcase(layer.name, pattern)
