"""What layers without zeros or a rank gain for a model by making up for those before them, without any training.

    python scripts/benchmarks/later_layers.py --models mlp lstm vit --spaces unstructured lowrank

Of every model and space so many random policies are made: half of the layers keep all their weights, the others have a
random level that keeps more than the strictest third of the levels. Shown are divergence from the dense model and score
on the validation data when layers that keep all their weights stay as they are, and when they are fitted. The dense
models are trained first (`mlp` and `lstm` take about a minute, `vit` two).
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import median

import torch
from torch import fx

from autoprune.config import RunConfig
from autoprune.evaluation import DenseModel
from autoprune.pipeline.events import Silent
from autoprune.pipeline.preparation import prepare
from autoprune.pipeline.run import open_task
from autoprune.records import Policy, SearchSpace
from autoprune.recovery import layer_fitting, low_rank, sparse
from autoprune.runfolder import RunFolder
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate

Layers = Callable[[fx.Graph, Collection[str]], set[str]]


def main() -> None:
    """Print a line for every policy, and the median factor on the divergence of every model and space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist5k")
    parser.add_argument("--models", nargs="+", default=["mlp", "lstm", "vit"])
    parser.add_argument("--spaces", nargs="+", default=["unstructured", "lowrank"])
    parser.add_argument("--policies", type=int, default=12)
    parser.add_argument("--dense", type=Path, help="folder with <model>.safetensors (default: models are trained)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for model in given.models:
        for space_name in given.spaces:
            config = RunConfig(
                task=given.task, model=model, space=space_name, budgets=("bytes:50%",), executor="inline",
                dense=str((given.dense / f"{model}.safetensors").resolve()) if given.dense else None,
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                run = RunFolder(Path(folder) / "run")
                run.create()
                prepared = prepare(config, run, open_task(config), Silent())
                compare(f"{model} {space_name}", prepared.space, prepared.dense_model, given.policies)


def compare(name: str, space: SearchSpace, dense_model: DenseModel, count: int) -> None:
    """Print divergences and scores of random policies of a space."""
    draws, factors = random.Random(0), []
    for _ in range(count):
        policy = drawn(space, draws)
        alone, fitted = (scored(dense_model, policy, layers) for layers in (changed_alone, layer_fitting.fitted_layers))
        factors += [fitted[0] / alone[0]] if alone[0] > 1e-6 else []
        print(f"{name}: divergence {alone[0]:.4f} and {fitted[0]:.4f}, score {alone[1]:.3f} and {fitted[1]:.3f}",
              flush=True)  # fmt: skip
    print(f"{name}: median factor on the divergence {median(factors or [1.0]):.2f}", flush=True)


def drawn(space: SearchSpace, draws: random.Random) -> Policy:
    """Return a random policy in which about half of the layers keep all their weights."""
    levels = {name: space.levels[name] for name in space.layer_names}
    looser = {name: each[len(each) // 3 :] for name, each in levels.items()}
    return space.policy({n: each[-1] if draws.random() < 0.5 else draws.choice(each) for n, each in looser.items()})


def changed_alone(graph: fx.Graph, changed: Collection[str]) -> set[str]:
    """Return the layers that are fitted when the others stay as they are."""
    return {name for name in layer_fitting.fitted_layers(graph, changed) if name in changed}


def scored(dense_model: DenseModel, policy: Policy, layers: Layers) -> tuple[float, float]:
    """Return divergence and score of a policy's model, repaired in these layers."""
    sparse.fitted_layers = low_rank.fitted_layers = layers
    cut = dense_model.cut(policy)
    model = cut.shrink()
    dense_model.repair(model, cut, SamplePasses())
    model = dense_model.as_deployed(dense_model.fitted(model, policy), policy)
    found = evaluate(model, dense_model.task, dense_model.task.val_set, dense_outputs=dense_model.dense_outputs)
    assert found.divergence is not None
    return found.divergence, found.score


if __name__ == "__main__":
    main()
