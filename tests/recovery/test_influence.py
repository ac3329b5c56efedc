"""What is written in place changes all that is read from the same memory later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.records import Policy
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.prefix import PrefixCache
from autoprune.structure import analyze


class Written(nn.Module):
    """`last` reads what `writer` made of a part of an activation or of a buffer, under the name it had before."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.writer = nn.Conv2d(6, 4, 3, padding=1)
        self.last, self.head = nn.Conv2d(8 if kind == "part" else 4, 5, 3, padding=1), nn.Linear(5, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        made = self.writer(torch.relu(self.inner(torch.relu(stem))))
        if self.kind == "part":
            stem[:, :4].add_(made)
            read = stem
        elif self.kind == "padded":
            read = torch.zeros(x.shape[0], 4, 8, 8)
            read[:, :, 1:-1, 1:-1] = made
        else:
            read = torch.zeros(x.shape[0], 4, 6, 6)
            read.copy_(made)
        return self.head(torch.relu(self.last(read)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["part", "padded", "whole"])
def test_readers_of_written_memory_are_touched_and_repaired(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Written(kind).eval(), torch.randn(64, 1, 6, 6)
    structure = analyze(model, (x[:1],))
    unit = next(u for u in structure.units if u.name == "inner")
    policy = Policy(space_id="", widths=structure.full_widths | {unit.name: 2})
    shrunk, masks = structure.shrink(policy).eval(), structure.masks(policy)
    reconstruction = Reconstruction(structure=structure, inputs=(x,))
    changed = reconstruction.touched(shrunk.evaluation_graph().graph, masks)
    readers = [n.name for n in shrunk.evaluation_graph().graph.nodes if "conv2d" in n.name or "linear" in n.name]
    assert set(readers) - changed == {"conv2d"}  # the stem
    reconstruction.apply(shrunk, masks)
    assert not torch.equal(shrunk.state_dict()["last.weight"], model.last.weight)
    assert torch.equal(shrunk.state_dict()["stem.weight"], model.stem.weight)
    outputs = PrefixCache(structure=structure, batches=((x,),)).outputs(shrunk, changed)
    with torch.no_grad():
        assert outputs is None or torch.allclose(outputs, shrunk(x), atol=1e-6)


def test_what_was_read_before_the_write_stays() -> None:
    class Before(Written):
        def forward(self, x: Tensor) -> Tensor:
            stem = self.stem(x)
            aside = torch.relu(stem).mean((2, 3))
            stem[:, :4].add_(self.writer(torch.relu(self.inner(torch.relu(stem)))))
            return self.head(torch.relu(self.last(stem)).mean((2, 3))) + aside.sum(1, keepdim=True)

    model, x = Before("part").eval(), torch.randn(4, 1, 6, 6)
    structure = analyze(model, (x[:1],))
    policy = Policy(space_id="", widths=structure.full_widths | {"inner": 2})
    graph = structure.shrink(policy).eval().evaluation_graph().graph
    changed = Reconstruction(structure=structure, inputs=(x,)).touched(graph, structure.masks(policy))
    assert not {"relu", "mean"} & changed


def test_a_layer_that_reads_the_sum_of_a_removed_branch_is_repaired() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.outer = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
            self.last, self.head = nn.Conv2d(8, 5, 1), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.outer(torch.relu(self.inner(x)))
            return self.head(torch.relu(self.last(x)).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Branch().eval(), torch.randn(64, 1, 6, 6)
    structure = analyze(model, (x[:1],))
    policy = Policy(space_id="", widths=structure.full_widths | {"inner": 0})
    shrunk = structure.shrink(policy).eval()
    Reconstruction(structure=structure, inputs=(x,)).apply(shrunk, structure.masks(policy))
    assert not torch.equal(shrunk.state_dict()["last.weight"], model.last.weight)
