"""Zeros without any training, as searches make them beside the smallest weights, in all linear layers that they divide.

    python scripts/benchmarks/zeros_without_training.py --task digits --model vit --patterns 2:4 1:4 sparse:75%

The dense model is trained by its task's recipe. Scores and divergences (mean over examples, from the dense outputs) are
those of test data.
"""

from __future__ import annotations

import argparse
import copy

import torch

from autoprune.evaluation.calibration_examples import reconstruction_inputs
from autoprune.recovery.sparse import make_sparse
from autoprune.sparsity.masks import pattern_mask
from autoprune.structure import analyze, module_tensors
from autoprune.task.load import load_task
from autoprune.training.dense import train_dense
from autoprune.training.scoring import evaluate, predict_outputs
from autoprune.treatments import Treatment


def main() -> None:
    """Print one line for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--model", default="vit")
    parser.add_argument("--patterns", nargs="+", default=["2:4", "1:4", "sparse:75%", "sparse:87.5%"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(given.task, given.model, None)
    dense = train_dense(task)
    structure = analyze(dense, task.example_inputs, task.outputs)
    whole = structure.shrink(structure.dense_policy(), prove=False).eval()
    outputs = predict_outputs(whole, task, task.test_set)
    inputs = reconstruction_inputs(task, structure, seed=0)
    print(f"dense: {evaluate(whole, task, task.test_set, dense_outputs=outputs).score:.4f}")
    for text in given.patterns:
        pattern = Treatment.parse(text).pattern
        if pattern is None:
            raise SystemExit(f"a pattern of zeros is needed, such as 2:4; got {text}")
        names = [
            name
            for layer in structure.layers if layer.op == "linear" and layer.divided_by(pattern)
            for name in layer.weights
        ]  # fmt: skip
        fitted = make_sparse(copy.deepcopy(whole), dict.fromkeys(names, pattern), inputs)
        smallest = copy.deepcopy(whole)
        weights = module_tensors(smallest)
        with torch.no_grad():
            for name in names:
                weights[name].mul_(pattern_mask(weights[name].abs(), pattern))
        for method, model in (("as in searches", fitted), ("smallest weights", smallest)):
            lost = evaluate(model, task, task.test_set, dense_outputs=outputs)
            print(f"{text} in {len(names)} layers, {method}: {lost.score:.4f}, divergence {lost.divergence:.4f}")


if __name__ == "__main__":
    main()
