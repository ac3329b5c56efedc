"""Benchmark of one-shot reconstruction: every unit at a share of its width, without fine-tuning.

For each share and channel order (`l2` norms, optimal brain surgeon): batch norms recalibrated alone, and every layer
fitted by least squares. Prints score and divergence on at most 2,000 validation examples.

    python scripts/benchmarks/recovery.py --task fashion-mnist --model resnet20 --dense dense.safetensors
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from autoprune.evaluation.calibration_examples import reconstruction_of
from autoprune.pruning import channel_order, keep_best, score_units
from autoprune.records import Policy
from autoprune.recovery.batchnorm import recalibrate
from autoprune.recovery.moments import collect_moments
from autoprune.recovery.surgeon import surgeon_order
from autoprune.structure import Structure, analyze
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.task.load import load_task
from autoprune.training.dense import load_dense
from autoprune.training.scoring import evaluate, predict_outputs

_CALIBRATION_EXAMPLES = 512
_VAL_EXAMPLES = 2_000


def main() -> None:
    """Parse arguments, reconstruct, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dense", type=Path, required=True, help="trained weights (safetensors)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(given.task, given.model, None)
    dense = load_dense(task, given.dense)
    structure = analyze(dense, task.example_inputs)
    reconstruction = reconstruction_of(task, structure, 0)
    orders = _orders(task, structure)
    outputs = predict_outputs(dense, task, task.val_set)
    for share in given.shares:
        widths = {unit.name: max(1, int(unit.width * share)) for unit in structure.units}
        policy = Policy(space_id="", widths=widths)
        for name, order in orders.items():
            for solve in (False, True):
                keep = keep_best(order, policy)
                model = structure.shrink(policy, keep, prove=False).eval()
                start = time.perf_counter()
                if solve:
                    reconstruction.apply(model, structure.masks(policy, keep))
                else:
                    recalibrate(model, task)
                seconds = time.perf_counter() - start
                evaluation = evaluate(model, task, task.val_set, dense_outputs=outputs, limit=_VAL_EXAMPLES)
                how = "least squares" if solve else "batch norms"
                line = f"score {evaluation.score:.4f} divergence {evaluation.divergence:.3f} in {seconds:.1f} s"
                print(f"{share:6.0%} {name:4} {how:14} {line}", flush=True)


def _orders(task: Task, structure: Structure) -> dict[str, dict[str, list[int]]]:
    start = time.perf_counter()
    rows = sample_rows(length(task.train_set), _CALIBRATION_EXAMPLES, seed=0)
    moments = collect_moments(structure, [task.split(batch)[0] for batch in batches(task.train_set, 128, rows=rows)])
    collected = time.perf_counter()
    norms = channel_order(score_units(structure, "l2"))
    orders = {"l2": norms, "obs": surgeon_order(structure, moments, norms)}
    print(f"moments {collected - start:.1f} s, order {time.perf_counter() - collected:.1f} s")
    return orders


if __name__ == "__main__":
    main()
