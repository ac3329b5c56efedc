"""Paired fine-tunes of one repaired model with and without held-out examples: whether the safeguard costs score.

Both of a pair have the same seed, hence the same batches. Printed are the differences of validation and test score, in
points with their standard errors, and how far the best held-out loss was below the last one.

    OMP_NUM_THREADS=1 python scripts/benchmarks/held_out.py [--task digits] [--seeds 12] [--samples 3600] [--tie 0.05]
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch

from autoprune.evaluation import DenseModel
from autoprune.evaluation.calibration_examples import reconstruction_of
from autoprune.pruning import channel_order, score_units
from autoprune.records import Policy
from autoprune.recovery.least_squares import Reconstruction
from autoprune.structure import GraphModel, analyze
from autoprune.task.builtin import make_task
from autoprune.training import safeguard
from autoprune.training.dense import train_dense
from autoprune.training.finetune import finetune
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate

SHARES = (0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--samples", type=int, default=3600)
    parser.add_argument("--tie", type=float, default=safeguard.TIE, help="0: the best state always")
    options = parser.parse_args()
    torch.set_num_threads(1)
    safeguard.TIE = options.tie
    dense_model = _dense_model(options.task)
    print(f"{options.task}, {options.samples} samples, {options.seeds} paired seeds, tie {options.tie:g}")
    for share in SHARES:
        model = _repaired(dense_model, share)
        pairs = [_pair(dense_model, model, options.samples, seed) for seed in range(options.seeds)]
        difference = 100 * np.array(pairs)
        error = difference.std(axis=0, ddof=1) / np.sqrt(len(pairs))
        columns = zip(("validation", "test"), difference.mean(axis=0), error, strict=True)
        print(f"{share:.0%} of every unit: " + ", ".join(f"{n} {d:+.2f} +- {e:.2f} points" for n, d, e in columns))


def _dense_model(name: str) -> DenseModel:
    task = make_task(name)
    dense = train_dense(task, seed=0)
    structure = analyze(dense, task.example_inputs)
    order = channel_order(score_units(structure, "l2"))
    reconstruction: Reconstruction = reconstruction_of(task, structure, seed=0)
    return DenseModel(task=task, module=dense, structure=structure, order=order, reconstruction=reconstruction)


def _repaired(dense_model: DenseModel, share: float) -> GraphModel:
    widths = {unit.name: max(1, round(share * unit.width)) for unit in dense_model.structure.units}
    cut = dense_model.cut(Policy(space_id="", widths=widths))
    model = cut.shrink()
    dense_model.repair(model, cut, SamplePasses())
    return model


def _pair(dense_model: DenseModel, repaired: GraphModel, samples: int, seed: int) -> list[float]:
    """Return validation and test score with held-out examples, less those without."""
    scores = []
    for held_out in (None, dense_model.held_out):
        model = copy.deepcopy(repaired)
        finetune(
            model, dense_model.task, samples=samples, seed=seed, teacher=dense_model.module,
            memory=dense_model.teacher, held_out=held_out,
        )  # fmt: skip
        task = dense_model.task
        scores.append([evaluate(model, task, data).score for data in (task.val_set, task.test_set)])
    return [with_it - without for without, with_it in zip(*scores, strict=True)]


if __name__ == "__main__":
    main()
