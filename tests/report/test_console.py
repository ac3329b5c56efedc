from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import pytest
from rich.console import Console

from autoprune.errors import UsageError
from autoprune.report import ConsoleEvents
from autoprune.report.console import LogFile, SeveralEvents
from autoprune.search.time_estimate import Remaining


def shown(*, terminal: bool, seconds_per_look: float = 5.0) -> str:
    stream = io.StringIO()
    clock = itertools.count(step=seconds_per_look).__next__
    with ConsoleEvents(Console(file=stream, force_terminal=terminal, width=100), clock) as events:
        events.remaining(Remaining(seconds=215.0, basis="from 7 finished trials", trials=7, sample_passes=1_234.0))
        events.stage("Search")
        events.note("[x] a fact")
        events.advance(1, 4, "best 0.5")
        events.advance(4, 4, "best 0.25")
        events.advance(4, 4, "best 0.2")
        events.advance(4, 4, "best 0.2")
    return stream.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "Search",
        "  [x] a fact",
        "  4 of 4; about 3 min 20 s left in all (from 7 finished trials); best 0.25",
        "  4 of 4; about 3 min 10 s left in all; best 0.2",
    ]


def test_what_is_over_in_no_time_is_not_worth_a_line() -> None:
    assert shown(terminal=False, seconds_per_look=0.5).splitlines() == ["Search", "  [x] a fact"]


def test_a_bar_in_a_terminal() -> None:
    text = shown(terminal=True)
    assert "\x1b[" in text
    for shown_text in (
        "[x] a fact",
        "4/4",
        "best 0.2",
        "7 trials, 1,234 sample passes",
        "left in all (from 7 finished",
    ):
        assert shown_text in text


def test_a_log_file_has_the_time_of_every_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "search.log"
    for text in ("first " + "long " * 100, "second"):
        with LogFile(path) as log:
            events = SeveralEvents([log.events()])
            events.stage("Search")
            events.note(text)
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in lines)
    assert lines[3].endswith("  second")


def test_a_log_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Give another --log-file"):
        LogFile(tmp_path)
