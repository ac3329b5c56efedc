"""The page of a run: whole, escaped, small, without the network; and of runs that have no results yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.report import RunView, read_run, write_report
from autoprune.report.html import _budget_options, introduction, report_parts
from autoprune.runfolder import RunFolder, write_json

EVIL = "</script><img src=x onerror=alert(1)>"
MOST_BYTES = 3_000_000


class Outline(HTMLParser):
    """Headings, ids and loaded addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.ids += [named["id"] or ""] if "id" in named else []
        self.loaded += [f"{tag} {named[key]}" for key in ("src", "href", "srcset") if key in named]


def texts(value: Any) -> Iterator[str]:
    """Yield every text of a plot that plotly.js shows."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from () if key == "customdata" else texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each)


def view(run: autoprune.Run) -> RunView:
    return read_run(run.folder, run.config.model_dump(), run.folder.study)


@pytest.fixture(scope="module")
def page(finished: autoprune.Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report([view(finished)], tmp_path_factory.mktemp("page") / "r.html").read_text()


def test_one_small_file_with_an_outline_and_nothing_to_load(page: str) -> None:
    assert len(page.encode()) < MOST_BYTES
    outline = Outline()
    outline.feed(page)
    assert outline.loaded == []
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(set(outline.ids)) == len(outline.ids)
    assert "connect-src 'none'" in page


def test_every_model_has_a_card_with_its_command(page: str, finished: autoprune.Run) -> None:
    for model in [*finished.models, *finished.baselines, *finished.others]:
        assert f'id="card-0-{model.digest}"' in page
        assert f"--policy {model.digest} --out {model.digest}.onnx" in page


def test_parts_of_the_search_are_drawn(finished: autoprune.Run) -> None:
    _, _, sections, models = report_parts([view(finished)])
    names = {plot.name for section in sections for plot in section.plots}
    digest = finished.models[0].digest
    assert names > {"front-plot", "progress", "fidelities", "stairs", "sensitivity", "error", f"card-0-{digest}-time"}
    assert {m["key"].split("/")[1] for m in models} >= {m.digest for m in finished.models}


def in_ms(run: RunView, dense_ms: float) -> RunView:
    """Return a run as if its dense model had another latency, and every other one the same share of it."""
    document = json.loads(json.dumps(run.document))
    factor = dense_ms / document["dense"]["latency_ms_measured"]
    for entry in [document["dense"], *document["models"], *document["others"], *document["baselines"]]:
        for key in ("latency_ms_measured", "latency_ms_predicted"):
            entry[key] = factor * entry[key] if entry.get(key) else None
    return replace(run, document=document)


@pytest.mark.parametrize(("latencies_ms", "unit"), [((0.5,), "us"), ((1.5,), "ms"), ((0.5, 1.5), "ms")])
def test_all_latencies_of_a_page_have_one_unit(
    finished: autoprune.Run, latencies_ms: tuple[float, ...], unit: str
) -> None:
    _, lines, sections, models = report_parts([in_ms(view(finished), ms) for ms in latencies_ms])
    plots = [plot for section in sections for plot in section.plots]
    shown = [*lines, *(section.body for section in sections), *(plot.label for plot in plots)]
    shown += [text for plot in plots for text in texts(plot.to_json())]
    told = re.findall(r"[\d}] (us|ms)\b", " ".join([*shown, *(model["label"] for model in models)]))
    axes = re.findall(r"latency, (us|ms)|>(us|ms)<", " ".join(shown))
    assert len(told) > 20
    assert {*told, *("".join(each) for each in axes), *(model["unit"] for model in models)} == {unit}


@pytest.mark.parametrize("several", [False, True])
def test_everything_is_escaped(finished: autoprune.Run, tmp_path: Path, several: bool) -> None:
    text = json.dumps(finished.document).replace('"digest": "', f'"digest": "{EVIL}')
    document = json.loads(text)
    for model in [*document["models"], *document["others"], *document["baselines"]]:
        model |= {"policy": {EVIL + name: width for name, width in model["policy"].items()}, "strategy": EVIL}
    document |= {"metric": EVIL, "unmet_budgets": [EVIL], "not_reconstructed": [EVIL]}
    own = view(finished)
    run = RunView(
        path=tmp_path / EVIL.replace("/", ""), config=dict.fromkeys((*own.config, EVIL), EVIL), document=document,
        sensitivity={"divergence": {EVIL: {EVIL: 0.5, "1": 0.0}}}, trials=own.trials, failures=[EVIL], table=own.table,
        environment={"versions": {EVIL: EVIL}},
    )  # fmt: skip
    runs = [run, own] if several else [run]
    page = write_report(runs, tmp_path / "r.html").read_text()
    drawn = [plot.to_json() for section in report_parts(runs)[2] for plot in section.plots]
    assert not [text for text in texts(drawn) if "<img" in text]  # plotly.js reads some HTML
    assert "<img" not in page
    assert page.count("</script") == 3 + ("</script" in page.split("<style>")[0])


@pytest.mark.parametrize("front", [False, True])
def test_a_run_that_has_just_begun_says_what_it_lacks(tmp_path: Path, front: bool) -> None:
    folder = RunFolder(tmp_path)
    config = {"task": "t", "target": "ort-cpu"}
    if front:
        dense = {"score": 0.5, "test_score": 0.5, "latency_ms_measured": 1.0, "bytes": 1, "params": 1, "macs": 1}
        held = {
            "policies": 1, "mape_percent": 1.0, "max_percent": 1.0, "bias_percent": 0.0, "spearman": 1.0,
            "noise_percent": 0.5,
        }  # fmt: skip
        empty = {"space_id": "s", "models": [], "others": [], "baselines": [], "rungs": []}
        write_json(folder.front, {"metric": "r2", "dense": dense, "held_out": held, **empty})
    run = read_run(folder, config, folder.study)
    page = write_report([run], tmp_path / "r.html").read_text()
    assert all(line in page for line in introduction(run))
    assert "nothing to draw about its search" in page
    assert "This run has no latency table (yet)." in page


def test_the_comparison_lists_what_differs_alone(finished: autoprune.Run) -> None:
    own = view(finished)
    other = RunView(path=Path("other"), config=dict(own.config) | {"seed": 7}, document=own.document)
    _, _, sections, models = report_parts([own, other])
    body = next(section.body for section in sections if section.name == "comparison")
    assert "option: seed" in body
    assert "option: trials" not in body
    assert len({model["key"] for model in models}) == len(models)
    assert len({section.name for section in sections}) == len(sections)


@pytest.mark.parametrize(
    ("budgets", "by"),
    [
        (["50%"], "latency"), (["bytes:50%", "bytes:25%"], "bytes"), (["score:-1%", "50%"], "score"), ([], "latency"),
        (["50%,bytes:1MB"], "latency"), (["macs:50%"], "latency"), (["<b>"], "latency"),
    ],
)  # fmt: skip
def test_the_slider_limits_what_the_first_budget_limits(budgets: list[str], by: str) -> None:
    options = _budget_options([RunView(path=Path(), config={"budgets": budgets})])
    assert re.findall('value="([a-z]+)" selected', options) == [by]
