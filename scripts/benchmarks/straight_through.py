"""Whether fine-tuning through the rounding of treated layers is better than rounding after a fine-tuning in fp32.

A trained net is cut to a share of every unit and repaired; all its layers that can have the precision get it. Printed
before the fine-tuning, with the nearest steps and with coarse layers rounded by moments, and after it for each seed
and each way: the test scores of the weights in fp32 and of the deployed model, the divergence of the deployed one from
fp32, and the processor seconds of the training.

    OMP_NUM_THREADS=1 python scripts/benchmarks/straight_through.py [--task mnist5k] [--model vit] [--precision w4]
        [--share 0.2] [--finetune 4000] [--seeds 3] [--dense weights.safetensors] [--samples 12000]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from int8 import trained_dense_model

from autoprune.evaluation import DenseModel
from autoprune.quantization.calibration import split_treatments
from autoprune.quantization.training_twin import training_twin
from autoprune.records import Policy
from autoprune.structure import GraphModel
from autoprune.training.finetune import finetune
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate, predict_outputs
from autoprune.treatments import Treatment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist5k")
    parser.add_argument("--model", default="vit")
    parser.add_argument("--precision", default="w4")
    parser.add_argument("--share", type=float, default=0.2, help="of every unit that is kept")
    parser.add_argument("--finetune", type=int, default=4_000, help="examples of a fine-tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dense", type=Path, help="weights, trained and written here when they are absent")
    parser.add_argument("--samples", type=int, default=12_000, help="examples that the dense net is trained on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dense_model = trained_dense_model(options.task, options.model, options.dense, options.samples)
    policy = _policy(dense_model, options.share, Treatment(precision=options.precision))
    repaired, rounded = (_repaired(dense_model, policy) for _ in range(2))
    dense_model.round_coarse_layers(rounded, policy, SamplePasses())
    print(f"before, nearest steps: {_scores(dense_model, repaired, repaired, policy)}", flush=True)
    print(f"before, by moments: {_scores(dense_model, repaired, rounded, policy)}", flush=True)
    _tune(dense_model, policy, options.finetune, options.seeds, through=False)  # keeps the teacher's outputs
    for seed in range(options.seeds):
        for through in (False, True):
            model, seconds = _tune(dense_model, policy, options.finetune, seed, through=through)
            way = "through the rounding" if through else "in fp32"
            print(f"seed {seed}, {way}: {_scores(dense_model, model, model, policy)}, {seconds:.1f} s", flush=True)


def _policy(dense_model: DenseModel, share: float, treatment: Treatment) -> Policy:
    structure = dense_model.structure
    widths = {unit.name: max(1, int(unit.width * share)) for unit in structure.units}
    treatments = {layer.name: treatment for layer in structure.layers if layer.allows(treatment)}
    return replace(structure.dense_policy(), widths=widths, treatments=treatments)


def _repaired(dense_model: DenseModel, policy: Policy) -> GraphModel:
    cut = dense_model.cut(policy)
    model = cut.shrink(prove=False)
    dense_model.repair(model, cut, SamplePasses())
    return model


def _tune(
    dense_model: DenseModel, policy: Policy, samples: int, seed: int, *, through: bool
) -> tuple[GraphModel, float]:
    """Return a fine-tuned model and the processor seconds of its training."""
    model = _repaired(dense_model, policy)
    placement = dense_model.structure.placement_in(model.captures[False].graph)
    form = training_twin(model, placement, *split_treatments(policy.treatments)) if through else model
    start = time.process_time()
    finetune(
        form,
        dense_model.task,
        samples=samples,
        seed=seed,
        teacher=dense_model.module,
        relative_cost=dense_model.relative_cost(policy),
        memory=dense_model.teacher,
        held_out=dense_model.held_out,
    )
    return model.eval(), time.process_time() - start


def _scores(dense_model: DenseModel, fp32: GraphModel, model: GraphModel, policy: Policy) -> str:
    """Compare a model in fp32 with the deployed form of a model."""
    task, outputs = dense_model.task, predict_outputs(fp32, dense_model.task, dense_model.task.test_set)
    forms = {"fp32": fp32, "deployed": dense_model.as_deployed(model, policy)}
    results = {name: evaluate(form, task, task.test_set, dense_outputs=outputs) for name, form in forms.items()}
    scores = ", ".join(f"{name} {result.score:.4f}" for name, result in results.items())
    return f"{scores}, divergence {results['deployed'].divergence:.2e}"


if __name__ == "__main__":
    main()
