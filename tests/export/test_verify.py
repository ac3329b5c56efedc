import numpy as np
import pytest
import torch

from autoprune.device.connect import make_target
from autoprune.device.timing import Protocol
from autoprune.errors import LatencyError, VerificationError
from autoprune.export.onnx_file import export_candidate
from autoprune.export.verify import parity
from autoprune.pipeline.measurer import DeviceMeasurer
from tests.small_nets import Residual

QUICK = Protocol(repeats=2, sample_ms=0.05, warmup_runs=1, retries=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = Residual().eval()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_candidate(model, (torch.randn(1, 1, 8, 8),), path)
    return model, path


def test_a_true_export_is_within_the_limit(exported):
    model, path = exported
    assert 0 <= parity(model, path, [torch.randn(20, 1, 8, 8)]) < 1e-5


def test_parity_works_on_a_model_in_training_and_leaves_it_there(exported):
    model, path = exported
    model.train()
    try:
        assert parity(model, path, [torch.randn(2, 1, 8, 8)]) < 1e-5
        assert model.training
    finally:
        model.eval()


def test_a_different_model_is_refused(exported):
    _, path = exported
    other = Residual().eval()
    with pytest.raises(VerificationError, match=r"model\.onnx computes something else.*allowed is 0\.0001"):
        parity(other, path, [torch.randn(4, 1, 8, 8)])


def test_outputs_that_are_not_finite_are_refused(exported):
    model, path = exported
    with pytest.raises(VerificationError, match="inf"):
        parity(model, path, [torch.full((2, 1, 8, 8), float("nan"))])


def test_exported_models_are_timed_beside_the_dense_one(exported):
    _, path = exported
    feeds = [np.zeros((2, 1, 8, 8), np.float32)]
    timings = DeviceMeasurer(make_target("ort-cpu", batch=2)).timings([path, path], path, feeds, protocol=QUICK)
    assert len(timings.samples) == len(timings.latencies_ms) == 2
    assert timings.reference_ms > 0


def test_a_file_that_is_no_onnx_is_a_clear_error(exported, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    feeds = [np.zeros((1, 1, 8, 8), np.float32)]
    with pytest.raises(LatencyError, match=r"broken\.onnx"):
        DeviceMeasurer(make_target("ort-cpu")).timings([exported[1]], tmp_path / "broken.onnx", feeds, protocol=QUICK)


class Nested(torch.nn.Module):
    """Masked scores, where they are positive, and themselves again deeper down."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        scores = self.linear(x)
        masked = scores.masked_fill(torch.tensor([True, False, False]), float("-inf"))
        return {"masked": masked, "others": (scores > 0, (scores,))}


def test_outputs_of_any_nesting_are_compared(tmp_path):
    model = Nested().eval()
    export_candidate(model, (torch.randn(1, 4),), tmp_path / "nested.onnx")
    assert parity(model, tmp_path / "nested.onnx", [torch.randn(20, 4)]) < 1e-5
    with torch.no_grad():
        model.linear.bias[1] += 1
    with pytest.raises(VerificationError, match="computes something else"):
        parity(model, tmp_path / "nested.onnx", [torch.randn(20, 4)])
