from __future__ import annotations

import io
import itertools

from rich.console import Console

from autoprune.report import ConsoleEvents


def shown(*, terminal: bool, seconds_per_look: float = 5.0) -> str:
    stream = io.StringIO()
    clock = itertools.count(step=seconds_per_look).__next__
    with ConsoleEvents(Console(file=stream, force_terminal=terminal, width=100), clock) as events:
        events.stage("Search")
        events.note("[x] a fact")
        events.advance(1, 4, "best 0.5")
        events.advance(4, 4, "best 0.25")
    return stream.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == ["Search", "  [x] a fact", "  4 of 4, about 0 s left  best 0.25"]


def test_what_is_over_in_no_time_is_not_worth_a_line() -> None:
    assert shown(terminal=False, seconds_per_look=0.5).splitlines() == ["Search", "  [x] a fact"]


def test_a_bar_in_a_terminal() -> None:
    text = shown(terminal=True)
    assert "\x1b[" in text
    assert "[x] a fact" in text
