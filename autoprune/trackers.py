"""Trackers: receivers of `search(events=...)` that log a run to TensorBoard, MLflow or Weights & Biases.

Each logs the configuration, score, loss and predicted latency of every trial by its rung, the best score so far within
each budget, the notes of the search, and at the end the front. A search that goes on later logs into the same run.
Derive from `Tracker` for one of your own.
"""

from __future__ import annotations

import importlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import UsageError
from autoprune.trials import FinishedTrial

_FRONT_KEYS = ("score", "test_score", "latency_ms_measured", "latency_ratio", "bytes", "params", "macs")


class Tracker:
    """Ignores everything; define the methods that you want.

    Example:
        >>> class Best(Tracker):
        ...     def finish(self, document):
        ...         print(max(model["score"] for model in document["models"]))
        >>> Best().note("ignored")
    """

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Take the folder and the configuration of the run; a search begins or goes on."""

    def stage(self, title: str) -> None:
        """Take the title of a stage that begins."""

    def note(self, text: str) -> None:
        """Take one finished fact."""

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Take a step: the stage has done `done` of `total`."""

    def trial(self, trial: FinishedTrial) -> None:
        """Take a finished trial."""

    def finish(self, document: Mapping[str, Any]) -> None:
        """Take the content of `front.json`."""

    def close(self) -> None:
        """Let go of everything: the search is over, or has failed."""


class _Numbers(Tracker, ABC):
    """Turns trials and the front into numbers with names, which the trackers below log."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._notes = []

    def note(self, text: str) -> None:
        self._notes.append(text)

    def trial(self, trial: FinishedTrial) -> None:
        if trial.score is None:
            return
        values = {"score": trial.score, "loss": trial.loss, "latency_ms_predicted": trial.latency_ms_predicted}
        best = {f"best_score/{_metric_name(budget)}": score for budget, score in trial.best_scores.items()}
        known = {name: value for name, value in (values | best).items() if value is not None}
        self._log({f"{trial.rung}/{name}": value for name, value in known.items()}, trial.number)

    def finish(self, document: Mapping[str, Any]) -> None:
        dense = {f"dense/{key}": document["dense"].get(key) for key in _FRONT_KEYS}
        self._log({name: value for name, value in dense.items() if value is not None}, 0)
        for step, model in enumerate(document["models"]):
            known = {f"front/{key}": model.get(key) for key in _FRONT_KEYS}
            self._log({name: value for name, value in known.items() if value is not None}, step)

    @abstractmethod
    def _log(self, numbers: Mapping[str, float], step: int) -> None: ...


class TensorBoard(_Numbers):
    """Logs a search to event files, which `tensorboard --logdir DIR` shows.

    Args:
        log_dir: folder with a folder of event files for each run (default: `tensorboard` in the run folder holds them).

    Example:
        >>> autoprune.search("digits", run_dir="runs/a", events=TensorBoard())   # doctest: +SKIP
    """

    def __init__(self, log_dir: str | Path | None = None) -> None:
        super().__init__()
        self._writers = _module("tensorboardX", "tensorboard")
        self._log_dir = log_dir
        self._writer: Any = None

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Open an event file and write the configuration."""
        super().begin(run_dir, config)
        folder = run_dir / "tensorboard"
        if self._log_dir is not None:
            folder = Path(self._log_dir) / f"{run_dir.resolve().name}-{config['run_id']}"
        self._writer = self._writers.SummaryWriter(str(folder))
        self._writer.add_text("configuration", f"```json\n{json.dumps(config, indent=1)}\n```")

    def finish(self, document: Mapping[str, Any]) -> None:
        """Write the front and the notes."""
        super().finish(document)
        self._writer.add_text("notes", "\n\n".join(self._notes))

    def close(self) -> None:
        """Write everything to disk."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)


class MLflow(_Numbers):
    """Logs a search to an MLflow server or folder; it starts no run in the caller's own context.

    Args:
        tracking_uri: of the server, such as `http://127.0.0.1:5000` (default: as MLflow is configured).
        experiment: name of the experiment, made when it is new.

    Example:
        >>> tracker = MLflow("http://127.0.0.1:5000")             # doctest: +SKIP
        >>> autoprune.search("digits", run_dir="runs/a", events=tracker)             # doctest: +SKIP
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str = "autoprune") -> None:
        super().__init__()
        self._client: Any = _module("mlflow", "mlflow").MlflowClient(tracking_uri)
        self._entities = _module("mlflow.entities", "mlflow")
        self._experiment = experiment
        self._run_id: str | None = None
        self._done = False

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start a run and log the configuration; a search that goes on takes its earlier run."""
        super().begin(run_dir, config)
        self._run_id, self._done = None, False
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(self._experiment)
        tag = "autoprune.run_id"
        earlier = self._client.search_runs([experiment], f"tags.`{tag}` = '{config['run_id']}'", max_results=1)
        if earlier:
            self._run_id = earlier[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run_dir.resolve().name, tags={tag: config["run_id"]})
        self._run_id = made.info.run_id
        params = [self._entities.Param(name, str(value)) for name, value in config.items()]
        self._client.log_batch(self._run_id, params=params)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Log the front, and `front.json` and the notes as artifacts."""
        super().finish(document)
        self._client.log_dict(self._run_id, dict(document), "front.json")
        self._client.log_text(self._run_id, "\n".join(self._notes), "notes.txt")
        self._done = True

    def close(self) -> None:
        """End the run, as failed when the search did not get to its front."""
        run_id, self._run_id = self._run_id, None
        if run_id is not None:
            self._client.set_terminated(run_id, "FINISHED" if self._done else "FAILED")

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1e3)
        metrics = [self._entities.Metric(name, float(value), now_ms, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)


class Wandb(_Numbers):
    """Logs a search to Weights & Biases.

    Args:
        project: name of the project.
        **options: further arguments of `wandb.init`, such as `mode="offline"`.

    Example:
        >>> tracker = Wandb(project="pruning", mode="offline")    # doctest: +SKIP
        >>> autoprune.search("digits", run_dir="runs/a", events=tracker)             # doctest: +SKIP
    """

    def __init__(self, project: str = "autoprune", **options: Any) -> None:
        super().__init__()
        self._wandb = _module("wandb", "wandb")
        self._options = {"project": project, **options}
        self._run: Any = None

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start a run; a search that goes on takes its earlier run."""
        super().begin(run_dir, config)
        self._run = None
        known = {"id": config["run_id"], "name": run_dir.resolve().name, "resume": "allow", "config": dict(config)}
        self._run = self._wandb.init(**{**known, **self._options})
        for rung in ("sensitivity", "proxy", "brief", "longer", "full"):
            self._run.define_metric(f"{rung}/*", step_metric=f"{rung}/trial")

    def finish(self, document: Mapping[str, Any]) -> None:
        """Log the front and a summary."""
        super().finish(document)
        self._run.summary["best_score"] = max((model["score"] for model in document["models"]), default=None)
        self._run.summary["notes"] = "\n".join(self._notes)

    def close(self) -> None:
        """End the run."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        prefix = next(iter(numbers), "").partition("/")[0]
        self._run.log({**numbers, f"{prefix}/trial": step})


def _metric_name(budget: str) -> str:
    """Return a budget as a part of a metric's name: MLflow takes no `%`, `:` or comma there."""
    return re.sub(r"[^\w./-]+", "_", budget.replace("%", "pct"))


def _module(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed: `pip install 'autoprune[{extra}]'`") from error
