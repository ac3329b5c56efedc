"""Brokers over one file, closed after the test."""

from __future__ import annotations

import pytest

from autoprune.study.broker import Broker
from autoprune.study.spec import StudySpec
from tests.fakes import LIMITS, PROXY, SPACE, predict


@pytest.fixture
def opened(tmp_path):
    brokers = []

    def open_broker(space=SPACE, limits=LIMITS, run_seed=1, name="study.db", **options):
        study_spec = StudySpec(space=space, fidelity=PROXY, limits=limits, run_seed=run_seed)
        brokers.append(Broker(tmp_path / name, study_spec, predict, **options))
        return brokers[-1]

    yield open_broker
    for broker in brokers:
        broker.close()
