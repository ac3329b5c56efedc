import json
from dataclasses import replace

import pytest

from autoprune.device.address import Address
from autoprune.device.target import TARGETS, check_target, differences, make_target, target_of
from autoprune.errors import UsageError


@pytest.mark.parametrize("name", ["ort-gpu", "", "ssh://me@board/ort-gpu"])
def test_an_unknown_target_lists_the_known_ones(name):
    with pytest.raises(UsageError, match="unknown target") as caught:
        check_target(name)
    assert all(known in str(caught.value) for known in TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_summary_and_is_known(name):
    assert check_target(name) is TARGETS[name]
    assert TARGETS[name].summary
    assert (TARGETS[name].runtime == "torch") == name.startswith("torch")


def test_a_precision_that_a_target_lacks_is_refused():
    assert check_target("ort-cpu", "int8").runtime == "onnxruntime"
    with pytest.raises(UsageError, match="torch-cpu measures fp32; got precision 'int8'"):
        make_target("torch-cpu", precision="int8")
    with pytest.raises(UsageError, match="ort-cpu measures fp32 and int8; got precision 'fp16'"):
        make_target("ort-cpu", precision="fp16")


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
    monkeypatch.setattr("autoprune.device.ssh.ask_fingerprint", answer)
    found = make_target("ssh://me@board:2222", threads=9_999, batch=3, precision="int8")
    assert (found.name, found.threads, found.batch) == ("ort-cpu", 9_999, 3)
    assert found.address == Address(login="me@board", port=2222)
    assert (found.cpu, found.isa, found.precision) == ("M7", ("fma",), "int8")


def test_the_fingerprint_is_stable_and_survives_json(target):
    assert make_target("ort-cpu").fingerprint() == target.fingerprint()
    assert json.loads(json.dumps(target.fingerprint())) == target.fingerprint()
    again = {k: v for k, v in target.fingerprint().items() if k not in ("digest", "name", "batch", "precision")}
    assert target_of(again, name="ort-cpu", batch=1, precision="fp32") == target


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "x"),
        ("provider", "x"),
        ("threads", 7),
        ("batch", 8),
        ("precision", "int8"),
        ("runtime", "x"),
        ("runtime_version", "0"),
        ("cpu", "x"),
        ("isa", ("x",)),
        ("accelerator", "x"),
    ],
)
def test_everything_that_changes_a_latency_changes_the_digest(field, value, target):
    other = replace(target, **{field: value})
    assert other.fingerprint()["digest"] != target.fingerprint()["digest"]
    (found,) = differences(target.fingerprint(), other.fingerprint())
    assert found.startswith(f"{field}: ")


def test_how_the_device_is_reached_is_no_part_of_the_fingerprint(target):
    assert replace(target, address=Address(login="me@board")).fingerprint() == target.fingerprint()


def test_differences_name_both_sides(target):
    other = replace(target, batch=8)
    assert differences(target.fingerprint(), other.fingerprint()) == ["batch: 1 here, 8 there"]
    assert differences(target.fingerprint(), target.fingerprint()) == []
    assert differences({"a": 1}, {}) == ["a: 1 here, None there"]
