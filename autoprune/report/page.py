"""The frame of a page: one file that needs no network and no other file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from autoprune.report.fragments import Section
from autoprune.report.plots import packed_plotly, script_json

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src {connect}; base-uri 'none'; form-action 'none'"
)
"""Content security policy: a page loads nothing; a served one asks its own server alone."""


def page(
    title: str,
    introduction: Sequence[str],
    sections: Sequence[Section],
    models: Sequence[Mapping[str, Any]] = (),
    *,
    live: Mapping[str, Any] | None = None,
) -> str:
    """Return a page.

    Args:
        title: heading of the page.
        introduction: paragraphs below it.
        sections: parts of the page, in order.
        models: what a budget can pick, as `models_json` makes it.
        live: what the page of a server asks for changes with; `None` for a page that stays as it is.
    """
    policy = _POLICY.format(connect="'self'" if live else "'none'")
    state = script_json({**page_state(introduction, sections, models, bodies=live is not None), "live": live})
    text = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
        f'<header><h1>{text}</h1>\n<div id="introduction">{_paragraphs(introduction)}</div>\n'
        "<noscript><p>Plots and the choice of a model need JavaScript; tables and cards do not.</p></noscript>\n"
        '<p id="status" role="status"></p>\n</header>\n<main>\n'
        + "\n".join(section.html() for section in sections)
        + f'\n</main>\n<script type="application/json" id="state">{state}</script>\n'
        f'<script type="text/plain" id="packed-plotly">{packed_plotly()}</script>\n'
        f"<script>\n{_asset('drawing.js')}\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def page_state(
    introduction: Sequence[str],
    sections: Sequence[Section],
    models: Sequence[Mapping[str, Any]],
    *,
    bodies: bool = False,
) -> dict[str, Any]:
    """Return all of a page that can change, as a JSON value.

    Args:
        introduction: paragraphs below the heading.
        sections: parts of the page.
        models: what a budget can pick.
        bodies: add the HTML of everything, which the first state of a page has already.
    """
    state: dict[str, Any] = {
        "models": list(models),
        "plots": {plot.name: plot.to_json() for section in sections for plot in section.plots},
    }
    if bodies:
        state["sections"] = {section.name: section.html() for section in sections}
        state["introduction"] = _paragraphs(introduction)
    return state


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


@cache
def _asset(name: str) -> str:
    return (files("autoprune.report") / "assets" / name).read_text(encoding="utf-8")
