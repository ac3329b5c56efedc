"""A residual CNN in the manner of torchvision, trained by its recipe."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import autoprune


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.down = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.ReLU(),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def stripes(count, seed):
    """Stand-in data: the class is the period of a pattern."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    wave = torch.sin(torch.arange(32) * (1 + labels[:, None]) * 0.15)
    images = wave[:, None, None, :] + 0.5 * torch.randn(count, 3, 32, 32, generator=generator)
    return TensorDataset(images, labels)


def make_task():
    return autoprune.Task(
        build_model=build_model,
        example_inputs=(torch.zeros(1, 3, 32, 32),),
        train_set=stripes(1000, 0),
        val_set=stripes(300, 1),
        test_set=stripes(300, 2),
        loss=F.cross_entropy,
        recipe=autoprune.Recipe(epochs=2, lr=0.05),  # leave out when build_model returns trained weights
    )
