"""The page in a real browser: what a person does with it, and what must never happen. Skipped where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.report import read_run, write_report
from autoprune.report.server import ReportServer
from tests.report.test_server import serving

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

PHONE, DESK = {"width": 360, "height": 800}, {"width": 1600, "height": 1000}
Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(finished: autoprune.Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = read_run(finished.folder, finished.config.model_dump(), finished.folder.study)
    return write_report([run], tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Page]:
    """One page for all tests; whatever they do, it reports no error and asks for nothing but itself."""
    context = browser.new_context(viewport=DESK, color_scheme="light")
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    yield page
    assert said == []
    assert set(asked) == {address}
    context.close()


def models(page: Page) -> list[dict[str, Any]]:
    return json.loads(page.locator("#state").text_content())["models"]


def shown_card(page: Page) -> str:
    cards = page.locator(".card").filter(visible=True)
    assert cards.count() == 1
    return cards.get_attribute("data-key")


def test_a_budget_picks_the_best_model_within_it(page: Page) -> None:
    known = models(page)
    assert shown_card(page) == next(m["key"] for m in known if m["is_first"])
    page.locator("#budget").focus()
    page.keyboard.press("Home")  # the least latency: the fastest model alone
    assert shown_card(page) == min(known, key=lambda m: (m["latency"], -m["score"]))["key"]
    assert "at most" in page.locator("#budget-text").text_content()
    assert page.locator("#budget").get_attribute("aria-valuetext").startswith("at most")
    for unit, cost in (("share", "share"), ("time", "latency")):
        page.select_option("#x-unit", unit)
        lines = page.evaluate("document.getElementById('front-plot').layout.shapes.map((each) => each.x0)")
        assert lines == [pytest.approx(min(m[cost] for m in known), rel=1e-4)]
    page.locator("#budget").focus()
    page.keyboard.press("End")
    best = max(known, key=lambda m: (m["score"], -m["latency"]))
    assert shown_card(page) == best["key"]
    page.select_option("#budget-by", "score")
    assert shown_card(page) == best["key"]
    page.select_option("#budget-by", "bytes")
    page.locator("#budget").press("Home")
    assert shown_card(page) == min(known, key=lambda m: (m["bytes"], -m["score"]))["key"]


def test_a_point_tells_its_model_and_shows_its_card(page: Page) -> None:
    model = next(m for m in models(page) if m["key"] != shown_card(page))
    place = page.evaluate(
        """([x, y]) => {
            const plot = document.getElementById("front-plot"), { xaxis, yaxis } = plot._fullLayout;
            plot.scrollIntoView();
            const box = plot.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.c2p(x), box.y + yaxis._offset + yaxis.c2p(y)];
        }""",
        [model["latency"], model["score"]],
    )
    page.mouse.move(place[0] - 3, place[1] - 3)
    page.mouse.move(*place)
    page.wait_for_selector("#front-plot .hovertext")
    assert model["key"].split("/")[1] in page.locator("#front-plot .hoverlayer").text_content()
    page.mouse.click(*place)
    assert shown_card(page) == model["key"]


def test_tables_and_axes_by_keyboard(page: Page) -> None:
    button = page.locator("button.pick").last
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert shown_card(page) == button.get_attribute("data-key")
    page.select_option("#x-scale", "log")
    page.select_option("#score-of", "test")
    scores = [m["test_score"] for m in models(page)]
    axis, drawn = page.evaluate(
        """() => {
            const plot = document.getElementById("front-plot");
            return [plot._fullLayout.xaxis.type, plot.data.filter((t) => t.visible !== false).flatMap((t) => t.y)];
        }"""
    )
    page.select_option("#x-unit", "share")
    most = page.evaluate("Math.max(...document.getElementById('front-plot').data.flatMap((t) => t.x))")
    assert 0.99 < most < 1.2  # the dense model's
    assert axis == "log"
    assert set(drawn) >= {float(f"{score:.6g}") for score in scores}


def test_commands_are_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".card.shown button.copy").click()
    page.locator("#status").filter(has_text="The command is copied").wait_for()
    assert "--policy" in page.locator(".card.shown code").text_content()


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESK, "light")], ids=["phone", "desk"])
def test_everyone_can_read_it(page: Page, size: dict[str, int], scheme: str) -> None:
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(
        "() => { const p = document.getElementById('front-plot'); return p._fullLayout.width === p.clientWidth; }"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.add_script_tag(content=axe.AXE_FILE_PATH.read_text(encoding="utf-8"))
    violations = page.evaluate("async () => (await axe.run()).violations")
    assert [(v["id"], v["impact"], v["nodes"][0]["html"]) for v in violations] == []


def test_a_live_page_takes_changes_and_keeps_the_choice(browser: Any, finished: autoprune.Run) -> None:
    whole = read_run(finished.folder, finished.config.model_dump(), finished.folder.study)
    states = [replace(whole, document={}, metrics={}, trials=whole.trials[:5])]
    server = ReportServer(lambda: [states[-1]], lambda: len(states), seconds=0.1)
    context = browser.new_context(viewport=DESK)
    page, failed = context.new_page(), []
    page.on("pageerror", lambda error: failed.append(str(error)))
    with serving(server):
        page.goto(server.address)
        page.wait_for_selector("html[data-ready]")
        assert page.locator(".card").count() == 0
        assert page.locator("#x-scale").is_visible()
        assert page.locator("#budget").is_hidden()
        states.append(whole)
        page.locator("button.pick").last.click()
        key = shown_card(page)
        page.locator("#budget-by").focus()
        states.append(replace(whole, failures=["trial 3 was lost"]))
        page.get_by_text("trial 3 was lost").wait_for()
        assert shown_card(page) == key
        assert page.evaluate("document.activeElement.id") == "budget-by"
        with page.expect_download() as download:
            page.locator(".card.shown a.download[download$=onnx]").click()
        digest = key.split("/")[1]
        assert download.value.suggested_filename == f"{digest}.onnx"
        assert Path(download.value.path()).read_bytes() == finished.candidate(digest).onnx_path.read_bytes()
    page.locator("#status").filter(has_text="cannot be reached").wait_for()
    assert failed == []
    context.close()


def test_on_paper_there_are_no_controls(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    hidden = page.locator("#controls").is_hidden()
    page.emulate_media(media="screen", color_scheme="light")
    assert hidden
    assert ground == "rgb(255, 255, 255)"
    inks = page.evaluate(
        """() => {
            const ink = () => document.getElementById("front-plot")._fullLayout.font.color, inks = [];
            for (const kind of ["beforeprint", "afterprint"]) { dispatchEvent(new Event(kind)); inks.push(ink()); }
            return inks;
        }"""
    )
    assert inks[0] == "#000000" != inks[1]
