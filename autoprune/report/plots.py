"""Plots as plain values for plotly.js, whose script is a file of the plotly package.

Importing plotly itself takes 0.3 s of CPU time, more than all else that a page needs.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FRONT, UNIFORM, INT8, DENSE, OTHER = "#2f81f7", "#bf8700", "#8957e5", "#6e7781", "#1a9c82"
RUN_COLORS = (FRONT, "#d1570a", OTHER, INT8, "#d6409f", UNIFORM)
"""All can be told from white and from near black (contrast of at least 3): plots have no ground of their own."""

_SCRIPT = "plotly.min.js"
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Characters that could end the script that holds a value, as JSON writes them otherwise."""

_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Traces and layout in the terms of plotly.js (https://plotly.com/javascript/reference).

    `name` is unique in a page, `label` says in a sentence what is drawn, for those who do not see it. `caption` stands
    under the plot as text.
    """

    name: str
    label: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    caption: str = ""

    def html(self) -> str:
        """Return the place of the plot; the script of the page draws into it what `to_json` holds."""
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure><div class="plot" id="{html.escape(self.name)}" role="img" '
            f'aria-label="{html.escape(self.label)}" style="height:{int(self.layout["height"])}px"></div>{caption}'
            "</figure>"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what plotly.js is given."""
        return {"traces": self.traces, "layout": self.layout}


@cache
def packed_plotly() -> str:
    """Return plotly.js as gzip in base64: 2 MB instead of 4.8 MB; `find_spec` does not import the package."""
    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("plots need the package plotly, which is not installed: `pip install plotly`")
    script = (Path(package.origin).parent / "package_data" / _SCRIPT).read_bytes()
    return base64.b64encode(gzip.compress(script, mtime=0)).decode("ascii")


def script_json(value: Any) -> str:
    """Return JSON that may stand in a script; numbers that are not finite are `null`, which is not drawn.

    Numbers have six digits: more cannot be seen in a plot.
    """
    text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def finite(value: Any) -> Any:
    """Return a JSON value with numbers of six digits; those that are not finite are `None`."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
