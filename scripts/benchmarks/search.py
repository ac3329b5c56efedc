"""Strategies of the search beside each other: test score as a curve over sample passes after the search.

    python scripts/benchmarks/search.py --task fashion-mnist --model resnet20 --dense dense.safetensors \\
        --budget 50% --budget 33% --budget 25% --budget 15% --strategies guided uniform direct --seeds 0 1 2 \\
        --points 0 2000 10000 50000 --out results.csv

All strategies share the dense weights, the latency table (profiled once, beside the CSV file), the evaluator, the
repair, the number of proxies, the rungs and the fine-tuning recipe. The policy of a budget is the best one of the last
rung that meets it when measured, within 1 % as everywhere (`--by-prediction`: by the table alone, on a machine that is
too busy to measure); it is then fine-tuned from its repaired start as a run does it (on `fashion-mnist` layers are
compared with the dense model's), once for each number of passes, with seeds that all strategies share.
`search_passes` are those of the whole search divided by its budgets: everything that looked at data counts. Results
are appended to a CSV file (`curves.Row` explains the columns); run it again to go on.
`scripts/benchmarks/summarize_curves.py` compares them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from curves import Row, append_row, curve, missing_points, read_rows

from autoprune.allocation.promotion import best_within
from autoprune.config import RunConfig
from autoprune.evaluation import DenseModel
from autoprune.pipeline.baselines import uniform_baselines
from autoprune.pipeline.channel_order import scoring_passes
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.events import Silent
from autoprune.pipeline.executors import executor_of
from autoprune.pipeline.exploration import Exploration, explore, search_passes, search_plan
from autoprune.pipeline.preparation import Prepared, prepare
from autoprune.pipeline.run import open_task
from autoprune.pipeline.studies import study_location
from autoprune.records import Policy
from autoprune.runfolder import RunFolder
from autoprune.search.controller import Outcome
from autoprune.search.effort import Effort
from autoprune.search.explore import Search
from autoprune.search.strategies import STRATEGIES, Strategy
from autoprune.structure import GraphModel
from autoprune.training.sample_passes import SamplePasses
from autoprune.trials import TrialResult

_CANDIDATES = 6


def main() -> None:
    """Run every strategy with every seed that has rows missing."""
    given = parse()
    complete(given, given.strategies, compare)


def complete(
    given: argparse.Namespace,
    methods: Sequence[str],
    run: Callable[[argparse.Namespace, str, int, Mapping[str, Sequence[int]]], None],
) -> None:
    """Call `run(given, method, seed, missing points of each budget)` wherever the CSV file has rows missing."""
    torch.set_num_threads(1)
    for seed in given.seeds:
        for method in methods:
            missing = {
                budget: missing_points(
                    read_rows(given.out), given.points, method=method, model=given.model, budget=budget, seed=seed
                )
                for budget in given.budget
            }
            if any(missing.values()):
                run(given, method, seed, missing)


def compare(given: argparse.Namespace, strategy: str, seed: int, missing: Mapping[str, Sequence[int]]) -> None:
    """Search with one strategy and seed, and append the curves of all its budgets."""
    start = time.monotonic()
    opened = searchable(given, strategy, seed)
    if strategy == "uniform" and not uniform_baselines(opened.plan(), opened.prepared.costs):
        print(f"{strategy}: no uniform policy of the space meets any budget", flush=True)
        append_all(given, opened, opened.prepared.costs, strategy, seed, missing, (), search_passes=0, seconds=0.0)
        return
    exploration, slots = opened.explored()
    seconds = time.monotonic() - start
    passes = sum(opened.passes(exploration.outcome, slots).values()) / len(given.budget)
    if strategy == "uniform":
        passes = 0.0  # one policy for each budget: nothing is chosen by a score
    print(f"{strategy}, seed {seed}: {passes:,.0f} sample passes for each budget, {seconds:.0f} s", flush=True)
    note(exploration.outcome)
    append_all(
        given, opened, exploration.costs, strategy, seed, missing, exploration.last_rung,
        search_passes=round(passes), seconds=seconds,
    )  # fmt: skip


def append_all(
    given: argparse.Namespace, opened: Opened, costs: CostModel, strategy: str, seed: int,
    missing: Mapping[str, Sequence[int]], last: Sequence[TrialResult], *, search_passes: int, seconds: float,
) -> None:  # fmt: skip
    """Append the missing points of every budget, for the best policies of the last rung."""
    for budget, points in missing.items():
        if points:
            policy, ratio, fits = chosen(opened, costs, budget, last, strategy)
            choice = ChosenPolicy(strategy, budget, seed, search_passes, ratio, fits, seconds)
            append_curve(given, opened.prepared.dense_model, policy, points, choice)


def note(outcome: Outcome) -> None:
    """Print what a search says about itself."""
    for line in (*outcome.notes, *map(str, outcome.correlations)):
        print(f"    {line}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run up to its search."""

    config: RunConfig
    folder: RunFolder
    prepared: Prepared

    def plan(self) -> Search:
        """The search of the run."""
        ready, location = self.prepared, study_location(self.config, self.folder)
        return search_plan(self.config, location, ready.space, ready.dense_model, ready.costs, ready.effort)

    def explored(self, strategy: Strategy | None = None) -> tuple[Exploration, int]:
        """Search, and the number of workers that did; `strategy` takes the place of the configured one."""
        with executor_of(self.config, self.folder, self.prepared.evaluator) as executor:
            ready = self.prepared
            return explore(self.plan(), ready.costs, ready.deployment, executor, Silent(), strategy), executor.slots

    def passes(self, outcome: Outcome, slots: int) -> dict[str, float]:
        """Sample passes of every part of the search."""
        task = self.prepared.dense_model.task
        channels = scoring_passes(self.config, self.folder, task)
        return search_passes(outcome, self.prepared.effort, task, slots, channels)

    def but(self, **changes: Any) -> Opened:
        """The same with other results of the stages before the search."""
        return replace(self, prepared=replace(self.prepared, **changes))


