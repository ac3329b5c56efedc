"""Scoring the policies of a replay table: which ones, in what order, at which fidelities."""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from curves import drop_torn_line
from replay_table import RUNGS, ReplayTable, header, line

from autoprune.allocation.limit_fitting import fit_to_limit
from autoprune.allocation.promotion import best_within
from autoprune.allocation.uniform import uniform_policy
from autoprune.budgets import Limit
from autoprune.config import RunConfig
from autoprune.executors.base import Executor
from autoprune.pipeline.events import Silent
from autoprune.pipeline.executors import executor_of
from autoprune.pipeline.preparation import Prepared, prepare
from autoprune.pipeline.run import open_task
from autoprune.records import Policy, SearchSpace
from autoprune.runfolder import RunFolder
from autoprune.search.controller import run_search
from autoprune.search.effort import Effort
from autoprune.search.explore import Search
from autoprune.search.sensitivity import single_unit_policies
from autoprune.trials import Fidelity, TrialResult, TrialSpec, trial_seed

_GUIDED_TRIALS = 32
"""Proposals of a guided search for each budget."""

_CENTRES = 2
"""Best policies of each budget whose neighbours are scored, too."""

_BRIEFS, _EPOCHS = 96, 12
"""So many brief fine-tunes take turns with so many epochs."""

_BANDS = (0.8, 0.65, 0.55, 0.42, 0.37, 0.29, 0.2)
"""Shares of the dense latency of the random policies between the budgets, and of the uniform ones."""


def make(given: argparse.Namespace) -> None:
    """Score what the table lacks, and append it."""
    torch.set_num_threads(1)
    config, folder, prepared = _opened(given)
    limits = [
        Limit.of(latency_ms=share * prepared.costs.predict_ms(prepared.space.largest())) for share in given.budget
    ]
    given.table.parent.mkdir(parents=True, exist_ok=True)
    with executor_of(config, folder, prepared.evaluator) as executor:
        table = _Table(given.table, prepared.space)
        if len(table.plan) < given.policies:
            guided = _guided(prepared, folder, limits, executor)
            table.plan |= {
                p: o for p, o in planned(prepared, limits, guided, given.policies).items() if p not in table.plan
            }
            table.add(guided)
        _climb(table, executor, limits, prepared.deployment.seed, given.epochs)


