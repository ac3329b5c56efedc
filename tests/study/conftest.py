"""Brokers over one file, closed after the test."""

from __future__ import annotations

import pytest

from autoprune.study.broker import Broker
from autoprune.study.rung import Question
from tests.fakes import LIMITS, PROXY, SPACE, predict


@pytest.fixture
def opened(tmp_path):
    brokers = []

    def open_broker(space=SPACE, limits=LIMITS, run_seed=1, name="study.db", **options):
        question = Question(space=space, fidelity=PROXY, limits=limits, run_seed=run_seed)
        brokers.append(Broker(tmp_path / name, question, predict, **options))
        return brokers[-1]

    yield open_broker
    for broker in brokers:
        broker.close()
