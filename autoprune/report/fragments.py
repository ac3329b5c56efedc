"""Pieces of a page: sections, tables and paragraphs.

Texts are escaped here, but for those that are HTML by their description: bodies, and first cells of `raw_first` tables.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from autoprune.report.plots import Plot


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a heading of its own; `body` is HTML, `plots` are drawn at their places in it."""

    name: str
    title: str
    body: str
    plots: Sequence[Plot] = field(default=())

    def html(self) -> str:
        """Return the section with its heading."""
        name = html.escape(self.name)
        return (
            f'<section id="{name}" aria-labelledby="{name}-title">'
            f'<h2 id="{name}-title">{html.escape(self.title)}</h2>\n{self.body}</section>'
        )


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, raw_first: bool = False) -> str:
    """Return a table that scrolls in its own box; the first cell of a row is its heading.

    Args:
        caption: says what the table holds.
        header: titles of the columns.
        rows: texts of the cells.
        raw_first: the first cell of every row is HTML already.
    """
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first if raw_first else html.escape(first)}</th>{cells}</tr>')
    label = html.escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def paragraphs(lines: Iterable[str]) -> str:
    """Return a paragraph for every line that is not empty."""
    return "".join(f"<p>{html.escape(line)}</p>\n" for line in lines if line)


def missing(text: str) -> str:
    """Return the sentence that stands where a run lacks what a plot needs."""
    return f'<p class="missing">{html.escape(text)}</p>\n'


def pair(plots: Sequence[Plot]) -> str:
    """Return the places of plots, two beside each other where a page is wide."""
    return f'<div class="pair">{"".join(plot.html() for plot in plots)}</div>\n' if plots else ""


def folded(title: str, body: str) -> str:
    """Return a part of a section that is opened on request; `body` is HTML."""
    return f"<details><summary>{html.escape(title)}</summary>\n{body}</details>\n"
