"""Settings of a Ray instance before it is started."""

from __future__ import annotations

import os

import pytest

from autoprune.errors import AutopruneError
from autoprune.executors.cluster import check_resources, room


def test_resources_that_this_host_has_not_are_refused_before_anything_is_spent():
    too_many = (os.cpu_count() or 1) + 1
    with pytest.raises(AutopruneError, match=rf"room for a trial of cpu={too_many}; .*CPU={os.cpu_count()}\. Lower"):
        check_resources(None, {"cpu": too_many}, None, 0)
    with pytest.raises(AutopruneError, match=r"trial of cpu=1, gpu=0\.5; the nodes have: CPU=\d+, GPU=0"):
        check_resources(None, {"gpu": 0.5}, None, 0)


def test_resources_that_there_may_be_are_not_refused():
    too_many = (os.cpu_count() or 1) + 1
    check_resources(None, None, None, 0)
    check_resources(None, {"gpu": 0.5, "memory": 1e9}, None, 1)
    check_resources(None, {"cpu": too_many}, 2, 0)  # an instance gets what its workers need
    check_resources("head:6379", {"cpu": too_many, "gpu": 8}, None, 0)
    check_resources(None, {"cpu": 0, "board": 1}, None, 0)  # of which only Ray knows


def test_a_trial_needs_something():
    with pytest.raises(AutopruneError, match=r"needs some of a resource; got \{'cpu': 0\.?0?\}"):
        room([], {"cpu": 0.0})
