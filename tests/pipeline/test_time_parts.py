"""The parts of a search that its time is estimated from."""

from dataclasses import replace

from autoprune.pipeline.events import rung_title
from tests.pipeline.test_time_limit import WORK


def test_policies_by_dense_weights_are_briefly_fine_tuned_beside_the_promoted_ones() -> None:
    without, with_zeros = ({p.name: p.units for p in replace(WORK, shared_out=n).parts()} for n in (0, 3))
    brief = rung_title("brief")
    assert with_zeros == without | {brief: without[brief] + 3 * WORK.budgets}
