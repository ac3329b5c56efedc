"""In what runs differ: options, target, versions, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.report.fragments import Section, paragraphs, table
from autoprune.report.runview import RunView

_OF_THE_RUN = {"run_id"}
"""Options that differ between any two runs."""


def comparison_section(runs: Sequence[RunView]) -> Section:
    """Return the section that lists everything in which runs differ."""
    values = [_facts(run) for run in runs]
    names = dict.fromkeys(name for of_run in values for name in of_run)
    rows = [
        [name, *(of_run.get(name, "") for of_run in values)]
        for name in names
        if len({of_run.get(name, "") for of_run in values}) > 1
    ]
    header = ["setting", *(run.name for run in runs)]
    body = table("In what the runs differ", header, rows) if rows else paragraphs(["The runs do not differ."])
    if len({of_run.get("target: digest") for of_run in values}) > 1:
        body += paragraphs(["The runs have different targets: compare shares of the dense latency, not milliseconds."])
    return Section(name="comparison", title="What differs", body=body)


def _facts(run: RunView) -> dict[str, str]:
    options = {f"option: {key}": value for key, value in run.config.items() if key not in _OF_THE_RUN}
    made = run.document.get("latency_table", {})
    target: Mapping[str, Any] = made.get("target") or run.table.get("target") or {}
    facts = options | {f"target: {key}": value for key, value in target.items()}
    facts |= {f"version: {key}": value for key, value in run.environment.get("versions", {}).items()}
    facts |= {"python": run.environment.get("python"), "platform": run.environment.get("platform")}
    facts |= {"code and data of the task": run.environment.get("task"), "space": run.document.get("space_id")}
    return {name: _text(value) for name, value in facts.items()}


def _text(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
