"""Zeros among weights: test score against bytes, searched and shared out by yardsticks, with and without int8.

    python scripts/benchmarks/sparsity.py --task fashion-mnist --model resnet20 --dense dense.safetensors \\
        --budget 50% --budget 25% --budget 12% --budget 6% --seeds 0 1 2 --points 0 10000 --out sparsity.csv

- `searched`: the guided search over the levels of a space; the best policy of its last rung within the budget.
  `searched+rigl`: the same policy, whose zeros change places in the fine-tuning.
- `uniform`: the same level in all layers; `global magnitude`, `LAMP` and `ERK`: zeros that the dense weights share out,
  each with the nearest levels of the space within the budget (`pipeline.baselines`).
- `one-shot+lamp`, `gradual+lamp`, `rigl+lamp`, `admm+lamp`, `l1+lamp`: the dense net becomes sparse while it trains for
  so many passes, by a schedule of `autoprune.sparsify` or an L1 penalty, with the fewest zeros whose file is within the
  budget: shares of any size, where the levels of a space are few.

Budgets are shares of the bytes of the dense model in fp32. Every policy has the same repair (optimal brain surgeon,
layer by layer) and the same fine-tuning, from its repaired start, once for each number of passes; schedules have their
own training. Nets of `sparse-int8` are scored as they are deployed, int8 layers rounded. Rows are appended to a CSV
file; run it again to go on.
"""

from __future__ import annotations

import argparse
import bisect
import copy
import csv
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from sparse_training import made_sparse
from torch import nn

import autoprune
from autoprune.allocation.limits import require_reachable
from autoprune.allocation.promotion import best_within
from autoprune.allocation.uniform import uniform_policies
from autoprune.budgets import Bound, Budget, Limit
from autoprune.config import RunConfig
from autoprune.errors import BudgetError
from autoprune.evaluation import DenseModel
from autoprune.export.packing import packed
from autoprune.export.rounded_steps import Steps
from autoprune.pipeline.baselines import SHARED_OUT, shared_out_zeros
from autoprune.pipeline.events import Silent
from autoprune.pipeline.executors import executor_of
from autoprune.pipeline.exploration import explore, search_passes, search_plan
from autoprune.pipeline.preparation import Prepared, prepare
from autoprune.pipeline.run import open_task
from autoprune.pipeline.studies import study_location
from autoprune.records import Policy
from autoprune.runfolder import RunFolder
from autoprune.structure import GraphModel, module_tensors
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate
from autoprune.treatments import INT8, INT8_DYNAMIC

