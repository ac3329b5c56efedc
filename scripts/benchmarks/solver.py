"""How long the exact solver takes for the whole front of a residual net.

    python scripts/benchmarks/solver.py [--blocks 3 4 6 3] [--steps 8]

A bottleneck ResNet (default: the plan of ResNet-50 at 224 x 224, with removable blocks), sensitivities drawn at random
(convex, of another scale for each unit), and multiply-accumulates as the cost: as a latency table, they are a sum of
tables over the pairs of units that an operator depends on. The front answers every budget at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.allocation.solver import Solver
from autoprune.records import SearchSpace
from autoprune.space import SpaceSpec, build_space
from autoprune.structure import Structure, analyze


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Shape `[N, 4 * width, H / stride, W / stride]`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A bottleneck ResNet with `blocks[i]` blocks in stage i."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        layers, channels = [], 64
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(Bottleneck(channels, 64 << stage, stride))
                channels = 4 * (64 << stage)
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 1000]` of images `[N, 3, H, W]`."""
        return self.fc(self.blocks(self.pool(self.stem(x))).mean((2, 3)))


def macs(structure: Structure, space: SearchSpace) -> AdditiveCost:
    """Multiply-accumulates as a sum of tables over the levels of the units of each operator."""
    names = [unit.name for unit in structure.units]
    full = np.array([unit.width for unit in structure.units])
    constant, tables = 0.0, []
    for op in structure.operators:
        levels = [space.levels[names[u]] for u in op.units]
        grid = np.stack(np.meshgrid(*levels, indexing="ij"), axis=-1).reshape(-1, len(levels))
        rows = np.tile(full, (len(grid), 1))
        rows[:, list(op.units)] = grid
        values = np.asarray(op.macs(rows), dtype=float)
        if op.units:
            shape = tuple(map(len, levels))
            tables.append(CostTable(units=tuple(names[u] for u in op.units), values=values.reshape(shape)))
        else:
            constant += float(values[0])
    return AdditiveCost(constant=constant, tables=tuple(tables))


def main() -> None:
    """Print the times of one front."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 4, 6, 3])
    parser.add_argument("--steps", type=int, default=8, help="levels of a unit")
    given = parser.parse_args()
    start = time.monotonic()
    structure = analyze(ResNet(given.blocks).eval(), (torch.zeros(1, 3, 224, 224),))
    print(f"structure: {len(structure.units)} units, {time.monotonic() - start:.1f} s")
    space = build_space(SpaceSpec(steps=given.steps), structure.units, structure.digest())
    rng = np.random.default_rng(0)
    table = {}
    for name, levels in space.levels.items():
        cut = 1 - np.array(levels) / levels[-1]
        table[name] = rng.lognormal() * cut ** rng.uniform(1, 3)
    cost = macs(structure, space)
    start = time.monotonic()
    front = Solver(space, {"macs": cost}).front(table, "macs")
    seconds = time.monotonic() - start
    policies = np.prod([len(levels) for levels in space.levels.values()], dtype=float)
    print(f"solver: {len(front.cost):,} allocations of {policies:.1e} policies in {seconds:.2f} s")
    for share in (0.5, 0.33, 0.25, 0.15):
        place = int(np.searchsorted(front.cost, share * front.cost[-1], side="right")) - 1
        print(f"  {share:.0%} of the MACs: summed sensitivity {front.loss[place]:.4f}")


if __name__ == "__main__":
    main()
