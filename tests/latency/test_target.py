import json

import pytest

from autoprune.errors import UsageError
from autoprune.latency.target import differences, make_target


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown target 'ort-gpu'.*ort-cpu"):
        make_target("ort-gpu")


@pytest.mark.parametrize(("threads", "batch"), [(0, 1), (1, 0), (10_000, 1)])
def test_impossible_targets_are_refused(threads, batch):
    with pytest.raises(UsageError, match=r"threads"):
        make_target("ort-cpu", threads=threads, batch=batch)


def test_the_fingerprint_is_stable_and_survives_json(target):
    assert make_target("ort-cpu").fingerprint() == target.fingerprint()
    assert json.loads(json.dumps(target.fingerprint())) == target.fingerprint()


def test_everything_that_changes_a_latency_changes_the_digest(target):
    other = make_target("ort-cpu", batch=8)
    assert other.fingerprint()["digest"] != target.fingerprint()["digest"]
    assert differences(target.fingerprint(), other.fingerprint()) == ["batch: 1 here, 8 there"]


def test_equal_fingerprints_have_no_differences(target):
    assert differences(target.fingerprint(), target.fingerprint()) == []
