import pytest

from autoprune.report.durations import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"), (0.2, "0 s"), (89, "89 s"), (90, "1 min 30 s"), (119, "2 min"), (598, "10 min"), (3_569, "59 min"),
        (3_599, "1 h"), (5_000, "1 h 23 min"), (100_000, "28 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
