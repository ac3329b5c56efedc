"""Trainings that were killed in the middle of a schedule go on to the weights of the undisturbed run, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import UsageError
from autoprune.recovery.sparsify_arguments import SCHEDULES
from autoprune.task.recipe import Recipe
from autoprune.training import checkpoint as checkpoints
from tests.task.toys import toy_task

RECIPE = Recipe(batch_size=16, lr=0.1, precision="fp32", ema=0.5)
EXAMPLES = 96
"""Of the toy task; one epoch is 6 steps."""


class Killed(BaseException):
    """Stands in for the end of the process."""


class Net(nn.Sequential):
    """A net that draws random numbers while it trains."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(16, 4),
        )  # fmt: skip


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def sparse(model: nn.Module, kill_at: int | None = None, path: Path | None = None, **given) -> nn.Module:
    """Return the sparse model; or be killed after so many examples, counted over the rounds of a schedule."""
    seen = [0]

    def on_progress(done: int, samples: int, loss: float) -> None:
        seen[0] += 16
        if kill_at is not None:
            checkpoints.EVERY_SECONDS = 0.0 if seen[0] + 16 >= kill_at else 60.0  # only the last state is written
            if seen[0] >= kill_at:
                raise Killed

    task = toy_task(build_model=Net, finetune_recipe=RECIPE)
    options = {"pattern": "sparse:75%", "epochs": 2, "allowed_drop": 1.0, "recipe": RECIPE} | given
    return autoprune.sparsify(model, task, on_progress=on_progress, checkpoint=path, **options)


@pytest.fixture(autouse=True)
def usual_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 60.0)


CASES = [
    *({"schedule": schedule} for schedule in SCHEDULES),
    {"schedule": "rigl", "pattern": "channels:50%"},
    {"pattern": "none", "terms": ("l1:0.01", "group-lasso:0.01")},
    {"schedule": "gradual", "scores": "0.5*magnitude+0.5*taylor", "ranking": "global"},
    *({"recipe": Recipe(batch_size=16, lr=0.1, precision="fp32", optimizer="adamw", terms=(term,))}
      for term in ("l0:0.001", "l0-units:0.001", "growing:1")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values()))[:40])
def test_a_killed_training_ends_in_the_weights_of_the_undisturbed_one(
    dense: nn.Module, case: dict, tmp_path: Path
) -> None:
    undisturbed = sparse(dense, **case)
    path = tmp_path / "sparse.part"
    for kill_at in (EXAMPLES + 16, 3 * 16):  # after an epoch, and again within the one that follows
        with pytest.raises(Killed):
            sparse(dense, kill_at, path, **case)
        assert path.exists()
    resumed = sparse(dense, None, path, **case)
    assert not path.exists()
    assert undisturbed.sparse_to == resumed.sparse_to
    expected = undisturbed.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_states_of_other_calls_and_damaged_ones_are_refused(dense: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "sparse.part"
    with pytest.raises(Killed):
        sparse(dense, 48, path)
    for other in ({"seed": 1}, {"pattern": "sparse:70%"}, {"schedule": "gradual"}):
        with pytest.raises(UsageError, match="with other settings, weights or data"):
            sparse(dense, None, path, **other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match="no state of a training that can be read"):
        sparse(dense, None, path)
