"""All that a page shows of one run, read from its folder: finished, or while its search goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from autoprune.files import parsed_json
from autoprune.latencies import TimeUnit
from autoprune.report.asked import asked_text
from autoprune.report.tables import time_unit
from autoprune.run_documents import read_front, read_metrics
from autoprune.runfolder import RunFolder, read_json
from autoprune.study.location import StudyLocation, is_empty
from autoprune.study.reading import StoredStudy, stored_studies
from autoprune.study.spec import SPEC_KEY

_LISTS = ("models", "others", "baselines")
"""Lists of models in `front.json`: the front, models that missed their budget or are dominated, uniform ones."""


@dataclass(frozen=True, kw_only=True)
class ShownTrial:
    """A trial of a run: the study and fidelity it belongs to, its result as JSON, and when it ended (local time)."""

    study: str
    fidelity: str
    number: int
    digest: str
    origin: str
    result: Mapping[str, Any]
    ended: datetime | None

    @property
    def measurement(self) -> Mapping[str, Any]:
        """Score and costs; empty for a trial that has none."""
        return self.result.get("measurement") or {}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """Content of a run folder. Whatever the run does not have (yet) is empty.

    `document` is `front.json`, `table` the latency table as JSON, `metrics` those of each model by digest, `parts` the
    predicted costs of layers and the staircases of units, `limits` the budgets of the search in numbers. `failures` say
    why attempts of trials failed or were lost.
    """

    path: Path
    config: Mapping[str, Any]
    document: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    sensitivity: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trials: Sequence[ShownTrial] = ()
    limits: Sequence[Mapping[str, float]] = ()
    failures: Sequence[str] = ()
    title: str = ""
    page_unit: TimeUnit | None = None
    """Unit of latencies where the run is shown beside others; by default the one that fits its own."""

    @property
    def name(self) -> str:
        """Name of the run: its title, or that of its folder."""
        return self.title or self.path.resolve().name

    @property
    def unit(self) -> TimeUnit:
        """Unit in which all latencies of the run are shown."""
        return self.page_unit or (time_unit(self.document) if self.document else TimeUnit.of([self.dense_ms]))

    def asked(self, model: Mapping[str, Any]) -> str:
        """Return the budget of a model as it was asked for; empty for none."""
        return asked_text(self.config.get("budgets") or (), model["budget"])

    @property
    def models(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Fully fine-tuned models with their list in `front.json`, each once; the dense model in int8 is one."""
        once: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for kind, model in _listed(self.document):
            once.setdefault(model["digest"], (kind, model))
        return list(once.values())

    @property
    def scored(self) -> list[ShownTrial]:
        """Trials of rungs (not of sensitivities) with a score, in the order in which they ended."""
        rows = [t for t in self.trials if t.study.startswith("rung-") and t.measurement]
        return sorted(rows, key=lambda t: (t.ended is None, t.ended or datetime.min))

    @property
    def dense_ms(self) -> float | None:
        """Measured latency of the dense model; `None` before there is a latency table."""
        return self.document.get("dense", {}).get("latency_ms_measured") or self.table.get("dense_ms")


def read_run(folder: RunFolder, config: Mapping[str, Any], location: StudyLocation) -> RunView:
    """Read a run, finished or not; nothing is written.

    Args:
        folder: of the run.
        config: its configuration.
        location: where its studies are kept.

    Raises:
        RunFolderError: when a file is torn, or its studies cannot be read.
    """
    document = read_front(folder) if folder.front.exists() else {}
    digests = {model["digest"] for _, model in _listed(document)}
    metrics = {d: read_metrics(folder, d) for d in sorted(digests) if folder.model(d).metrics.exists()}
    studies = stored_studies(location) if folder.has_study and not is_empty(location) else []
    return RunView(
        path=folder.path,
        config=config,
        document=document,
        environment=_read(folder.environment),
        table=_read_table(folder.table),
        sensitivity=_read(folder.sensitivity),
        parts=_read(folder.latency_parts),
        metrics=metrics,
        trials=[trial for study in studies for trial in _trials(study)],
        limits=next((limits for study in studies if (limits := _question(study).get("limits"))), ()),
        failures=[f"{study.name}, {text}" for study in studies for text in _failures(study)],
    )


def _listed(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return every model of `front.json` with the name of its list; the dense model in int8 is an entry of its own."""
    in_int8 = [document["dense_in_int8"]] if "dense_in_int8" in document else []
    lists = {kind: document.get(kind, ()) for kind in _LISTS} | {"dense_in_int8": in_int8}
    return [(kind, model) for kind, models in lists.items() for model in models]


def folder_state(folder: RunFolder) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of the files of a run: they differ when the run has gone on.

    Files that come and go are left out: the lease, those that are being written, and SQLite's shared memory.
    """
    state = []
    for path in folder.path.iterdir():
        if not path.name.startswith(".") and not path.name.endswith("-shm"):
            with suppress(FileNotFoundError):  # the log of a database that was closed just now
                status = path.stat()
                state.append((path.name, status.st_size, status.st_mtime_ns))
    return sorted(state)


def _read(path: Path) -> Mapping[str, Any]:
    """Return a file that a run may lack: one of an earlier version, or one that has just begun."""
    return read_json(path) if path.exists() else {}


def _read_table(path: Path) -> Mapping[str, Any]:
    """Return a latency table as JSON: it has a schema of its own, which its reader checks and a plot need not."""
    with suppress(OSError, ValueError):
        value = parsed_json(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def _question(study: StoredStudy) -> Mapping[str, Any]:
    return study.attributes.get(SPEC_KEY, {})


def _trials(study: StoredStudy) -> list[ShownTrial]:
    fidelity = _question(study).get("fidelity", {}).get("name", study.name)
    return [
        ShownTrial(
            study=study.name,
            fidelity=fidelity,
            number=trial.number,
            digest=trial.attributes.get("digest", ""),
            origin=trial.attributes.get("origin", ""),
            result=trial.attributes["result"],
            ended=trial.ended,
        )
        for trial in study.trials
        if "result" in trial.attributes
    ]


def _failures(study: StoredStudy) -> list[str]:
    return [
        f"trial {trial.number}, attempt {number} {attempt['status']}: {attempt['reason']}"
        for trial in study.trials
        for number, attempt in enumerate(trial.attributes.get("attempts", ()), start=1)
    ]
