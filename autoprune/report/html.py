"""A self-contained page of one run, or of several beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoprune.budgets import ScoreBudget, parse_budget
from autoprune.errors import BudgetError
from autoprune.report.amounts import shown_bytes
from autoprune.report.cards import card, kind_text, model_header, model_rows
from autoprune.report.comparison import comparison_section
from autoprune.report.fragments import Section, missing, paragraphs, table
from autoprune.report.front_plot import front_plot, is_measured, model_key
from autoprune.report.headline import headline_of, headlines, noise_lines, place_of_dense
from autoprune.report.lines import form_lines, layer_lines, score_budget_lines
from autoprune.report.page import page
from autoprune.report.runview import RunView
from autoprune.report.search_plots import search_section, trouble_section
from autoprune.report.table_plots import device_section
from autoprune.report.tables import shown_ms
from autoprune.runfolder import write_atomic

_LIMITED = {"latency": "latency", "score": "score", "bytes": "weight bytes"}
"""Texts of what a budget of the page can limit."""

_CONTROLS = """<div id="controls" class="controls" role="group" aria-label="Choice of a model" hidden>
<label>Budget by <select id="budget-by">{options}</select></label>
<label class="wide">Budget <input id="budget" type="range" min="0" max="1000" step="1" value="1000"></label>
<label>or a model <select id="model"></select></label>
<label>Latency axis <select id="x-scale"><option value="linear">linear</option>
<option value="log">logarithmic</option></select></label>
<label>Latency in <select id="x-unit"><option value="time">{unit}</option>
<option value="share">shares of dense</option></select></label>
<label>Score of <select id="score-of"><option value="validation">validation data</option>
<option value="test">test data</option></select></label>
<output id="budget-text" for="budget budget-by">Move the budget to pick a model.</output>
</div>
"""


def write_report(runs: Sequence[RunView], path: Path) -> Path:
    """Write the page of one or several runs, atomically; it needs no network and no other file."""
    title, introduction, sections, models = report_parts(runs)
    write_atomic(path, page(title, introduction, sections, models).encode())
    return path


def report_parts(runs: Sequence[RunView]) -> tuple[str, list[str], list[Section], list[dict[str, Any]]]:
    """Return the title, the introduction, the sections and the models of the page of some runs."""
    several, runs = len(runs) > 1, in_one_unit(named_apart(runs))
    sections = [_front_section(runs), _card_section(runs)]
    if several:
        sections.insert(1, comparison_section(runs))
    for number, run in enumerate(runs):
        prefix, of = (f"run{number}-", f" of {run.name}") if several else ("", "")
        sections += [
            search_section(run, prefix, f"The search{of}"),
            device_section(run, prefix, f"The model on the target{of}"),
            trouble_section(run, prefix, f"What was slow and what failed{of}"),
            _about_section(run, prefix, f"About the run{of}"),
        ]
    names = ", ".join(run.name for run in runs)
    task, target = Path(str(runs[0].config["task"])).name, runs[0].config["target"]
    title = f"Runs {names}" if several else f"{task} on {target}"
    lines = [(f"{run.name}: " if several else "") + line for run in runs for line in introduction(run)]
    return title, lines, sections, models_json(runs)


def named_apart(runs: Sequence[RunView]) -> list[RunView]:
    """Return runs with a name each: that of the folder, its path where folders share a name, or a number with it."""
    names = Counter(run.name for run in runs)
    named = [run if names[run.name] == 1 else replace(run, title=str(run.path)) for run in runs]
    seen: Counter[str] = Counter()
    for number, run in enumerate(named):
        seen[run.name] += 1
        if seen[run.name] > 1:
            named[number] = replace(run, title=f"{run.name} ({seen[run.name]})")
    return named


def in_one_unit(runs: Sequence[RunView]) -> list[RunView]:
    """Return runs whose latencies are all shown in the coarsest of their units."""
    unit = min((run.unit for run in runs), key=lambda each: each.per_ms)
    return [replace(run, page_unit=unit) for run in runs]


def introduction(run: RunView) -> list[str]:
    """Return sentences about what a run reached: for each budget, or for its first model; or how far it is."""
    if not run.document:
        return [f"The run has no front yet: {len(run.scored)} scores of policies so far."]
    noise, model = noise_lines(run.document), first_model(run)
    if lines := headlines(run.document, run.unit):
        return [*noise, *lines]
    if model is None:
        return [*noise, "No fine-tuned model meets its budget."]
    return [*noise, f"Only uniform widths meet a budget: {headline_of(run.document, model, run.unit)}"]


def first_model(run: RunView) -> Mapping[str, Any] | None:
    """Return the model that a page begins with; `None` without a front.

    The fastest of the front whose score on test data may be as good as the dense one's: the dense score does not lie
    above its 95 % interval. Where there is none, or scores have no intervals, the one with the highest score on
    validation data.
    """
    front = run.document.get("models", ())
    equal = [model for model in front if place_of_dense(run.document, model) in ("below", "within")]
    if equal:
        return min(equal, key=lambda m: (m["latency_ratio"], -m["score"]))
    return max(front, key=lambda m: (m["score"], -m["latency_ratio"]), default=None)


def models_json(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """Return the models that a budget can pick: those of the front first, then the others."""
    return [
        {
            "key": model_key(run, model),
            "label": (f"{run.name}, " if len(runs) > 1 else "") + _label(run, kind, model),
            "latency": run.unit.per_ms * shown_ms(model),
            "unit": run.unit.name,
            "share": model["latency_ratio"],
            "score": model["score"],
            "test_score": model["test_score"],
            "bytes": model["bytes"],
            "is_first": model is first_model(run),
        }
        for run in runs
        for kind, model in run.models
    ]


def _label(run: RunView, kind: str, model: Mapping[str, Any]) -> str:
    size, time = shown_bytes(model["bytes"]), run.unit.shown(shown_ms(model))
    return f"{model['digest']} ({kind_text(kind, model)}): {model['score']:.4f}, {time}, {size}"


def _front_section(runs: Sequence[RunView]) -> Section:
    plot = front_plot(runs)
    body = _CONTROLS.format(options=_budget_options(runs), unit=runs[0].unit.name) + plot.html()
    for run in runs:
        if run.document:
            caption = "Models" + (f" of {run.name}" if len(runs) > 1 else "")
            body += table(
                f"{caption}: press a name to see its card", model_header(run), model_rows(run), raw_first=True
            )
            if "score_examples" not in run.document:
                body += missing(
                    "Scores have no intervals: they are no shares of examples, or the run is older than their count."
                )
        else:
            body += missing(f"{run.name} has no front yet.")
        body += paragraphs([*layer_lines(run.document), *score_budget_lines(run.document)] if run.document else [])
    return Section(name="front", title="Front", body=body, plots=[plot])


def _budget_options(runs: Sequence[RunView]) -> str:
    """Return the options of what a budget limits, with that of the first run's first budget selected."""
    first, chosen = None, "latency"
    with suppress(BudgetError):  # of a file that was edited by hand
        first = next(map(parse_budget, runs[0].config.get("budgets", ())), None)
    if isinstance(first, ScoreBudget):
        chosen = "score"
    elif first is not None and not first.timed and any(bound.cost == "bytes" for bound in first.bounds):
        chosen = "bytes"
    return "".join(
        f'<option value="{by}"{" selected" if by == chosen else ""}>{text}</option>' for by, text in _LIMITED.items()
    )


def _card_section(runs: Sequence[RunView]) -> Section:
    cards, plots = [], []
    for number, run in enumerate(runs):
        for kind, model in run.models:
            text, own = card(run, number, kind, model)
            cards.append(text)
            plots += own
    body = "\n".join(cards) or missing("There are cards as soon as models have been fine-tuned and measured.")
    return Section(name="cards", title="The chosen model", body=body, plots=plots)


def _option_text(value: object) -> str:
    """Return the value of an option; those of a list are joined by commas."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _about_section(run: RunView, prefix: str, title: str) -> Section:
    how = "measured beside the dense model" if is_measured(run) else "predicted: the latency table is of another device"
    rows = [[key, _option_text(value)] for key, value in run.config.items() if value is not None]
    versions = [[name, str(version)] for name, version in run.environment.get("versions", {}).items()]
    body = paragraphs([f"Every latency was {how}.", *(form_lines(run.document) if run.document else ())])
    body += table("Options", ["option", "value"], rows)
    if versions:
        body += table("Versions", ["package", "version"], versions)
    return Section(name=f"{prefix}about", title=title, body=body)
