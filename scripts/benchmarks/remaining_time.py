"""How close the estimated rest of a search is to the truth: `python remaining_time.py [--only digits,text]`.

Small searches run one after the other, each as a process of its own, as from the command line. Meanwhile the estimate
that it keeps in `progress.json` is read; when it has ended, every estimate is compared with what was really left. All
four take about nine minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SEARCHES = {
    "digits": ["--task", "digits", "--budget", "50%"],
    "mnist5k": ["--task", "mnist5k", "--budget", "50%", "--trials", "24", "--space", "widths"],
    "text": ["--task", f"{EXAMPLES / 'text_task.py'}:make_task", "--budget", "60%", "--trials", "24"],
    "user cnn": ["--task", f"{EXAMPLES / 'cnn_task.py'}:make_task", "--budget", "50%"],
}
POINTS = (0.1, 1 / 3, 0.5, 2 / 3, 0.9)
FROM, UNTIL = 1 / 3, 0.95
"""Between these shares of a run its estimates count: in the last seconds a factor says nothing."""
MOST_FACTOR = 1.5
POLL_SECONDS = 0.5


class Estimate(NamedTuple):
    """The estimate of a search `at_s` seconds after its begin."""

    at_s: float
    left_s: float
    stage: str


def watched(options: list[str], folder: Path, log: Path) -> tuple[float, list[Estimate]]:
    """Run a search; return its seconds and the estimates that it noted."""
    command = [sys.executable, "-m", "autoprune", "search", "--run-dir", str(folder), *options]
    start, seen, estimates = time.time(), 0.0, []
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                path = folder / "progress.json"
                written = path.stat().st_mtime if path.exists() else 0.0
                if written > seen:
                    seen, noted = written, json.loads(path.read_text())
                    if "seconds_left" in noted:  # before there is an estimate, only the time spent is noted
                        estimates.append(Estimate(written - start, noted["seconds_left"], noted["stage"]))
        finally:
            process.terminate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return time.time() - start, [estimate for estimate in estimates if estimate.left_s > 0]


def factor(estimate: Estimate, end_s: float) -> float:
    """Return how many times as long as the truth an estimate is, below 1 where it is too short."""
    return estimate.left_s / (end_s - estimate.at_s)


def row(name: str, end_s: float, estimates: list[Estimate]) -> tuple[str, float]:
    """Return a line of the table, and the worst factor that counts."""
    cells = []
    for point in POINTS:
        before = [estimate for estimate in estimates if estimate.at_s <= point * end_s]
        # An estimate counts down until the next one is noted.
        last = before[-1] if before else None
        left = max(last.left_s - (point * end_s - last.at_s), 0.0) if last else None
        cells.append("-" if left is None else f"{left:.0f}/{(1 - point) * end_s:.0f}")
    counted = [e for e in estimates if FROM * end_s <= e.at_s <= UNTIL * end_s]
    worst = max(counted, key=lambda e: max(factor(e, end_s), 1 / factor(e, end_s)))
    value = factor(worst, end_s)
    text = f"| {name} | {end_s:.0f} | {' | '.join(cells)} | {value:.2f} ({worst.stage}, at {worst.at_s:.0f} s) |"
    return text, max(value, 1 / value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SEARCHES), help=f"some of {', '.join(SEARCHES)}")
    parser.add_argument("--out", type=Path, help="folder for the runs, their output and all estimates")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.out or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        heads = [f"at {point:.0%}" for point in POINTS]
        print(f"estimated/true seconds left\n\n| search | seconds | {' | '.join(heads)} | worst factor |", flush=True)
        print("|---|---|" + "---|" * (len(POINTS) + 1))
        worst = []
        for name in arguments.only.split(","):
            folder = place / name.replace(" ", "-")
            end_s, estimates = watched(SEARCHES[name], folder, place / f"{folder.name}.log")
            (place / f"{folder.name}.json").write_text(json.dumps([end_s, estimates]))
            line, factor_of_run = row(name, end_s, estimates)
            worst.append(factor_of_run)
            print(line, flush=True)
    verdict = "within" if max(worst) <= MOST_FACTOR else "beyond"
    print(f"\nworst factor from a third of a run on: {max(worst):.2f}, {verdict} {MOST_FACTOR}")


if __name__ == "__main__":
    main()
