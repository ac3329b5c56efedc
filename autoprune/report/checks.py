"""Tables of `autoprune check`: one row for each stage, and how long a search would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Outcome of one stage: whether it works (`None`: could not be tried), its message, and the seconds it took."""

    stage: str
    works: bool | None
    text: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of a search of one effort and budget: at most `sample_passes`, and about `seconds`."""

    effort: str
    policies: int
    sample_passes: float
    seconds: float


_WORDS = {True: ("works", "green"), False: ("fails", "red"), None: ("skipped", "yellow")}


def check_header() -> Table:
    """Title and columns of the rows that `check_row` makes."""
    return _checks(title="What works", title_justify="left", title_style="bold")


def check_row(finding: Finding) -> Table:
    """One stage, to be printed when it ends: rows of a table of fixed columns, without its header."""
    table = _checks(show_header=False)
    word, style = _WORDS[finding.works]
    table.add_row(finding.stage, f"[{style}]{word}[/]", Text(finding.text), f"{finding.seconds:.1f}")
    return table


def _checks(**options: Any) -> Table:
    table = Table(expand=True, show_edge=False, **options)
    table.add_column("stage", no_wrap=True, width=21)
    table.add_column("", no_wrap=True, width=7)
    table.add_column("what it says", overflow="fold", ratio=1)
    table.add_column("seconds", justify="right", no_wrap=True, width=7)
    return table


def basis_line(seconds_per_pass: float, workers: int, table_seconds: float) -> str:
    """Return a line that says how the search times were computed."""
    table = f"; the latency table comes on top, about {_duration(table_seconds)}" if table_seconds else ""
    return (
        f"Search time: sample passes times {seconds_per_pass * 1e3:.3g} ms, measured on one thread here, over "
        f"{workers} worker(s){table}."
    )


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    """Search time of every effort for one budget at half of the latency."""
    table = Table(title="A search with one budget", title_justify="left", title_style="bold")
    for title in ("effort", "policies", "sample passes", "time"):
        table.add_column(title, justify="left" if title == "effort" else "right")
    for estimate in estimates:
        passes = f"{estimate.sample_passes:,.0f}"
        table.add_row(estimate.effort, str(estimate.policies), passes, _duration(estimate.seconds))
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
