"""A check without a terminal says what it does when a stage takes long."""

from __future__ import annotations

import io
import time

from rich.console import Console

from autoprune.cli.stages import Stages


def test_a_long_stage_says_so_and_a_short_one_does_not() -> None:
    stream = io.StringIO()
    with Stages(Console(file=stream, width=100), silent_s=0.1) as stages:
        stages.begin("dense model")
        stages.end("dense model works")
        stages.begin("trace and units")
        time.sleep(0.35)
        stages.end("trace and units works")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "dense model works"
    assert lines[-1] == "trace and units works"
    assert len(lines) > 2
    assert all(line.startswith("trace and units ... for ") for line in lines[1:-1])


def test_a_terminal_shows_the_stage_that_runs() -> None:
    stream = io.StringIO()
    with Stages(Console(file=stream, width=100, force_terminal=True)) as stages:
        stages.begin("ONNX export")
        time.sleep(0.3)
        stages.end("ONNX export works")
    assert "ONNX export ... 0 s" in stream.getvalue()
    assert "ONNX export works" in stream.getvalue()
