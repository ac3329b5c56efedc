"""Searched policies against their uniform baselines on *test* data, as a curve over fine-tuning samples.

    python scripts/benchmarks/uniform.py RUN_DIR [--samples 0 2000 10000] [--seeds 3]

For every budget of a finished run: the best searched policy and the uniform policy that fits the same budget, both
recovered from the dense weights and fine-tuned with the same recipe and paired seeds. Prints the mean test score of
both, the paired difference with its standard error, and the measured latencies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from autoprune import Run
from autoprune.evaluation import DenseModel, Evaluator
from autoprune.records import Policy
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate
from autoprune.trials import Fidelity, FrontModel, TrialSpec, trial_seed


def test_scores(dense_model: DenseModel, policy: Policy, samples: int, seeds: int) -> np.ndarray:
    """Test score `[seeds]` after fine-tuning on `samples` examples."""
    evaluator = Evaluator(dense_model=dense_model, predict_ms=lambda _policy: 0.0)
    fidelity = Fidelity(name="benchmark", rung=0, finetune_samples=samples)
    scores = []
    for seed in range(seeds if samples else 1):
        spec = TrialSpec(number=0, policy=policy, fidelity=fidelity, seed=trial_seed(seed, fidelity))
        model = evaluator.recovered(spec, SamplePasses())
        scores.append(evaluate(model, dense_model.task, dense_model.task.test_set, dense_outputs=None).score)
    return np.array(scores)


def compare(run: Run, best: FrontModel, uniform: FrontModel, samples: list[int], seeds: int) -> None:
    """Print one line for every number of samples."""
    ratios = f"measured {best.latency_ratio:.1%} against {uniform.latency_ratio:.1%} of dense"
    print(f"\n{best.budget}: {best.digest} against uniform {uniform.digest}, {ratios}")
    for count in samples:
        ours, theirs = (test_scores(run.dense_model, model.policy, count, seeds) for model in (best, uniform))
        difference = ours - theirs
        error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
        print(
            f"  {count:>7,} samples: searched {ours.mean():.4f}  uniform {theirs.mean():.4f}  "
            f"difference {difference.mean():+.4f} (standard error {error:.4f}, {len(difference)} seeds)"
        )
    print(f"  full fine-tune:  searched {best.test_score:.4f}  uniform {uniform.test_score:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[0, 2_000, 10_000])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run.open(options.run_dir)
    baselines = {model.budget: model for model in run.baselines}
    for budget, baseline in sorted(baselines.items(), key=lambda pair: -pair[1].latency_ratio):
        searched = [m for m in [*run.models, *run.others] if m.budget == budget and m.strategy != "uniform"]
        meeting = [m for m in searched if m.meets_budget]
        if meeting:
            compare(run, max(meeting, key=lambda m: m.score), baseline, options.samples, options.seeds)


if __name__ == "__main__":
    main()
