"""Take pictures of the page of a run in Chromium: docs/figures/page-{front,card,phone}.png.

Usage: draw_page.py RUN_DIR. Needs playwright (extra `dev`) and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright

from autoprune.pipeline import Run
from autoprune.pipeline.studies import study_location
from autoprune.report import read_run, write_report
from autoprune.runfolder import RunFolder

FIGURES = Path(__file__).parents[1] / "docs/figures"
MOST_BYTES = 200_000
PICTURES: dict[str, tuple[Literal["light", "dark"], int, int, str]] = {
    "page-front": ("light", 1200, 1120, ""),
    "page-card": ("dark", 1200, 900, "#cards"),
    "page-phone": ("light", 360, 1180, ""),
}
"""Colours, width and height of a picture, and the part of the page that it shows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    run = Run(RunFolder(parser.parse_args().run_dir))
    view = read_run(run.folder, run.config.model_dump(), study_location(run.config, run.folder))
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise SystemExit("pictures of the page need Chromium, which is not installed")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = write_report([view], Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name in PICTURES:
            picture(browser, page, name)


def picture(browser: Browser, page: Path, name: str) -> None:
    scheme, width, height, part = PICTURES[name]
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready]")
    path = FIGURES / f"{name}.png"
    if part:
        tab.locator(part).screenshot(path=path)
    else:
        tab.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{path.name} has more than {MOST_BYTES:,} bytes: show less of the page")


if __name__ == "__main__":
    main()
