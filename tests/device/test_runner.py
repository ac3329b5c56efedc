import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.device import measure
from autoprune.device import runner as device
from autoprune.device.address import Address
from autoprune.device.connect import make_target
from autoprune.device.kit import KitResults
from autoprune.device.runner import kernel_times, time_models
from autoprune.device.timing import Protocol
from autoprune.errors import LatencyError
from autoprune.onnxgraph.resizer import Resizer
from tests.machines import QUICK


class Watched(nn.Module):
    """Notes in what state of the world it runs."""

    threads: list[int] = []  # noqa: RUF012
    modes: set[tuple[bool, bool, bool]] = set()  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        self.threads.append(torch.get_num_threads())
        self.modes.add((self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return self.layer(x)


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such luck\nand more lines")


@pytest.fixture
def torch_target():
    return make_target("torch-cpu")


@pytest.fixture
def two_threads():
    """Torch runs on two threads during the test, which targets of one thread must change for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_onnx_models_are_timed_from_bytes_and_files(structure_of, dense_of, space_of, target, feeds, tmp_path):
    dense = dense_of("residual")
    small = Resizer(dense, structure_of("residual")).resize(space_of("residual").smallest())
    (tmp_path / "small.onnx").write_bytes(small)
    models = [small, tmp_path / "small.onnx", str(tmp_path / "small.onnx")]
    result = time_models(iter(models), target, feeds, reference=dense.SerializeToString(), protocol=QUICK)
    assert len(result.samples) == len(result.ratios) == 3
    assert all(0 < s.p10_ms <= s.median_ms <= s.p90_ms for s in result.samples)
    assert result.samples[0].runs == QUICK.repeats


def test_a_model_that_is_much_larger_takes_longer(target, dense_of, feeds):
    dense = dense_of("residual").SerializeToString()
    batch = [np.repeat(feeds[0], 64, axis=0)]
    small = time_models([dense], target, feeds, reference=dense, protocol=QUICK)
    large = time_models([dense], target, batch, reference=dense, protocol=QUICK)
    assert small.reference_ms < large.reference_ms


def test_another_number_of_inputs_is_refused(target, dense_of, feeds):
    dense = dense_of("flat").SerializeToString()
    with pytest.raises(ValueError, match="zip"):
        time_models([dense], target, [*feeds, *feeds], reference=dense, protocol=QUICK)


def test_eager_modules_run_for_inference_and_are_left_alone(torch_target, two_threads):
    Watched.threads.clear()
    Watched.modes.clear()
    module = Watched().train()
    before = copy.deepcopy(module.state_dict())
    feeds = [np.ones((2, 4), np.float32)]
    result = time_models([module, Watched()], torch_target, feeds, reference=module, protocol=QUICK)
    assert len(result.ratios) == 2
    assert set(Watched.threads) == {1}
    assert torch.get_num_threads() == 2
    assert Watched.modes == {(False, False, True)}
    assert module.training
    assert module.layer.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_module_that_fails_is_a_clear_error_and_the_threads_come_back(torch_target, two_threads):
    feeds = [np.ones((2, 4), np.float32)]
    with pytest.raises(LatencyError, match=r"PyTorch cannot run the model on torch-cpu: no such luck$"):
        time_models([Broken()], torch_target, feeds, reference=Watched(), protocol=QUICK)
    assert torch.get_num_threads() == 2


class Stack(nn.Sequential):
    """Convolutions of equal cost: `depth` of them take about `depth` times as long as one."""

    def __init__(self, depth):
        super().__init__(nn.Conv2d(1, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(depth)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_compiled_modules_are_timed():
    target = make_target("torch-cpu-compiled")
    feeds = [np.ones((1, 1, 32, 32), np.float32)]
    models = [Stack(depth).eval() for depth in (2, 16)]
    result = time_models(models, target, feeds, reference=models[1], protocol=Protocol(repeats=6))
    assert result.ratios[0] < 0.5
    assert result.ratios[1] == pytest.approx(1, rel=0.3)


def test_onnx_runtime_tells_what_its_kernels_took(target, dense_of, feeds):
    models = [dense_of(name).SerializeToString() for name in ("flat", "residual")]
    flat, residual = kernel_times(models, target, feeds)
    assert flat.ms.shape == (measure.PROFILED_RUNS, len(flat.names))
    assert (flat.ms >= 0).all()
    assert len(residual.names) > len(flat.names) > 0


def test_pytorch_has_no_kernel_times(torch_target):
    assert list(kernel_times([Watched()], torch_target, [np.ones((2, 4), np.float32)])) == []


def test_nothing_is_timed_remotely_without_a_model(target, monkeypatch):

    monkeypatch.setattr(device, "measure_remotely", lambda *a, **k: KitResults(target={}, kernels=(), timings=None))
    with pytest.raises(LatencyError, match="at least one model"):
        time_models([], replace(target, address=Address(login="host")), [], reference=b"")