SEARCHED, EXCHANGED, UNIFORM = "searched", "searched+rigl", "uniform"
SCHEDULES = ("one-shot+lamp", "gradual+lamp", "rigl+lamp", "admm+lamp", "l1+lamp")
METHODS = (SEARCHED, EXCHANGED, UNIFORM, *SHARED_OUT, *SCHEDULES)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fine-tuned policy: `search_passes` for its budget, `passes` of fine-tuning, and its share of the bytes."""

    model: str
    space: str
    method: str
    budget: str
    seed: int
    search_passes: int
    passes: int
    test_score: float
    bytes_share: float
    params: int
    seconds: float


_KEY = ("model", "space", "method", "budget", "seed", "passes")


def main() -> None:
    """Run every space and seed that has rows missing."""
    given = parse()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for space in given.spaces:
            wanted = {
                (given.model, space, method, budget, str(seed), str(point))
                for method in given.methods for budget in given.budget for point in given.points
                if point or method not in SCHEDULES
            }  # fmt: skip
            if wanted - known(given.out):
                compare(given, space, seed)


def compare(given: argparse.Namespace, space: str, seed: int) -> None:
    """Search a space with one seed, and append the missing rows of all methods."""
    config = RunConfig(
        task=given.task, model=given.model, dense=str(given.dense.resolve()), space=space, seed=seed,
        budgets=(f"bytes:{given.budget[0]}",), trials=given.trials, executor="inline",
    )  # fmt: skip
    run = RunFolder(given.out.with_suffix("") / f"{given.model}-{space}-{seed}")
    run.create()
    prepared = prepare(config, run, open_task(config), Silent())
    # Several budgets of bytes would be one, the tightest.
    prepared = replace(prepared, costs=replace(prepared.costs, limits=reachable(given, prepared)))
    for method, budget, policy, spent in policies(given, config, run, prepared):
        for point in given.points:
            key = (given.model, space, method, budget, str(seed), str(point))
            if key not in known(given.out):
                append(given.out, scored(prepared, policy, Row(
                    model=given.model, space=space, method=method, budget=budget, seed=seed, search_passes=spent,
                    passes=point, test_score=0.0, bytes_share=0.0, params=0, seconds=0.0,
                )))  # fmt: skip
    for row in missing_schedules(given, space, seed):
        append(given.out, scheduled(prepared, row))


def reachable(given: argparse.Namespace, prepared: Prepared) -> Mapping[str, Limit]:
    """Return the limits of the budgets that some policy meets, and say which ones none does."""
    limits = {}
    for budget in (Budget.parse(f"bytes:{each}") for each in given.budget):
        alone = replace(prepared.costs, limits={}).with_budgets([budget])
        try:
            require_reachable(prepared.space, alone.limited_costs, alone.limits)
        except BudgetError as error:
            print(error, flush=True)
        else:
            limits |= alone.limits
    return limits


def missing_schedules(given: argparse.Namespace, space: str, seed: int) -> Iterator[Row]:
    """Yield a row without a score for each training by a schedule that the CSV file does not have."""
    for method in (method for method in SCHEDULES if method in given.methods):
        for budget in given.budget:
            for point in (point for point in given.points if point):
                if (given.model, space, method, budget, str(seed), str(point)) not in known(given.out):
                    yield Row(
                        model=given.model, space=space, method=method, budget=budget, seed=seed, search_passes=0,
                        passes=point, test_score=0.0, bytes_share=0.0, params=0, seconds=0.0,
                    )  # fmt: skip


def policies(
    given: argparse.Namespace, config: RunConfig, run: RunFolder, prepared: Prepared
) -> Iterator[tuple[str, str, Policy, int]]:
    """Yield method, budget, policy and the passes that were spent to find it."""
    costs, dense_model, effort = prepared.costs, prepared.dense_model, prepared.effort
    plan = search_plan(config, study_location(config, run), prepared.space, dense_model, costs, effort)
    budgets: Mapping[str, str] = {f"bytes:{budget}": budget for budget in given.budget}
    if UNIFORM in given.methods:
        for written, limit in costs.limits.items():
            alike = uniform_policies(plan.space, plan.dense_widths, costs.limited_costs, limit)
            if alike:  # of several precisions the one with the most numbers left
                yield UNIFORM, budgets[written], max(alike, key=lambda p: dense_model.sizes(p)["params"]), 0
    for written, strategy, policy in shared_out_zeros(plan.space, costs, dense_model.module):
        if strategy in given.methods:
            yield strategy, budgets[written], policy, 0
    searched = [method for method in (SEARCHED, EXCHANGED) if method in given.methods]
    if searched:
        with executor_of(config, run, prepared.evaluator) as executor:
            exploration = explore(plan, costs, prepared.deployment, executor, Silent())
            passes = search_passes(exploration.outcome, effort, dense_model.task, executor.slots, 0.0)
        for written, limit in costs.limits.items():
            for best in best_within(exploration.last_rung, limit, 1):
                for method in searched:
                    yield method, budgets[written], best.policy, round(sum(passes.values()) / len(costs.limits))


def scored(prepared: Prepared, policy: Policy, row: Row) -> Row:
    """Return a row with the test score of a policy after its passes of fine-tuning."""
    start, dense_model = time.monotonic(), prepared.dense_model
    cut = dense_model.cut(policy)
    model = cut.shrink()
    dense_model.repair(model, cut, SamplePasses())
    model = copy.deepcopy(dense_model.fitted(model, policy))
    if row.passes:
        schedule = "rigl" if row.method == EXCHANGED else "one-shot"
        dense_model.finetune(model, policy, samples=row.passes, seed=row.seed, schedule=schedule)
    deployed: GraphModel = dense_model.as_deployed(model, policy)
    score = evaluate(deployed, dense_model.task, dense_model.task.test_set, dense_outputs=None).score
    sizes, dense = dense_model.sizes(policy), dense_model.sizes(dense_model.structure.dense_policy())
    return shown(replace(
        row, test_score=score, bytes_share=round(sizes["bytes"] / dense["bytes"], 4), params=sizes["params"],
        seconds=round(time.monotonic() - start, 1),
    ))  # fmt: skip


def shown(row: Row) -> Row:
    """Print a row and return it."""
    print(f"{row.space} {row.method} {row.budget} seed {row.seed}: {row.bytes_share:.1%} of the bytes, "
          f"{row.test_score:.4f} after {row.passes} passes", flush=True)  # fmt: skip
    return row


def scheduled(prepared: Prepared, row: Row) -> Row:
    """Return a row with the test score of the dense net after it became sparse in a training of its passes."""
    start, dense_model = time.monotonic(), prepared.dense_model
    forms = {
        n: [level for level in prepared.space.levels[n] if level in (INT8, INT8_DYNAMIC)]
        for n in prepared.space.layer_names
    }
    in_int8 = prepared.space.policy({name: form[0] for name, form in forms.items() if form})
    layers = dense_model.structure.layers
    offered = {weight: True for layer in layers if forms.get(layer.name) for weight in layer.weights}
    dense_bytes = dense_model.sizes(dense_model.structure.dense_policy())["bytes"]
    limit = Bound.parse(f"bytes:{row.budget}").most(dense_bytes)
    shares = range(1, 1000)  # of zeros, in tenths of a percent
    first = bisect.bisect_left(shares, True, key=lambda share: file_bytes(
        autoprune.sparsify(dense_model.module, pattern=f"sparse:{share / 10}%", ranking="lamp"), offered
    ) <= limit)  # fmt: skip
    pattern = f"sparse:{shares[first] / 10}%"
    sparse = made_sparse(dense_model.task, dense_model.module, pattern, row.method, row.passes, row.seed)
    score = deployed_score(dense_model, sparse, in_int8)
    return shown(replace(
        row, test_score=score, bytes_share=round(file_bytes(sparse, offered) / dense_bytes, 4),
        params=sum(int((each != 0).sum()) for each in sparse.parameters()),
        seconds=round(time.monotonic() - start, 1),
    ))  # fmt: skip


def file_bytes(model: nn.Module, in_int8: Mapping[str, bool]) -> int:
    """Return the bytes of all tensors in their cheapest form, some weights as int8 steps."""
    total = 0
    for name, tensor in model.state_dict().items():
        steps = Steps.of(tensor) if in_int8.get(name) else None
        parts, _ = packed(tensor, None, steps) or ({"": tensor}, {})
        total += sum(part.numel() * part.element_size() for part in parts.values())
    return total


def deployed_score(dense_model: DenseModel, sparse: nn.Module, policy: Policy) -> float:
    """Return the test score of a sparse net of the dense net's shapes, with the layers of a policy in int8."""
    model = dense_model.cut(policy).shrink()
    tensors = module_tensors(sparse)
    with torch.no_grad():
        for name, tensor in module_tensors(model).items():
            if name in tensors:  # constants of the graph are not
                tensor.copy_(tensors[name])
    deployed = dense_model.as_deployed(model, policy)
    return evaluate(deployed, dense_model.task, dense_model.task.test_set, dense_outputs=None).score


def known(out: Path) -> set[tuple[str, ...]]:
    """Return what the rows of the CSV file are of."""
    if not out.exists():
        return set()
    with out.open(newline="") as file:
        return {tuple(row[name] for name in _KEY) for row in csv.DictReader(file)}


def append(out: Path, row: Row) -> None:
    """Append a row to the CSV file, which gets its header first."""
    is_new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(row))


def parse() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dense", type=Path, required=True, help="trained weights (safetensors)")
    parser.add_argument("--budget", action="append", required=True, help="share of the bytes, such as 12%%")
    parser.add_argument("--spaces", nargs="+", default=["unstructured", "sparse-int8"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--points", type=int, nargs="+", default=[0, 10_000])
    parser.add_argument("--trials", type=int, help="proxies of all budgets together (default: effort small)")
    parser.add_argument("--out", type=Path, required=True, help="CSV file; its folder of runs has the same name")
    return parser.parse_args()


if __name__ == "__main__":
    main()
