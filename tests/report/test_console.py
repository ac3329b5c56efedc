from __future__ import annotations

import io

from rich.console import Console

from autoprune.report import ConsoleEvents


def shown(*, terminal: bool) -> str:
    stream = io.StringIO()
    with ConsoleEvents(Console(file=stream, force_terminal=terminal, width=100)) as events:
        events.stage("Search")
        events.note("[x] a fact")
        events.advance(1, 4, "best 0.5")
        events.advance(4, 4, "best 0.25")
    return stream.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    assert shown(terminal=False).splitlines() == ["Search", "  [x] a fact", "  4 of 4, about 0 s left  best 0.25"]


def test_a_bar_in_a_terminal() -> None:
    text = shown(terminal=True)
    assert "\x1b[" in text
    assert "[x] a fact" in text