def searchable(given: argparse.Namespace, strategy: str, seed: int) -> Opened:
    """The stages before the search with one strategy."""
    opened = profiled(
        given,
        strategy,
        seed,
        space=given.space,
        strategy=strategy,
        sampler=given.sampler,
        reconstruct=not given.no_least_squares,
        scores="obs" if not given.no_least_squares else "l2",
    )
    return opened.but(effort=shortened(opened.prepared.effort, given.rungs))


def profiled(given: argparse.Namespace, name: str, seed: int, **options: Any) -> Opened:
    """A run `name` up to its search, with these options; the first one profiles the table that all others take."""
    folder = given.out.with_suffix("")
    table = folder / "latency_table.json"
    config = RunConfig(
        task=given.task,
        model=given.model,
        dense=str(given.dense.resolve()),
        budgets=tuple(given.budget),
        seed=seed,
        trials=given.trials,
        table=str(table.resolve()) if table.exists() else None,
        executor="inline" if given.workers == 1 else "process",
        workers=given.workers,
        **options,
    )
    run = RunFolder(folder / f"{given.model}-{name}-{seed}")
    run.create()
    prepared = prepare(config, run, open_task(config), Silent())
    if not table.exists():
        prepared.costs.table.save(table)
    opened = Opened(config=config, folder=run, prepared=prepared)
    if not given.by_prediction:
        return opened
    return opened.but(deployment=replace(prepared.deployment, foreign=("judged by prediction",)))


def shortened(effort: Effort, rungs: int) -> Effort:
    """An effort with the first rungs alone."""
    return replace(effort, rungs=effort.rungs[:rungs], promoted=effort.promoted[: rungs - 1])


