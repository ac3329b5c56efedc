"""Models are trained channels last where they run so, and where that is safe."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.structure import analyze
from autoprune.task.recipe import Recipe
from autoprune.training import memory_layout
from autoprune.training.finetune import finetune
from autoprune.training.memory_layout import to_channels_last
from tests.task.toys import toy_task

TASK = toy_task(finetune_recipe=Recipe(batch_size=16, lr=0.05, precision="fp32"))


class Net(nn.Module):
    """A block with a projection that reads some channels with a stride."""

    def __init__(self, channels: int = 4, stride: int = 2, kernel: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Conv2d(channels, 8, 3, stride=stride, padding=1)
        self.project = nn.Conv2d(channels, 8, kernel, stride=stride, padding=kernel // 2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        return self.fc((self.body(x) + self.project(x)).mean((2, 3)))


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).view(-1, 48))


def is_channels_last(model: nn.Module) -> bool:
    to_channels_last(model, TASK)
    filters = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in filters) and bool(filters)


@pytest.mark.parametrize(
    ("capability", "net", "expected"),
    [
        ("AVX2", Net(), False), ("AVX2", Net(channels=7), False), ("AVX2", Net(channels=8), True),
        ("AVX512", Net(channels=8), False), ("AVX512", Net(channels=16), True), ("other", Net(channels=8), False),
        ("AVX2", Net(stride=1), True), ("AVX2", Net(kernel=3), True),
    ],
)  # fmt: skip
def test_narrow_pointwise_convolutions_with_stride_keep_a_model_contiguous(
    capability: str, net: Net, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_layout.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert is_channels_last(net) == expected
    structure = analyze(net.eval(), TASK.example_inputs)
    assert is_channels_last(structure.shrink(structure.dense_policy(), prove=False)) == expected


def test_a_net_with_such_a_convolution_trains_on() -> None:
    """A process died here by a heap that oneDNN had written to."""
    torch.manual_seed(0)
    finetune(Net(), TASK, samples=640, seed=0)


def test_a_model_that_cannot_run_channels_last_trains_contiguous() -> None:
    finetune(Viewing(), TASK, samples=16, seed=0)
