"""Replay searches from a table of scored policies, or make that table.

    python scripts/benchmarks/replay.py make --dense resnet8.safetensors --folder runs/replay
    python scripts/benchmarks/replay.py run --strategies guided direct random --seeds 100

`make` scores about 400 policies: every level of every unit alone, what a guided search proposes for each budget, the
neighbours of its best, uniform and random policies at the budgets and between them, extremes. All are repaired only
and after a brief fine-tune, and those that matter most after one epoch, best first, as many as `--epochs` says. It
appends line by line; run it again to go on.

`run` searches the table for all budgets at once with the package's own code (see `replay.py`). For each strategy
(`direct:gp` names a sampler) and budget it prints after how many evaluations and sample passes a policy was known whose
proxy loss is the best one's to 95 % and to 99 %: the median over the seeds, and the quartiles. Everything that was
evaluated by then counts, for other budgets and sensitivities, too. `regret` is how many points of validation score the
policy that came out is behind the best of the budget, both at the last rung. A sampler's proposal moves onto a row, of
which few stand near a budget, and a guided search chose some of these: compare versions of a strategy, not strategies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from replay_table import RUNGS, ReplayTable
from replayed_search import Course, replay

from autoprune.budgets import Limit

TABLE = Path(__file__).parents[2] / "tests" / "benchmarks" / "resnet8.csv"
SHARES = (0.95, 0.99)


def main() -> None:
    """Make a table, or replay one."""
    given = parse()
    if given.command == "make":
        from replay_make import make  # needs torch, which a replay does without

        make(given)
    else:
        run(given)


def run(given: argparse.Namespace) -> None:
    """Replay every strategy with every seed, and print how it did."""
    table = ReplayTable.load(given.table)
    counts = ", ".join(f"{len(results)} {name}" for name, results in table.results.items())
    print(f"{given.table.name}: {len(table.policies)} policies ({counts}); {given.seeds} seeds")
    for strategy in given.strategies:
        start = time.monotonic()
        once = partial(replayed, given.table, strategy, given.budget, given.rungs)
        with ProcessPoolExecutor(given.workers) as pool:
            courses_by_seed = list(pool.map(once, range(given.seeds)))
        print(f"\n{strategy} ({time.monotonic() - start:.0f} s)")
        for budget, courses in zip(given.budget, zip(*courses_by_seed, strict=True), strict=True):
            print(
                f"  {budget:4.0%} {Summary.of(table, table.limit(budget), courses, RUNGS[given.rungs - 1].name)}",
                flush=True,
            )


def replayed(path: Path, strategy: str, budgets: Sequence[float], rungs: int, seed: int) -> list[Course]:
    """One search for some shares of the dense latency."""
    table = ReplayTable.load(path)
    name, _, sampler = strategy.partition(":")
    limits = [table.limit(share) for share in budgets]
    return replay(table, name, limits, seed, sampler=sampler or "tpe", rungs=RUNGS[:rungs])


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How the seeds of one strategy did within one budget.

    `evaluations` and `passes` `[shares, seeds]` are infinite for a seed that did not get there; `regrets` `[seeds]` are
    in points, NaN where none of the policies that got to the last rung has its score.
    """

    evaluations: np.ndarray
    passes: np.ndarray
    regrets: np.ndarray

    @classmethod
    def of(cls, table: ReplayTable, limit: Limit, courses: Sequence[Course], last: str) -> Summary:
        """Compare searches with the best of the table; `last` names the fidelity that they chose by."""
        best = min(one.loss for one in table.within(limit, RUNGS[0].name).values())
        reached = [[course.reached(best / share) for course in courses] for share in SHARES]
        evaluations = np.array([[np.inf if n is None else n for n in row] for row in reached], dtype=float)
        passes = np.array(
            [
                [np.inf if n is None else course.passes[n - 1] for n, course in zip(row, courses, strict=True)]
                for row in reached
            ]
        )
        scores = {policy: one.score for policy, one in table.within(limit, last).items()}
        highest = max(scores.values(), default=np.nan)
        regrets = [100 * (highest - scores[c.picked]) if c.picked is not None else np.nan for c in courses]
        return cls(evaluations=evaluations, passes=passes, regrets=np.array(regrets))

    def __str__(self) -> str:
        parts = [
            f"{share:.0%}: {_quartiles(evaluations)} evaluations, {_quartiles(passes)} passes"
            for share, evaluations, passes in zip(SHARES, self.evaluations, self.passes, strict=True)
        ]
        known = self.regrets[np.isfinite(self.regrets)]
        mean = f"{known.mean():.2f}" if known.size else "unknown"
        return "; ".join(parts) + f"; regret {mean} ({len(known)} seeds)"


def _quartiles(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="nearest")
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def parse() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="score policies")
    maker.add_argument("--task", default="fashion-mnist")
    maker.add_argument("--model", default="resnet8")
    maker.add_argument("--dense", type=Path, required=True, help="trained weights (safetensors)")
    maker.add_argument("--space", default="multiples")
    maker.add_argument("--folder", type=Path, required=True, help="run folder of the table's making")
    maker.add_argument("--policies", type=int, default=400)
    maker.add_argument("--epochs", type=int, default=250, help="policies that are scored after one epoch")
    runner = commands.add_parser("run", help="replay searches")
    runner.add_argument("--strategies", nargs="+", default=["guided", "direct", "random"])
    runner.add_argument("--seeds", type=int, default=100)
    runner.add_argument(
        "--rungs", type=int, default=len(RUNGS), choices=range(2, len(RUNGS) + 1), help="that are climbed"
    )
    for each, out in ((maker, "written"), (runner, "read")):
        each.add_argument("--budget", type=float, nargs="+", default=[0.5, 0.33, 0.25], help="shares of the latency")
        each.add_argument("--workers", type=int, default=1)
        each.add_argument("--table", type=Path, default=TABLE, help=f"CSV file that is {out}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
