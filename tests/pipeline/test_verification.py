"""A latency that is far from what it was before is measured again."""

from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.latencies import LatencySample
from autoprune.pipeline.verification import _timed

SAMPLE = LatencySample(median_ms=1.0, p10_ms=1.0, p90_ms=1.0, runs=1)


class Moments:
    """A deployment whose measurements give these ratios, one after the other."""

    def __init__(self, *ratios: float) -> None:
        self.left = list(ratios)

    def timings(self, models: list[Any]) -> Any:
        """Time one model."""
        assert len(models) == 1
        return SimpleNamespace(ratios=[self.left.pop(0)], samples=[SAMPLE])


@pytest.mark.parametrize(
    ("ratios", "expected", "counts", "left"),
    [
        ((0.503, 0.9, 0.9), 0.498, 0.503, 2),  # as before
        ((0.593, 0.499, 0.501), 0.498, 0.501, 0),  # a moment in which the host was slow
        ((0.593, 0.59, 0.6), 0.498, 0.593, 0),  # it is slower than it was
    ],
)
def test_the_middle_of_three_counts_where_the_first_one_surprises(
    ratios: tuple[float, ...], expected: float, counts: float, left: int
) -> None:
    moments: Any = Moments(*ratios)
    assert _timed(b"model", moments, expected).ratios == [counts]
    assert len(moments.left) == left
