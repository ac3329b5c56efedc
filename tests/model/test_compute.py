import pytest
import torch
from torch import nn

from autoprune.errors import TaskError
from autoprune.model.compute import CPU, compute_device, computing_on, moved
from autoprune.pruning import prune
from tests.task.toys import toy_task

META = torch.device("meta")


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", ""])
def test_names_of_devices(wanted):
    with pytest.raises(TaskError, match="is cpu, cuda, cuda:N or auto"):
        compute_device(wanted)


def test_a_device_is_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert compute_device("auto") == compute_device("cpu") == CPU
    with pytest.raises(
        TaskError, match=r"asks for the device 'cuda:1', and this host has 0 CUDA devices; say device='auto'"
    ):
        _ = toy_task(device="cuda:1").compute_device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(compute_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]


def test_nested_tensors_move_and_the_rest_stays():
    parts = (torch.zeros(2), [{"boxes": torch.zeros(1)}, "text"], None)
    assert moved(parts, CPU) is parts
    there = moved(parts, META)
    assert (there[0].device, there[1][0]["boxes"].device, *there[1:][0][1:], there[2]) == (META, META, "text", None)


class Anywhere(nn.Module):
    """Notes where it is put and what its calls get."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def to(self, device):
        self.seen.append(device)
        return self

    def forward(self, x, *, scale):
        self.seen.append((x.device, scale.device))
        return torch.zeros(1)


def test_models_go_there_and_back_with_their_inputs():
    model, x = Anywhere(), torch.zeros(1)
    with computing_on(META, model, results=META):
        assert model(x, scale=x).device == META
    assert model.seen == [META, (META, META), CPU]
    with computing_on(CPU, model, results=CPU):
        model(x, scale=x)
    assert model.seen[3:] == [(CPU, CPU)]


def test_tensors_that_a_graph_makes_follow_it_to_another_device():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.wide, self.out = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.out(self.wide(x + self.embed(torch.arange(x.shape[1]))).relu())

    small = prune(Positions().eval(), torch.zeros(1, 5, 8), keep=0.5, native=False).to(META)
    assert small(torch.zeros(1, 5, 8, device=META)).device == META
