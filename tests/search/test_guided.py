"""The guided strategy from end to end in the small world."""

from dataclasses import replace

import numpy as np
import pytest

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.allocation.limits import fits
from autoprune.allocation.promotion import best_within
from autoprune.allocation.uniform import baselines
from autoprune.budgets import Limit
from autoprune.executors.inline import InlineExecutor
from autoprune.records import SearchSpace
from autoprune.search.controller import run_search
from autoprune.search.explore import SENSITIVITY, first_scored
from autoprune.search.guided import GuidedProposals
from autoprune.search.sensitivity import anchor_policies
from tests import fakes


def searched(folder, **changes):
    return run_search(fakes.search(folder, strategy="guided", **changes), InlineExecutor(fakes.plain))


def test_it_finds_what_direct_search_does_not(tmp_path):
    (tmp_path / "a").mkdir()
    guided = searched(tmp_path)
    direct = run_search(fakes.search(tmp_path / "a", strategy="direct"), InlineExecutor(fakes.plain))
    for limit in fakes.LIMITS:
        ours, theirs = (best_within(o.results["proxy"], limit, 1)[0].measurement.loss for o in (guided, direct))
        assert ours <= theirs
    assert all(any(fits(fakes.predict([r.policy])[0], x) for x in fakes.LIMITS) for r in guided.results["proxy"])


def test_proposals_fit_their_limit_by_cautious_costs(tmp_path):
    def cautious(policies):
        return fakes.predict(policies) * 1.05

    outcome = searched(tmp_path, cautious=cautious)
    proposed = [r.policy for r in outcome.results["proxy"]][len(fakes.LIMITS) :]
    assert proposed
    assert all(any(fits(cautious([policy])[0], limit) for limit in fakes.LIMITS) for policy in proposed)
    (tmp_path / "bold").mkdir()
    bold = [r.policy for r in searched(tmp_path / "bold").results["proxy"]][len(fakes.LIMITS) :]
    assert not all(any(fits(cautious([policy])[0], limit) for limit in fakes.LIMITS) for policy in bold)


class ManyWorkers(InlineExecutor):
    """Trials finish in any order; `most` trials were under way after the sensitivities."""

    slots = 24

    def __init__(self, seed):
        super().__init__(fakes.plain)
        self._rng = np.random.default_rng(seed)
        self.most = 0

    def wait(self):
        self.most = max(self.most, len([s for s in self._queue if s.policy.widths["unit0"] < 8 and s.number > 4]))
        self._queue.rotate(int(self._rng.integers(len(self._queue))))
        return super().wait()


def test_many_workers_are_kept_busy_and_their_order_changes_nothing(tmp_path):
    effort = replace(fakes.EFFORT, trials=200)
    outcomes = []
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        executor = ManyWorkers(seed)
        outcomes.append(run_search(fakes.search(tmp_path / str(seed), strategy="guided", effort=effort), executor))
        assert executor.most >= executor.slots
        uniform = baselines(fakes.SPACE, fakes.DENSE, fakes.predict, fakes.LIMITS).values()
        assert [r.policy for r in outcomes[-1].results["proxy"]][:2] == list(uniform)
    ours, theirs = ([(r.policy, r.measurement) for r in outcome.results["proxy"]] for outcome in outcomes)
    assert ours == theirs


def test_up_to_four_workers_find_the_same(tmp_path):
    class FourWorkers(InlineExecutor):
        slots = 4

    policies = []
    for workers in (InlineExecutor, FourWorkers):
        (tmp_path / workers.__name__).mkdir()
        search = fakes.search(tmp_path / workers.__name__, strategy="guided", limits=fakes.LIMITS[:1])
        policies.append([r.policy for r in run_search(search, workers(fakes.plain)).results["proxy"]])
    assert policies[0] == policies[1]


