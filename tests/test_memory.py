"""Limits of memory are told before anything is computed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune import memory
from autoprune.errors import UsageError


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold to this limit")
@pytest.mark.parametrize("arguments", [["search", "--run-dir", "run"], ["check"], ["profile", "--out", "t.json"]])
def test_a_small_address_space_is_one_message_before_libraries_are_loaded(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoprune", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1_200_000_000, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert done.returncode == 2
    assert "may have 1.2 GB of address space (`ulimit -v`), and needs 2 GB" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), ("2000000000\n", 2 * 10**9), ("9223372036854771712\n", None), ("", None)]
)
@pytest.mark.parametrize("name", memory._LIMITS)
def test_the_limit_of_a_container(tmp_path: Path, name: str, text: str, limit: int | None) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert memory.container_limit(tmp_path) == limit
    assert memory.container_limit(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("limit", "workers", "advice"),
    [
        (None, 64, None),
        (2 * 10**9, 2, None),
        (2 * 10**9, 8, "`--workers 4`"),
        (10**9, 2, "`--executor inline`"),
        (5 * 10**8, 0, "Give it more$"),
    ],
)
def test_workers_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, workers: int, advice: str | None
) -> None:
    monkeypatch.setattr(memory, "container_limit", lambda: limit)
    if advice is None:
        memory.require_memory(workers)
        return
    with pytest.raises(UsageError, match=f"may use .* GB of memory, and a search .*{advice}"):
        memory.require_memory(workers)