def chosen(
    opened: Opened, costs: CostModel, budget: str, last: Sequence[TrialResult], strategy: str
) -> tuple[Policy, float, bool]:
    """The best policy that meets the budget when measured, with its share of the dense latency, and whether it does.

    Other strategies than `uniform` do not take the uniform policy: it is scored for comparison. The fastest candidate
    when none meets the budget, the smallest policy when there are no candidates.
    """
    uniform = uniform_baselines(opened.plan(), costs).get(budget)
    others = [r for r in last if (r.policy == uniform) == (strategy == "uniform")]
    policies = [r.policy for r in best_within(others, costs.limits[budget], _CANDIDATES)]
    if not policies:
        smallest = opened.prepared.space.smallest()
        return smallest, float(costs.predicted_ratios([smallest])[0]), False
    ratios = opened.prepared.deployment.ratios(policies, costs).tolist()
    pairs = list(zip(policies, ratios, strict=True))
    fitting = [pair for pair in pairs if costs.meets(budget, *pair)]
    return (*fitting[0], True) if fitting else (*min(pairs, key=lambda pair: pair[1]), False)


@dataclass(frozen=True)
class ChosenPolicy:
    """The columns of `curves.Row` of one chosen policy, without its curve; `fits`: whether it meets its budget."""

    method: str
    budget: str
    seed: int
    search_passes: int
    latency_ratio: float
    fits: bool
    seconds: float


def append_curve(
    given: argparse.Namespace, dense_model: DenseModel, policy: Policy, points: Sequence[int], choice: ChosenPolicy
) -> None:
    """Append a policy's points to the CSV file, and print them; one without a score when it misses its budget."""
    cut = dense_model.cut(policy)
    model = cut.shrink()
    dense_model.repair(model, cut, SamplePasses())
    model = dense_model.fitted(model, policy)
    sizes, cost = dense_model.sizes(policy), dense_model.relative_cost(policy)
    for point in points if choice.fits else [0]:
        start, score = time.monotonic(), None
        if choice.fits:
            ((_, score),) = curve(
                model, dense_model.task, dense_model.module, relative_cost=cost, points=[point], seed=choice.seed,
                deployed=lambda tuned: dense_model.as_deployed(cast(GraphModel, tuned), policy),
                train=lambda tuned, examples: dense_model.finetune(
                    cast(GraphModel, tuned), policy, samples=examples, seed=choice.seed
                ),
            )  # fmt: skip
        row = Row(
            method=choice.method,
            model=given.model,
            budget=choice.budget,
            seed=choice.seed,
            search_passes=choice.search_passes,
            passes=point,
            test_score=score,
            latency_ratio=choice.latency_ratio,
            params=sizes["params"],
            macs=sizes["macs"],
            seconds=choice.seconds + time.monotonic() - start,
        )
        append_row(given.out, row)
        text = "budget not met" if score is None else f"{score:.4f}"
        print(f"    {choice.budget} {choice.latency_ratio:.3f} after {point:6d} passes: {text}", flush=True)


def parse() -> argparse.Namespace:
    """Command-line arguments."""
    parser = common_arguments(__doc__)
    parser.add_argument("--space", default="widths")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    return parser.parse_args()


def common_arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments that all comparisons of searches share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dense", type=Path, required=True, help="trained weights (safetensors)")
    parser.add_argument("--budget", action="append", required=True)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--no-least-squares", action="store_true", help="l2 order and batch norms alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--points", type=int, nargs="+", default=[0, 2_000, 10_000, 50_000, 250_000])
    parser.add_argument("--trials", type=int, help="proxies of all budgets together (default: effort small)")
    parser.add_argument("--rungs", type=int, default=3, choices=(1, 2, 3), help="1: policies are chosen by the proxy")
    parser.add_argument("--by-prediction", action="store_true", help="do not measure: latencies are the table's")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="CSV file; its folder of runs has the same name")
    return parser


if __name__ == "__main__":
    main()
