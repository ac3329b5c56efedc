from __future__ import annotations

import sys

import pytest

from autoprune.device.bounded import run_bounded


def run(code: str, stdin: bytes = b"", most_s: float = 60.0) -> tuple[int, bytes, bytes]:
    return run_bounded([sys.executable, "-S", "-c", code], stdin, most_bytes=1_000, most_s=most_s)


def test_a_program_is_given_its_input_and_gives_its_output() -> None:
    code = "import sys; print(len(sys.stdin.read())); sys.stderr.write('so'); sys.exit(3)"
    assert run(code, b"x" * 200_000) == (3, b"200000\n", b"so")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("while True: print('x' * 100)", "wrote more than 1,000 bytes"),
        ("import time; time.sleep(60)", "took more than"),
    ],
)
def test_a_program_that_does_not_end_is_ended(code: str, message: str) -> None:
    with pytest.raises(TimeoutError, match=message):
        run(code, most_s=60.0 if "print" in code else 0.5)
