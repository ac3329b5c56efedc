from __future__ import annotations

import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import PolicyError, UsageError
from autoprune.records import COSTS, Policy, SearchSpace, Unit
from autoprune.trials import Fidelity, Measurement, TrialResult, trial_seed

SPACE = SearchSpace(id="s", levels={"a": (2, 4, 8), "b": (16,), "c": (1, 3)})
MEASURED = Measurement(
    score=0.9,
    loss=0.1,
    latency_ms=0.2,
    latency_source="predicted",
    params=10,
    macs=100,
    bytes=40,
    activation_bytes=64,
)
policies = st.builds(
    lambda widths: Policy(space_id="s", widths=widths), st.dictionaries(st.text(max_size=8), st.integers(0, 999))
)


@given(policies)
def test_a_policy_survives_json_and_pickle(policy: Policy) -> None:
    for copy in (Policy.from_json(json.loads(json.dumps(policy.to_json()))), pickle.loads(pickle.dumps(policy))):
        assert copy == policy
        assert hash(copy) == hash(policy)
        assert copy.digest() == policy.digest()


@given(policies)
def test_the_digest_does_not_depend_on_the_order_of_units(policy: Policy) -> None:
    assert Policy(space_id="s", widths=dict(reversed(policy.widths.items()))).digest() == policy.digest()


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "from autoprune.records import Policy; print(Policy(space_id='s', widths={'b': 2, 'a': 1}).digest())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == Policy(space_id="s", widths={"a": 1, "b": 2}).digest() == "48c13aed3c2d"


def test_policies_of_other_widths_or_spaces_differ() -> None:
    base = Policy(space_id="s", widths={"a": 1})
    others = [Policy(space_id="s", widths={"a": 2}), Policy(space_id="t", widths={"a": 1})]
    assert len({base, *others, Policy(space_id="s", widths={"a": 1})}) == 3
    assert len({p.digest() for p in [base, *others]}) == 3


def test_a_policy_cannot_be_changed() -> None:
    policy = SPACE.largest()
    with pytest.raises(TypeError):
        policy.widths["a"] = 2  # type: ignore[index]


@pytest.mark.parametrize("width", [-1, 1.5, "3", True])
def test_a_width_is_a_whole_number(width: object) -> None:
    with pytest.raises(PolicyError, match="whole number"):
        Policy(space_id="s", widths={"a": width})  # type: ignore[dict-item]


@pytest.mark.parametrize("values", [{"widths": None}, {"widths": {}, "treatments": ["int8"]}])
def test_widths_and_treatments_are_mappings(values: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="widths and treatments are mappings by names; got"):
        Policy(space_id="", **values)


def test_not_a_policy() -> None:
    with pytest.raises(PolicyError, match="not a policy"):
        Policy.from_json({"widths": {}})


def test_a_space_knows_its_policies() -> None:
    assert SPACE.size == 6
    assert SPACE.searched == ("a", "c")
    assert dict(SPACE.policy({"a": 4}).widths) == {"a": 4, "b": 16, "c": 3}
    assert dict(SPACE.smallest().widths) == {"a": 2, "b": 16, "c": 1}
    assert SearchSpace.from_json(json.loads(json.dumps(SPACE.to_json()))) == SPACE
    assert pickle.loads(pickle.dumps(SPACE)) == SPACE


@pytest.mark.parametrize(("widths", "message"), [({"z": 1}, "no unit or layer 'z'"), ({"a": 3}, "no level of 'a'")])
def test_a_space_refuses_what_it_does_not_have(widths: dict[str, int], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        SPACE.policy(widths)


@pytest.mark.parametrize("levels", [(), (2, 2), (4, 2), (-1, 2)])
def test_levels_ascend(levels: tuple[int, ...]) -> None:
    with pytest.raises(PolicyError, match="ascending"):
        SearchSpace(id="s", levels={"a": levels})


def test_a_trial_survives_json() -> None:
    policy, fidelity = SPACE.largest(), Fidelity(name="brief", rung=1, finetune_samples=100)
    common = {"number": 3, "policy": policy, "fidelity": fidelity, "seed": 5}
    for result in (
        TrialResult(**common, status="done", measurement=MEASURED, seconds=1.5, sample_passes=30.0),
        TrialResult(**common, status="failed", error="loss is nan"),
        TrialResult(**common, status="infeasible"),
    ):
        assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_trial_has_what_its_status_says(status: str) -> None:
    with pytest.raises(UsageError):
        TrialResult(
            number=0,
            policy=SPACE.largest(),
            fidelity=Fidelity(name="proxy", rung=0),
            seed=0,
            status=status,  # type: ignore[arg-type]
        )


def test_measurements_are_finite() -> None:
    with pytest.raises(UsageError, match="loss is nan"):
        Measurement(**MEASURED.to_json() | {"loss": float("nan")})


def test_costs_come_in_one_order() -> None:
    assert MEASURED.costs() == (0.2, 10, 100, 40, 64)
    assert COSTS[0] == "latency_ms"


def test_seeds_depend_on_run_and_fidelity() -> None:
    proxy, brief = Fidelity(name="proxy", rung=0), Fidelity(name="brief", rung=1)
    assert len({trial_seed(0, proxy), trial_seed(1, proxy), trial_seed(0, brief)}) == 3
    assert trial_seed(0, proxy) == trial_seed(0, Fidelity(name="proxy", rung=0))


def test_a_unit_has_channels() -> None:
    with pytest.raises(PolicyError, match="at least one channel"):
        Unit(name="u", kind="channel", width=0, members=())


def test_widths_may_be_numpy_integers():
    import numpy as np

    assert type(Policy(space_id="", widths={"a": np.int64(8)}).widths["a"]) is int
    with pytest.raises(PolicyError, match="a width is a whole number"):
        Policy(space_id="", widths={"a": np.float64(8)})  # pyright: ignore[reportArgumentType]
