"""Studies read from their file are those that Optuna reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.errors import RunFolderError
from autoprune.executors.inline import InlineExecutor
from autoprune.search.controller import run_search
from autoprune.study import reading
from autoprune.study.reading import stored_studies
from tests import fakes


def test_a_file_is_read_as_optuna_reads_it(tmp_path: Path) -> None:
    run_search(fakes.search(tmp_path, strategy="random"), InlineExecutor(fakes.plain))
    path = tmp_path / "study.db"
    studies = stored_studies(path)
    assert studies == reading._by_optuna(path), "Optuna has changed its tables: mend autoprune/study/reading.py"
    assert any(trial.attributes for study in studies for trial in study.trials)


@pytest.mark.parametrize(("content", "reason"), [(None, "is gone"), (b"no database" * 100, "cannot be used")])
def test_a_file_that_is_gone_or_damaged_is_one_message(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "study.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFolderError, match=reason):
        stored_studies(path)
