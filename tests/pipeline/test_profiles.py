"""Kits whose task is not built in: whoever made the kit decides what it names, and not what runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import KitError, UsageError
from autoprune.pipeline import profiles
from autoprune.pipeline.events import Silent
from autoprune.records import digest_of
from tests.device.kits import MANIFEST


def kit(path: Path, origin: Any) -> Path:
    manifest = {key: value for key, value in MANIFEST.items() if key != "kit"} | {"origin": origin}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("kit.json", json.dumps(manifest | {"kit": digest_of(manifest, length=32)}))
    return path


@pytest.mark.parametrize("task", ["evil.py:run", "os:getcwd", 3, ["digits"]])
def test_a_kit_runs_no_code_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any) -> None:
    monkeypatch.setattr(profiles, "structure_of", lambda config: pytest.fail("the task of the kit was built"))
    path = kit(tmp_path / "kit.zip", {"options": {"task": task}})
    with pytest.raises(UsageError, match=r"whose code would run here\. Say which task it is of: --task"):
        profiles.import_results(tmp_path / "results.json", path, tmp_path / "table.json", Silent())


def test_the_users_own_task_or_word_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def structure_of(config: Any) -> None:
        built.append(config.task)
        raise KitError("far enough")

    monkeypatch.setattr(profiles, "structure_of", structure_of)
    path = kit(tmp_path / "kit.zip", {"options": {"task": "theirs.py:run"}})
    given: tuple[dict[str, Any], ...] = ({"task": "mine.py:run"}, {"allow": lambda task: task == "theirs.py:run"})
    for options in given:
        with pytest.raises(KitError, match="far enough"):
            profiles.import_results(tmp_path / "r.json", path, tmp_path / "t.json", Silent(), **options)
    assert built == ["mine.py:run", "theirs.py:run"]
