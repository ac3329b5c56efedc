"""Values that files of others may hold in place of what belongs there."""

from __future__ import annotations

import copy
import random
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = [0, -1, 10**9, 10**30, 1e308, float("inf"), float("nan"), -0.0, True]
ODD_TEXTS = ["", "\0", "\x1b[2J", "../../etc/passwd", "/dev/zero", "a" * 300, "\ud800", "$HOME", "1e999", "\u202e"]

scalars = st.sampled_from([None, *ODD_NUMBERS, *ODD_TEXTS]) | st.text(max_size=8) | st.integers() | st.floats()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(document: Any, other: Any, choice: random.Random) -> Any:
    """Return a document with one value replaced or, now and then, removed."""
    value, path = copy.deepcopy(document), choice.choice(places(document))
    if not path:
        return other
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    if isinstance(inside, dict) and choice.random() < 0.2:
        del inside[path[-1]]
    else:
        inside[path[-1]] = other
    return value
