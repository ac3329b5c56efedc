"""Kill a search at random moments, resume it, and compare all that it delivers with an undisturbed search.

Every round begins a search of its own that goes through all stages: latency table, dense model, trials of every rung,
full fine-tune, export and verification. One to three times it is killed with SIGKILL, either when its process has used
a random share of the processor time of the undisturbed search, or right before a random change of a file, where a
kill does most harm. A device is simulated, so that the front can be compared byte for byte.

    python scripts/random_kills.py --kills 200 --seed 0 --out kills.csv

Searches are forked from a process that has imported all libraries, which halves the time of a round. The same command
goes on where the CSV file ends. Exit code 1 says that something differed.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from killed_search import Board, search, verify

OWN_FILES = {".lock", "environment.json", "manifest.json", "progress.json", "run.yaml", "study.db"}
"""Files that hold times, processes or digests of files that hold times."""
TICKS = os.sysconf("SC_CLK_TCK")
MOST_KILLS, MOST_SECONDS = 3, 600.0


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When a search is killed: at a share (0 to 1) of its processor time, or of its changes of files."""

    by: str
    share: float
    alone: bool
    """Whether the controller is killed without its workers."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Kills of one search, one after the other."""

    seed: int
    executor: str
    kills: tuple[Kill, ...]

    @classmethod
    def of(cls, seed: int) -> Round:
        """Draw the round of a seed: three in four have one kill, and as many run their trials in the same process."""
        rng = random.Random(seed)
        count = rng.choice((1,) * 6 + (2, MOST_KILLS))
        executor = rng.choice(("inline", "inline", "inline", "process"))
        kills = [
            Kill(by=rng.choice(("time", "file")), share=rng.random(), alone=rng.random() < 0.25) for _ in range(count)
        ]
        return cls(seed=seed, executor=executor, kills=tuple(kills))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the CSV file: one kill, and how its round ended."""

    seed: int
    kill: int
    executor: str
    by: str
    share: float
    alone: bool
    stage: str
    seconds: float
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The undisturbed search: its files, and what it spent."""

    files: dict[str, Any]
    cpu_s: float
    changes: int


def delivered(folder: Path) -> dict[str, Any]:
    """Return what every file of a run holds, without times; files of other names count, too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {name: content(path) for path in files if (name := path.relative_to(folder).as_posix()) not in OWN_FILES}


def content(path: Path) -> Any:
    """Return the bytes of a file, or its JSON without the times of a latency table."""
    if path.suffix != ".json":
        return path.read_bytes()
    document = json.loads(path.read_text())
    for owner in (document, document.get("latency_table", {})):
        for key in ("created", "seconds", "checksum") if "created" in owner else ():
            owner.pop(key, None)
    return document


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name the files that are gone, more, or others than before."""
    gone, more = (f"{name} is gone" for name in before.keys() - after.keys()), after.keys() - before.keys()
    other = (f"{name} differs" for name in before.keys() & after.keys() if before[name] != after[name])
    return sorted((*gone, *(f"{name} is left over" for name in more), *other))


