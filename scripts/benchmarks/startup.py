"""CPU seconds (user + system) until a command that only reads a run has printed: `python startup.py RUN_DIR`.

Each command runs five times in a process of its own; the least time is printed, with the slowest imports beside it.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 5
MOST_SECONDS = 0.5
SLOWEST = 4


def cpu_seconds(arguments: list[str]) -> float:
    """Return the least CPU time of a command over `RUNS` runs."""
    times = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "autoprune", *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def slowest_imports(arguments: list[str]) -> list[str]:
    """Return the modules that take the longest to import by themselves, with their milliseconds."""
    command = [sys.executable, "-X", "importtime", "-m", "autoprune", *arguments]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", log)
    return [f"{name} {int(us) / 1e3:.0f} ms" for us, name in sorted(rows, key=lambda row: -int(row[0]))[:SLOWEST]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", help="folder of a finished run")
    run_dir = parser.parse_args().run_dir
    with tempfile.TemporaryDirectory() as folder:
        page = str(Path(folder) / "report.html")
        commands = [
            ["--help"],
            ["status", run_dir],
            ["front", run_dir],
            ["pick", run_dir, "--knee"],
            ["report", run_dir, "--out", page],
        ]
        for command in commands:
            seconds = cpu_seconds(command)
            mark = "" if seconds <= MOST_SECONDS else f"  (more than {MOST_SECONDS} s)"
            print(f"{command[0]:8} {seconds:.2f} s CPU{mark}   {', '.join(slowest_imports(command))}")


if __name__ == "__main__":
    main()
