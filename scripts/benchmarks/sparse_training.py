"""Test scores of sparse nets by schedule: how weights become zero in a training of the same length.

Every row is one training: the dense net is made sparse to a pattern while it trains for as many examples as every
other way. Rows are appended to a CSV file; those that it holds already are not computed again. Ways are schedules of
`autoprune.sparsify`, also with a ranking (`gradual+lamp`), `scratch` for the mask trained from new weights, `none` for
no training, `random` for random masks, and `l1` for an L1 penalty in the recipe before the mask is set at once.

    OMP_NUM_THREADS=1 python scripts/benchmarks/sparse_training.py --out sparse.csv [--task digits] [--model resnet8]
        [--dense weights.safetensors] [--patterns sparse:90% sparse:95%] [--ways one-shot gradual rigl]
        [--samples 10000] [--seeds 3]
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import autoprune
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.task.builtin import make_task
from autoprune.training.dense import load_dense, train_dense, weights_to_bytes
from autoprune.training.finetune import finetune
from autoprune.training.scoring import evaluate

WAYS = (
    "none", "random", "one-shot", "one-shot+erk", "one-shot+global", "one-shot+lamp", "scratch+lamp", "gradual",
    "gradual+lamp", "iterative+lamp", "set+lamp", "rigl+lamp", "admm+lamp", "growing+lamp", "l1+lamp",
)  # fmt: skip
_L1 = "l1:0.0003"
COLUMNS = (
    "task",
    "model",
    "pattern",
    "way",
    "samples",
    "seed",
    "zeros",
    "test_score",
    "dense_test_score",
    "passes",
    "s",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--model")
    parser.add_argument("--dense", type=Path, help="weights, trained and written here when they are absent")
    parser.add_argument("--patterns", nargs="+", default=["sparse:90%", "sparse:95%"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--samples", type=int, default=10_000, help="examples of each training")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = make_task(options.task, options.model)
    dense = _dense(task, options.dense)
    dense_score = evaluate(dense, task, task.test_set).score
    known = _known(options.out)
    for seed in range(options.seeds):
        for pattern in options.patterns:
            for way in options.ways:
                key = (options.task, options.model or "", pattern, way, str(options.samples), str(seed))
                if key not in known:
                    row = [*key, *_result(task, dense, pattern, way, options.samples, seed, dense_score)]
                    _append(options.out, row)
                    print(*row, flush=True)


def _dense(task: Task, path: Path | None) -> nn.Module:
    if path is not None and path.exists():
        return load_dense(task, path)
    dense = train_dense(task)
    if path is not None:
        path.write_bytes(weights_to_bytes(dense))
    return dense


def _result(
    task: Task, dense: nn.Module, pattern: str, way: str, samples: int, seed: int, dense_score: float
) -> list[Any]:
    begun = time.process_time()
    sparse = made_sparse(task, dense, pattern, way, samples, seed)
    score = evaluate(sparse, task, task.test_set).score
    about = vars(sparse)["sparse_to"]
    seconds = time.process_time() - begun
    return [
        f"{about.share_of_zeros:.4f}", f"{score:.4f}", f"{dense_score:.4f}", f"{about.sample_passes:.0f}",
        f"{seconds:.1f}",
    ]  # fmt: skip


def made_sparse(task: Task, dense: nn.Module, pattern: str, way: str, samples: int, seed: int) -> nn.Module:
    """Return the model that became sparse in one of the ways, by so many examples."""
    name, _, ranking = way.partition("+")
    options = dict[str, Any](ranking=ranking or "local")
    if name in ("none", "bias", "least-squares", "scratch"):
        options["finetune"] = name
    elif name == "random":
        options["scores"] = name
    elif name != "l1":
        options["schedule"] = name
    model, epochs = dense, samples / length(task.train_set)
    if name == "l1":  # half of the examples for the penalty, half for the mask
        model, epochs = autoprune.sparsify(dense, pattern="sparse:0.01%"), epochs / 2
        recipe = replace(task.tuning_recipe, terms=(_L1,))
        finetune(model, task, samples=samples // 2, seed=seed, recipe=recipe, teacher=dense)
    return autoprune.sparsify(model, task, pattern=pattern, epochs=epochs, seed=seed, allowed_drop=1.0, **options)


def _known(path: Path) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    with path.open() as file:
        return {tuple(row[:6]) for row in csv.reader(file)}


def _append(path: Path, row: list[Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, row] if new else [row])


if __name__ == "__main__":
    main()
