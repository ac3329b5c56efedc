"""Outputs of layers that a pruned model learns to write as the dense model does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import autoprune
from autoprune.errors import UsageError
from autoprune.training.batch_schedule import TrainingBatch
from autoprune.training.finetune import finetune
from autoprune.training.layer_outputs import LayerOutputs
from autoprune.training.teacher import TeacherMemory


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def make_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))


LAYERS = LayerOutputs(channels={"0": 1, "3": -1})


def test_a_distance_is_relative_to_the_variance_of_the_dense_outputs_in_the_kept_channels() -> None:
    layers = LayerOutputs(channels={"conv": 1, "fc": -1}, kept={"conv": {1: torch.tensor([0, 2])}})
    conv, fc = normal(16, 3, 5, 5) * 7 + 4, normal(16, 6, 8, seed=1)
    dense = layers.of_kept({"conv": conv, "fc": fc})
    assert torch.equal(dense["conv"], conv[:, [0, 2]])
    assert float(layers.distance(dense, dense)) == 0.0  # type: ignore[arg-type]
    means = {"conv": dense["conv"].mean((0, 2, 3), keepdim=True).expand_as(dense["conv"]), "fc": fc}
    assert float(layers.distance(means, dense)) == pytest.approx(0.5)  # type: ignore[arg-type]
    only_fc = layers.distance({"conv": conv, "fc": fc + 1}, dense)
    assert float(only_fc) == pytest.approx(1.0, rel=0.1)  # type: ignore[arg-type]
    assert layers.distance({"conv": conv}, dense) is None


def test_hooks_are_gone_after_a_pass() -> None:
    net = make_net()
    with LAYERS.recorded(net) as outputs:
        net(normal(2, 1, 6, 6))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {"0": (2, 4, 4, 4), "3": (2, 8)}
    outputs.clear()
    net(normal(2, 1, 6, 6))
    assert not outputs


def trained(weight: float, layers: LayerOutputs | None = LAYERS, memory: TeacherMemory | None = None) -> nn.Module:
    x = normal(64, 1, 6, 6)
    recipe = autoprune.Recipe(batch_size=16, lr=0.01, layer_weight=weight)
    task = autoprune.Task(
        name="tiny", build_model=make_net, example_inputs=(x[:1],), loss=F.cross_entropy, recipe=recipe,
        train_set=TensorDataset(x, torch.arange(64) % 3), val_set=TensorDataset(x, torch.arange(64) % 3),
        test_set=TensorDataset(x, torch.arange(64) % 3),
    )  # fmt: skip
    model = make_net()
    with torch.no_grad():
        model[0].weight[:, :, 0] = 0
    finetune(model, task, samples=256, seed=0, recipe=recipe, teacher=make_net(), layers=layers, memory=memory)
    return model


def test_a_fine_tune_brings_layers_nearer_to_the_dense_ones() -> None:
    x, dense = normal(64, 1, 6, 6, seed=3), make_net()
    distances = {}
    for weight in (0.0, 5.0):
        model = trained(weight)
        with torch.no_grad(), LAYERS.recorded(model) as mine, LAYERS.recorded(dense) as wanted:
            model(x), dense(x)
        distances[weight] = float(LAYERS.distance(mine, wanted))  # type: ignore[arg-type]
    assert distances[5.0] < 0.7 * distances[0.0]


def test_layers_do_not_count_beside_a_memory_which_keeps_outputs_alone() -> None:
    alone = trained(5.0, layers=None, memory=TeacherMemory())
    beside = trained(5.0, memory=TeacherMemory())
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), beside.parameters(), strict=True))


def test_repeated_batches_keep_the_outputs_of_layers() -> None:
    batch = TrainingBatch((normal(4, 2),), normal(4, 3), {"fc": normal(4, 8)})
    assert batch.nbytes == 4 * (8 + 12 + 32)


def test_the_recipe_says_how_much_layers_count() -> None:
    with pytest.raises(UsageError, match="layer_weight must lie in"):
        autoprune.Recipe(layer_weight=-1.0)