def forked(run: Callable[[], None], log: Path) -> int:
    """Run a function in a process and a session of its own, its output in a file; return the process."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, parts[11:13])) / TICKS


def ended(pid: int, kill_s: float | None, *, alone: bool = False) -> tuple[int, float]:
    """Wait for a process, or kill it when it has used some processor time; return its status and that time."""
    deadline, used = time.monotonic() + MOST_SECONDS, 0.0
    while True:
        used = max(used, cpu_seconds(pid))
        if kill_s is not None and used >= kill_s:
            (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
            kill_s = None
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status, used
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a search took longer than {MOST_SECONDS:g} s")
        time.sleep(0.005)  # a tick of the processor time is 10 ms


def undisturbed(folder: Path, log: Path) -> Whole:
    """Search without a kill."""
    board = Board()
    status, cpu_s = ended(forked(lambda: search(folder, "inline", board, None), log), None)
    if status:
        raise SystemExit(f"the undisturbed search failed: {log.read_text()[-2000:]}")
    return Whole(files=delivered(folder), cpu_s=cpu_s, changes=board.read()[0])


def disturbed(plan: Round, whole: Whole, folder: Path, log: Path) -> Iterator[Row]:
    """Search with the kills of a round, and yield a row for each of them; a kill after the end is none."""
    told: list[tuple[Kill, str, float]] = []
    for kill in plan.kills:
        board, begun_s = Board(), time.monotonic()
        kill_at = 1 + int(kill.share * whole.changes) if kill.by == "file" else None
        pid = forked(lambda board=board, at=kill_at: search(folder, plan.executor, board, at), log)
        status, _ = ended(pid, None if kill_at else kill.share * whole.cpu_s, alone=kill.alone)
        if not os.WIFSIGNALED(status):
            break
        told.append((kill, board.read()[1] or "begin", time.monotonic() - begun_s))
    outcome = outcome_of(plan, whole, folder, log)
    for number, (kill, stage, seconds) in enumerate(told, 1):
        how = asdict(kill) | {"share": round(kill.share, 4)}
        row = {"seed": plan.seed, "kill": number, "executor": plan.executor, "stage": stage, **how}
        yield Row(**row, seconds=round(seconds, 1), outcome=outcome)


def outcome_of(plan: Round, whole: Whole, folder: Path, log: Path) -> str:
    """Resume a search, and return `ok` or what is wrong with what it delivers."""
    if ended(forked(lambda: search(folder, plan.executor, Board(), None), log), None)[0]:
        return "failed: " + log.read_text().strip().splitlines()[-1][:300]
    other = differences(whole.files, delivered(folder))
    if ended(forked(lambda: verify(folder), log), None)[0]:  # leaves files of SQLite, as every reader of a database
        other.append("not verified: " + log.read_text().strip().splitlines()[-1][:300])
    return "; ".join(other) or "ok"


def rows_of(path: Path | None) -> list[Row]:
    """Return the kills that a CSV file holds."""
    if path is None or not path.exists():
        return []
    with path.open(newline="") as file:
        values = [{**row, "alone": row["alone"] == "True"} for row in csv.DictReader(file)]
    numbers = {"seed": int, "kill": int, "share": float, "seconds": float}
    return [Row(**{key: numbers.get(key, lambda v: v)(value) for key, value in row.items()}) for row in values]


def append(path: Path | None, rows: list[Row]) -> None:
    """Append kills to a CSV file, which begins with the names of its columns."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    begins = not path.exists() or not path.stat().st_size
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        if begins:
            writer.writeheader()
        writer.writerows([asdict(row) for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="How many kills in all, with those of the file.")
    parser.add_argument("--seed", type=int, default=0, help="Of the first round; the next round has the next one.")
    parser.add_argument("--out", type=Path, help="CSV file with a line for each kill; goes on where it ends.")
    arguments = parser.parse_args()
    rows = rows_of(arguments.out)
    seed = max((row.seed + 1 for row in rows), default=arguments.seed)
    with tempfile.TemporaryDirectory(prefix="autoprune-kills-") as name:
        scratch = Path(name)
        search(scratch / "warm", "inline", Board(), None)  # fills what exporters keep from one model to the next
        gc.freeze()
        whole = undisturbed(scratch / "undisturbed", scratch / "log")
        print(f"undisturbed: {whole.cpu_s:.1f} s of CPU, {whole.changes} changes of files", flush=True)
        while len(rows) < arguments.kills:
            folder, log = scratch / f"seed-{seed}", scratch / f"seed-{seed}.log"
            fresh = list(disturbed(Round.of(seed), whole, folder, log))
            for row in fresh:
                print(*asdict(row).values(), flush=True)
            append(arguments.out, fresh)
            if all(row.outcome == "ok" for row in fresh):
                shutil.rmtree(folder, ignore_errors=True)
            elif arguments.out:
                shutil.copytree(folder, arguments.out.parent / folder.name, dirs_exist_ok=True)
                shutil.copy(log, arguments.out.parent)
            rows, seed = [*rows, *fresh], seed + 1
    bad = sorted({row.seed for row in rows if row.outcome != "ok"})
    seeds = f"seeds {rows[0].seed} to {rows[-1].seed}" if rows else "no kill"
    print(f"{len(rows)} kills ({seeds}): " + (f"differences with seeds {bad}" if bad else "no difference"))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
