"""Fine-tune published models that come with weights, but without a training recipe: the repair against what follows it.

Each model is cut to half its latency, measured on this machine, by one share of all widths, repaired, and fine-tuned
without labels: by the rate that was the default of earlier versions, without held-out data, and by the recipe that a
short test finds, with them. The score is the closeness to the dense outputs on test data, 1 minus the relative squared
error.

The weights are inside wheels, which are unpacked and not installed, because they pin other versions of torch:

    pip download --no-deps -d DIR facenet-pytorch resemblyzer torchfcpe  # wheels
    python scripts/benchmarks/no_recipe.py DIR --json no_recipe.json

Images are crops of two photographs of scikit-learn; voices are synthetic. The code of torchfcpe needs the packages
`einops` and `local-attention`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from no_recipe_models import MODELS, task_of
from torch import nn

import autoprune
from autoprune.device.connect import make_target
from autoprune.evaluation import DenseModel
from autoprune.evaluation.calibration_examples import reconstruction_of
from autoprune.pipeline.measurer import CANDIDATE_PROTOCOL
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.pruning import channel_order, score_units
from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from autoprune.structure.layer_decisions import policy_of
from autoprune.training.finetune import finetune
from autoprune.training.recipe_search import find_recipe
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate, predict_outputs


def half(structure: Structure) -> tuple[Policy, float]:
    """Return the widest policy of one share of every unit that takes half of the dense latency, and its measured ratio.

    Latencies are those of ONNX Runtime on one thread, each timed alternately with the dense model.
    """
    timer = make_policy_timer(structure, make_target("ort-cpu"))
    units = structure.units

    def widths(shares: np.ndarray) -> np.ndarray:
        return np.array([[max(1, round(unit.width * share)) for unit in units] for share in shares])

    low, high = 0.0, 1.0
    for steps in (8, 6, 6):
        shares = np.linspace(low, high, steps + 2)[1:-1]
        ratios = timer.time(widths(shares), "shares", CANDIDATE_PROTOCOL).ratios
        fits = [share for share, ratio in zip(shares, ratios, strict=True) if ratio <= 0.5]
        low = max(fits, default=low)
        high = min((share for share in shares if share > low), default=high)
    if not low:
        raise ValueError("no share of the widths takes half of the latency")
    row = widths(np.array([low]))
    return policy_of(timer.columns, row[0]), float(timer.time(row, "half", CANDIDATE_PROTOCOL).ratios[0])


def row_of(name: str, folder: Path, examples: int, samples: int, seeds: int) -> dict[str, Any]:
    """Return scores after the repair, after the earlier default, and after the tested recipe with held-out data."""
    task = task_of(name, folder, examples)
    dense = task.build_model().eval()
    structure = analyze(dense, task.example_inputs)
    order = channel_order(score_units(structure, "l2"))
    reconstruction = reconstruction_of(task, structure, 0)
    dense_model = DenseModel(task=task, module=dense, structure=structure, order=order, reconstruction=reconstruction)
    (policy, latency_ratio), passes = half(structure), SamplePasses()
    cut = dense_model.cut(policy)
    repaired = cut.shrink()
    dense_model.repair(repaired, cut, passes)
    dense_outputs = predict_outputs(dense, task, task.test_set)

    def score(model: nn.Module) -> float:
        try:
            return evaluate(model, task, task.test_set, dense_outputs=dense_outputs).score
        except autoprune.AutopruneError:
            return float("nan")

    start = time.monotonic()
    cost = dense_model.relative_cost(policy)
    choice = find_recipe(repaired, task, teacher=dense, held_out=dense_model.held_out, seed=0, relative_cost=cost)
    seconds = time.monotonic() - start
    before, after, undone, scales = [], [], [], []
    for seed in range(seeds):
        plain, guarded = copy.deepcopy(repaired), copy.deepcopy(repaired)
        try:
            finetune(plain, task, samples=samples, seed=seed, teacher=dense)
            before.append(score(plain))
        except autoprune.AutopruneError:
            before.append(float("nan"))
        result = finetune(
            guarded,
            task,
            samples=samples,
            seed=seed,
            recipe=choice.recipe,
            teacher=dense,
            held_out=dense_model.held_out,
        )
        after.append(score(guarded))
        undone.append(result.undone)
        scales.append(result.rate_scale)
    return {
        "model": name,
        "params": sum(p.numel() for p in dense.parameters()),
        "latency_ratio": latency_ratio,
        "repaired_score": score(repaired),
        "default_scores": before,
        "tested_scores": after,
        "undone": undone,
        "rate_scales": scales,
        "optimizer": choice.recipe.optimizer,
        "lr": choice.recipe.lr,
        "test_sample_passes": choice.sample_passes,
        "test_seconds": seconds,
        "tests": choice.to_json()["tests"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, scores as mean over the seeds."""
    lines = [
        "| model | latency left | repaired | SGD, rate 0.02 | tested recipe, held-out data | recipe | undone "
        "| passes of the test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, after = (sum(row[key]) / len(row[key]) for key in ("default_scores", "tested_scores"))
        lines.append(
            f"| {row['model']} | {row['latency_ratio']:.0%} "
            f"| {row['repaired_score']:.3f} | {before:.3f} | {after:.3f} | {row['optimizer']} "
            f"{row['lr']:g} | {sum(row['undone'])} of {len(row['undone'])} | {row['test_sample_passes']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of the wheels")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--examples", type=int, default=2_000, help="training examples")
    parser.add_argument("--samples", type=int, default=2_000, help="examples that a fine-tuning trains on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file that all numbers are written to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for wheel in options.wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder)
        for name in options.models:
            rows.append(row_of(name, Path(folder), options.examples, options.samples, options.seeds))
            print(rows[-1], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
