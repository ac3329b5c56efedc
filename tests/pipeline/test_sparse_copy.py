"""`autoprune sparsify`: what cannot be asked is said before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoprune.config import RunConfig
from autoprune.errors import AutopruneError
from autoprune.pipeline import sparse_copy
from autoprune.pipeline.events import Silent
from tests.conftest import SPEC

OPTIONS: dict[str, Any] = {
    "pattern": "sparse:80%", "schedule": "one-shot", "finetune": "full", "scores": None, "ranking": None, "terms": (),
    "epochs": 4.0, "allowed_drop": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scores": "obs"}, "obs"),
        ({"scores": "obs", "pattern": "channels:50%"}, "obs"),
        ({"pattern": "sparse:120%"}, "120"),
        ({"ranking": "lamp", "pattern": "2:4"}, "a ranking divides a share of zeros"),
        ({"schedule": "gradual", "finetune": "none"}, "trains while weights become zero"),
        ({"schedule": "rigl", "pattern": "threshold:0.01"}, "keeps the number of zeros"),
        ({"epochs": 0.0}, "more than 0 epochs"),
        ({"terms": ("l3:1",)}, "l3"),
    ],
)
def test_options_are_checked_before_the_dense_model_is_trained(
    wrong: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(sparse_copy, "train_dense", never)
    with pytest.raises(AutopruneError, match=message):
        sparse_copy.write_sparse_copy(RunConfig(task=SPEC), tmp_path / "out", Silent(), **OPTIONS | wrong)