@pytest.mark.parametrize(("limits", "slots"), [(2, 2), (2, 24), (1, 2)])
def test_rounds_depend_on_no_loss_of_the_rounds_that_may_still_run(tmp_path, limits, slots):
    search = fakes.search(tmp_path, limits=fakes.LIMITS[:limits])
    first = first_scored(search, baselines(search.space, search.dense_widths, search.predict, search.limits))
    waiting, ahead = (GuidedProposals(search, first, slots=slots) for _ in range(2))
    assert ahead.ahead == {(2, 2): 1, (2, 24): 3, (1, 2): 1}[limits, slots]
    losses = {}
    while ahead.opening:
        policies = waiting.propose(losses)
        assert ahead.propose({}) == policies
        losses |= {policy: fakes.loss_of(policy) for policy in policies}
    rounds = []
    while policies := waiting.propose(losses):
        running = {policy for policies in rounds[len(rounds) - ahead.ahead :] for policy in policies}
        assert ahead.propose({p: x for p, x in losses.items() if p not in running}) == policies
        rounds.append(policies)
        losses |= {policy: fakes.loss_of(policy) for policy in policies}
    assert len(rounds) > 4


def test_limits_take_turns(tmp_path):
    search = fakes.search(tmp_path)
    proposals = GuidedProposals(search, {})
    losses = {policy: fakes.loss_of(policy) for policy in proposals.propose({})}
    tight = []
    for _ in range(4):
        policies = proposals.propose(losses)
        losses |= {policy: fakes.loss_of(policy) for policy in policies}
        tight.append(all(fits(fakes.predict([policy])[0], fakes.LIMITS[1]) for policy in policies))
    assert tight == [False, True, False, True]


def test_sensitivities_are_measured_once_and_kept(tmp_path):
    outcome = searched(tmp_path)
    assert [r.policy for r in outcome.results[SENSITIVITY]] == list(anchor_policies(fakes.SPACE))
    assert set(outcome.sensitivities) == set(fakes.SPACE.searched)
    assert all(values[-1] == 0 for values in outcome.sensitivities.values())


def test_a_resumed_search_asks_the_same_and_scores_nothing(tmp_path):
    log = tmp_path / "log"
    first = searched(tmp_path)
    again = run_search(fakes.search(tmp_path, strategy="guided"), InlineExecutor(lambda: fakes.logging_to(log)))
    assert again.results == first.results
    assert not log.exists()


def test_an_interrupted_search_ends_like_an_undisturbed_one(tmp_path):
    (tmp_path / "a").mkdir()
    undisturbed = searched(tmp_path / "a")

    def interrupting():
        left = iter(range(25))

        def scored(spec):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return fakes.evaluate(spec)

        return scored

    try:
        run_search(fakes.search(tmp_path, strategy="guided"), InlineExecutor(interrupting))
        raise AssertionError("not interrupted")
    except KeyboardInterrupt:
        resumed = searched(tmp_path)
    policies = {rung: [r.policy for r in results] for rung, results in resumed.results.items()}
    assert policies == {rung: [r.policy for r in results] for rung, results in undisturbed.results.items()}


def test_a_budget_that_a_removed_branch_alone_meets_needs_no_other_policy(tmp_path):
    space = SearchSpace(id="removable", levels={"unit0": (0, 8), "unit1": (0, 2, 8), "unit4": (4, 8)})
    tables = [
        CostTable(units=(name,), values=fakes.COST_MS[name] * np.array(widths, dtype=float))
        for name, widths in space.levels.items()
    ]
    floor_ms, dense_ms = (fakes.latency_ms(policy) for policy in (space.smallest(), space.largest()))
    limit = Limit.of(latency_ms=(floor_ms + dense_ms) / 2)
    outcome = searched(
        tmp_path,
        space=space,
        dense_widths=dict.fromkeys(space.levels, 8),
        limits=(limit,),
        additive={"latency_ms": AdditiveCost(constant=0.0, tables=tuple(tables))},
        effort=replace(fakes.EFFORT, trials=12),
    )
    assert best_within(outcome.results["brief"], limit, 1)
