"""Plots as plain values for plotly.js, whose script and style are files of the plotly package.

Importing plotly itself takes 0.3 s of CPU time, more than all else that a page needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SCRIPT, _STYLE = "plotly.min.js", "templates/simple_white.json"
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Characters that could end the script that holds a plot, as JSON writes them otherwise."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Traces and layout in the terms of plotly.js (https://plotly.com/javascript/reference)."""

    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]

    def html(self) -> str:
        """Return the plot as a part of a page, with all of plotly.js: a page has one plot."""
        traces = _json(self.traces)
        layout = _json({"template": json.loads(_package_file(_STYLE))} | dict(self.layout))
        return (
            f"<script>{_package_file(_SCRIPT)}</script>\n"
            f'<div id="plot" style="height: {self.layout["height"]}px"></div>\n'
            f'<script>Plotly.newPlot("plot", {traces}, {layout}, {{"responsive": true}})</script>'
        )


@cache
def _package_file(name: str) -> str:
    """Return the text of a file of the plotly package; `find_spec` does not import it."""
    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("plots need the package plotly, which is not installed: `pip install plotly`")
    return (Path(package.origin).parent / "package_data" / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """Return JSON that may stand in a script; numbers that are not finite are `null`, which is not drawn."""
    text = json.dumps(_finite(value), allow_nan=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
