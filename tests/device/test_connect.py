import pytest

from autoprune.device.address import Address
from autoprune.device.connect import make_target
from autoprune.errors import UsageError


@pytest.mark.parametrize(("threads", "batch"), [(0, 1), (1, 0), (10_000, 1), (-1, 1)])
def test_impossible_targets_are_refused(threads, batch):
    with pytest.raises(UsageError, match=r"threads"):
        make_target("ort-cpu", threads=threads, batch=batch)


def test_a_provider_that_this_runtime_lacks_says_what_to_do(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="does not offer") as caught:
        make_target("ort-cuda")
    text = str(caught.value)
    assert "CUDAExecutionProvider" in text
    assert "it has CPUExecutionProvider" in text
    assert "profile kit" in text
    assert "ssh://" in text


def test_a_torch_target_without_its_device_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="torch-cuda needs a CUDA device"):
        make_target("torch-cuda")


def test_a_remote_target_does_not_run_pytorch():
    with pytest.raises(UsageError, match="runs ONNX Runtime; got 'torch-cpu'"):
        make_target("ssh://me@board/torch-cpu")


def test_a_remote_target_may_have_more_threads_than_this_host(monkeypatch):
    given = {"runtime": "onnxruntime", "runtime_version": "1", "cpu": "M7", "isa": ["fma"], "accelerator": ""}
    answer = lambda address, provider, threads: given | {"provider": provider, "threads": threads}  # noqa: E731
    monkeypatch.setattr("autoprune.device.connect.ask_fingerprint", answer)
    target = make_target("ssh://me@board:2222", threads=9_999, batch=3, precision="int8")
    assert (target.name, target.threads, target.batch) == ("ort-cpu", 9_999, 3)
    assert target.address == Address(login="me@board", port=2222)
    assert (target.cpu, target.isa, target.precision) == ("M7", ("fma",), "int8")
