"""Every row of the ablation runs from end to end."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import ablations
import pytest
from ablation_variants import VARIANTS
from curves import read_rows

from autoprune.search.effort import Effort
from autoprune.task.builtin import make_task
from autoprune.training.dense import build_dense, weights_to_bytes


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    folder = tmp_path_factory.mktemp("ablations")
    dense = folder / "dense.safetensors"
    dense.write_bytes(weights_to_bytes(build_dense(make_task("digits", "resnet8"), seed=0)))
    return Namespace(
        task="digits",
        model="resnet8",
        dense=dense,
        budget=["60%"],
        trials=6,
        workers=1,
        by_prediction=True,
        points=[0],
        out=folder / "a.csv",
    )


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rungs of one batch, and no latency that is measured."""

    def derived(*args: object, **kwargs: object) -> Effort:
        effort = derive(*args, **kwargs)
        rungs = tuple(replace(r, finetune_samples=min(r.finetune_samples, 32), val_samples=50) for r in effort.rungs)
        return replace(effort, rungs=rungs, promoted=(2, 1))

    derive = Effort.derive
    monkeypatch.setattr(Effort, "derive", derived)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_row_is_written(given: Namespace, name: str):
    ablations.ablate(given, name, 0, {"60%": [0]})
    (row,) = [row for row in read_rows(Path(given.out)) if row.method == name]
    assert (row.budget, row.passes) == ("60%", 0)
    assert row.latency_ratio <= 0.6 or row.test_score is None
    assert row.search_passes > 0 or row.test_score is None