def _climb(table: _Table, executor: Executor, limits: Sequence[Limit], seed: int, epochs: int) -> None:
    """Score all policies at the proxy, then the most promising ones more dearly: a table cut short is of use, too."""
    proxy, brief, epoch = RUNGS
    table.score(executor, proxy, table.plan, seed)
    promising = table.by_promise(limits, proxy)
    for number in range(1, len(promising) // _BRIEFS + 2):
        table.score(executor, brief, promising[: number * _BRIEFS], seed)
        table.score(executor, epoch, table.by_promise(limits, brief)[: min(number * _EPOCHS, epochs)], seed)
    table.score(executor, epoch, table.by_promise(limits, brief)[:epochs], seed)
    table.score(executor, brief, table.plan, seed)


def planned(
    prepared: Prepared, limits: Sequence[Limit], guided: Sequence[TrialResult], count: int
) -> dict[Policy, str]:
    """Policies with their origin, about `count`. `guided` are the results of a guided search."""
    space, rng = prepared.space, np.random.default_rng(0)
    origins = dict.fromkeys(_extremes(space), "extreme") | single_unit_policies(space)
    dense_ms = prepared.costs.predict_ms(space.largest())
    bands = [Limit.of(latency_ms=share * dense_ms) for share in _BANDS]
    for limit in (*limits, *bands):
        uniform = uniform_policy(space, prepared.dense_model.structure.full_widths, prepared.costs.limited_costs, limit)
        origins |= {uniform: "uniform"} if uniform is not None else {}
    origins = dict.fromkeys((result.policy for result in guided), "guided") | origins
    for limit in limits:
        for centre in best_within(guided, limit, _CENTRES):
            origins = dict.fromkeys(space.neighbours(centre.policy), "neighbour") | origins
    drawn = 0
    while len(origins) < count:
        # Two in three at the budgets, where a search needs others to choose from.
        limit = bands[drawn // 3 % len(bands)] if drawn % 3 == 2 else limits[drawn % len(limits)]
        start = space.policy({name: int(rng.choice(space.widths_of(name))) for name in space.searched})
        policy = fit_to_limit(start, space, prepared.costs.limited_costs, limit, rng)
        drawn += 1
        if policy is not None and policy not in origins:
            origins[policy] = "random"
    return origins


def _opened(given: argparse.Namespace) -> tuple[RunConfig, RunFolder, Prepared]:
    config = RunConfig(
        task=given.task,
        model=given.model,
        dense=str(given.dense.resolve()),
        space=given.space,
        budgets=tuple(f"{100 * share:g}%" for share in given.budget),
        executor="inline" if given.workers == 1 else "process",
        workers=given.workers,
    )
    folder = RunFolder(given.folder)
    folder.create()
    return config, folder, prepare(config, folder, open_task(config), Silent())


def _guided(prepared: Prepared, folder: RunFolder, limits: Sequence[Limit], executor: Executor) -> list[TrialResult]:
    """Results of a guided search, its sensitivities included."""
    search = Search(
        location=folder.study,
        space=prepared.space,
        dense_widths=prepared.dense_model.structure.full_widths,
        predict=prepared.costs.limited_costs,
        limits=tuple(limits),
        effort=Effort(
            name="replay",
            trials=_GUIDED_TRIALS * len(limits),
            rungs=RUNGS[:1],
            promoted=(),
            full=RUNGS[-1],
            finalists=1,
        ),
        run_seed=prepared.deployment.seed,
        additive=prepared.costs.additive(prepared.space),
    )
    return [result for results in run_search(search, executor).results.values() for result in results]


def _extremes(space: SearchSpace) -> Iterator[Policy]:
    """The largest and the smallest policy, the smallest with one full unit each, and the largest without branches."""
    yield space.largest()
    yield space.smallest()
    smallest = space.smallest().widths
    yield from (space.policy({**smallest, name: space.levels[name][-1]}) for name in space.searched)
    yield space.policy({name: 0 for name in space.searched if space.levels[name][0] == 0})


class _Table:
    """The file while it grows. `plan` has the origin of every policy that is in it or will be."""

    def __init__(self, path: Path, space: SearchSpace) -> None:
        self._path = path
        self._space = space
        drop_torn_line(path)
        if not path.stat().st_size:
            path.write_text(",".join(header(space.unit_names)) + "\n")
        loaded = ReplayTable.load(path, space.id)
        self._results = {name: dict(results) for name, results in loaded.results.items()}
        self.plan = dict(loaded.origins)

    def add(self, results: Iterable[TrialResult]) -> None:
        """Append what is done and not there yet."""
        with self._path.open("a", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, header(self._space.unit_names), lineterminator="\n")
            for result in results:
                known = self._results[result.fidelity.name]
                if result.status == "done" and result.policy not in known:
                    known[result.policy] = result
                    writer.writerow(line(self.plan[result.policy], result))

    def score(self, executor: Executor, fidelity: Fidelity, policies: Iterable[Policy], run_seed: int) -> None:
        """Score the policies that lack this fidelity, in this order."""
        start = time.monotonic()
        missing = [policy for policy in policies if policy not in self._results[fidelity.name]]
        specs = iter(
            TrialSpec(number=n, policy=policy, fidelity=fidelity, seed=trial_seed(run_seed, fidelity))
            for n, policy in enumerate(missing)
        )
        for spec in itertools.islice(specs, executor.slots):
            executor.submit(spec)
        for done in range(1, len(missing) + 1):
            result = executor.wait()
            for spec in itertools.islice(specs, 1):
                executor.submit(spec)
            self.add([result])
            took = f"{time.monotonic() - start:.0f} s"
            print(f"{fidelity.name} {done} of {len(missing)}, {took}: {result.error or result.status}", flush=True)

    def by_promise(self, limits: Sequence[Limit], fidelity: Fidelity) -> list[Policy]:
        """Policies within the limits, uniform ones first, then by their loss, the limits in turns."""
        results = list(self._results[fidelity.name].values())
        queues = [[r.policy for r in best_within(results, limit, len(results))] for limit in limits]
        uniform = [policy for policy in itertools.chain(*queues) if self.plan[policy] == "uniform"]
        turns = itertools.chain(*itertools.zip_longest(*queues))
        return list(dict.fromkeys(policy for policy in (*uniform, *turns) if policy is not None))
