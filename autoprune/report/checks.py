"""Tables of `autoprune check`: one row for each stage, and how long a search would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from autoprune.report.durations import duration_text


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Outcome of one stage: whether it works (`None`: could not be tried), its message, and the seconds it took."""

    stage: str
    works: bool | None
    text: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of a search of one effort and budget: at most `sample_passes`, and about `seconds_by_part` of its stages."""

    effort: str
    policies: int
    sample_passes: float
    seconds_by_part: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Seconds of the whole search."""
        return sum(self.seconds_by_part.values())


_WORDS = {True: ("works", "green"), False: ("fails", "red"), None: ("skipped", "yellow")}


def check_header() -> Table:
    """Title and columns of the rows that `check_row` makes."""
    return _checks(title="What works", title_justify="left", title_style="bold")


def check_row(finding: Finding) -> Table:
    """One stage, to be printed when it ends: rows of a table of fixed columns, without its header."""
    table = _checks(show_header=False)
    word, style = _WORDS[finding.works]
    table.add_row(finding.stage, f"[{style}]{word}[/]", f"{finding.seconds:.1f}", Text(finding.text))
    return table


def _checks(**options: Any) -> Table:
    table = Table(show_edge=False, **options)
    table.add_column("stage", no_wrap=True, width=21)
    table.add_column("", no_wrap=True, width=7)
    table.add_column("seconds", justify="right", no_wrap=True, width=7)
    table.add_column("what it says", overflow="fold")
    return table


def basis_line(estimates: Sequence[Estimate], workers: int) -> str:
    """Return a line that says what the time of the smallest effort is for, and on how many workers."""
    parts = [f"{name[:1].lower()}{name[1:]} {duration_text(s)}" for name, s in estimates[0].seconds_by_part.items()]
    return f"{estimates[0].effort}, on {workers} worker{'s' if workers > 1 else ''}: {', '.join(parts)}."


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    """Search time of every effort for one budget at half of the latency."""
    table = Table(title="A search with one budget", title_justify="left", title_style="bold")
    for title in ("effort", "policies", "sample passes", "time in all"):
        table.add_column(title, justify="left" if title == "effort" else "right", no_wrap=True)
    for estimate in estimates:
        passes = f"{estimate.sample_passes:,.0f}"
        table.add_row(estimate.effort, f"{estimate.policies:,}", passes, f"about {duration_text(estimate.seconds)}")
    return table
