import json
from dataclasses import replace

import pytest

from autoprune.device.address import Address
from autoprune.device.connect import make_target
from autoprune.device.target import TARGETS, check_target, differences, target_of
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
    (difference,) = differences(target.fingerprint(), other.fingerprint())
    assert difference.startswith(f"{field}: ")


def test_how_the_device_is_reached_is_no_part_of_the_fingerprint(target):
    assert replace(target, address=Address(login="me@board")).fingerprint() == target.fingerprint()


def test_differences_name_both_sides(target):
    other = replace(target, batch=8)
    assert differences(target.fingerprint(), other.fingerprint()) == ["batch: 1 here, 8 there"]
    assert differences(target.fingerprint(), target.fingerprint()) == []
    assert differences({"a": 1}, {}) == ["a: 1 here, None there"]
