from __future__ import annotations

import importlib
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import autoprune
from autoprune.errors import UsageError
from autoprune.trackers import MLflow, TensorBoard, Tracker, Wandb
from autoprune.trials import FinishedTrial


def play(tracker: Tracker, run: autoprune.Run, *, ends: bool = True, **config: Any) -> None:
    """Tell a tracker what a search of the finished run would."""
    tracker.begin(run.folder.path, run.config.model_dump(mode="json") | config)
    tracker.stage("Search")
    tracker.note("10 policies")
    for number, model in enumerate(run.models):
        trial = FinishedTrial(
            number=number,
            rung="proxy",
            policy=model.policy,
            status="done",
            score=model.score - 0.1 * number,
            loss=0.5,
            latency_ms_predicted=model.latency_ms_predicted,
            best_scores={"50%": 0.75, "bytes:1MB": 0.25},
        )
        tracker.trial(trial)
    policy = run.models[0].policy
    tracker.trial(FinishedTrial(number=9, rung="proxy", policy=policy, status="failed", error="no memory"))
    if ends:
        tracker.finish(run.document)
    tracker.close()


def event_values(path: Path) -> list[tuple[str, float, int]]:
    """Scalars of a TensorBoard file: records of a length, its checksum, an event, and the checksum of that."""
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
    data, values, at = path.read_bytes(), [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        values += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
        at += 16 + size
    return values


def test_tensorboard_gets_real_files(finished: autoprune.Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    play(TensorBoard(tmp_path / "logs"), finished)
    (path,) = (tmp_path / "logs").glob("*/*")
    values = event_values(path)
    scores = [(round(value, 4), step) for tag, value, step in values if tag == "proxy/score"]
    assert scores == [(round(m.score - 0.1 * n, 4), n) for n, m in enumerate(finished.models)]
    latencies = [value for tag, value, _ in values if tag == "front/latency_ms_measured"]
    assert latencies == pytest.approx([m.latency_ms_measured for m in finished.models])
    tags = {tag for tag, _, _ in values}
    assert {"configuration/text_summary", "notes/text_summary", "dense/score"} <= tags
    best = {(tag, value) for tag, value, _ in values if "/best_score" in tag}
    assert best == {("proxy/best_score/50pct", 0.75), ("proxy/best_score/bytes_1MB", 0.25)}


def test_a_tracker_of_several_searches_mixes_nothing(
    finished: autoprune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    board = TensorBoard(tmp_path / "logs")
    for run_id in ("a", "b"):
        play(board, finished, run_id=run_id)
        play(board, finished, run_id=run_id)  # it goes on
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {f"{finished.folder.path.name}-{i}" for i in "ab"}

    ended: list[tuple[str, str]] = []
    texts: list[str] = []

    class Client:
        """Knows one experiment and no runs; there is no connection for the run `gone`."""

        def __init__(self, uri: str | None) -> None:
            self.get_experiment_by_name = lambda name: SimpleNamespace(experiment_id="1")
            self.set_terminated = lambda run_id, status: ended.append((run_id, status))
            self.log_text = lambda run_id, text, name: texts.append(text)
            self.log_batch = self.log_dict = lambda *_, **__: None

        def search_runs(self, experiments: object, query: str, max_results: int) -> list[object]:
            if "'gone'" in query:
                raise OSError("no connection")
            return []

        def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
            return SimpleNamespace(info=SimpleNamespace(run_id=tags["autoprune.run_id"]))

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    entities = SimpleNamespace(Param=lambda *_: None, Metric=lambda *_: None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    tracker = MLflow()
    play(tracker, finished, run_id="a")
    play(tracker, finished, run_id="b", ends=False)
    with pytest.raises(OSError, match="no connection"):
        play(tracker, finished, run_id="gone")
    tracker.close()
    assert ended == [("a", "FINISHED"), ("b", "FAILED")]
    play(tracker, finished, run_id="c")
    assert texts == ["10 policies"] * 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on the loopback address."""
    pytest.importorskip("mlflow.server", reason="the extra `mlflow` is not installed")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow  # not in `dev`, and its server takes 20 s: `pip install 'autoprune[mlflow]'`, `pytest -m slow`
def test_mlflow_gets_runs_on_a_real_server(server: str, finished: autoprune.Run) -> None:
    play(MLflow(server), finished, ends=False)
    play(MLflow(server), finished)
    client = importlib.import_module("mlflow").MlflowClient(server)
    experiment = client.get_experiment_by_name("autoprune")
    (run,) = client.search_runs([experiment.experiment_id])  # the second search went on with the first one's
    assert run.info.status == "FINISHED"
    assert run.data.params["budgets"] == str(finished.config.model_dump(mode="json")["budgets"])
    history = client.get_metric_history(run.info.run_id, "front/score")
    assert [metric.value for metric in history] == [m.score for m in finished.models]
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} == {"front.json", "notes.txt"}


def test_wandb_gets_what_its_library_takes(finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is a stand-in: the real one writes a format of its own, and needs an account to show it."""
    logged: list[dict[str, float]] = []

    summary: dict[str, object] = {}

    class Run:
        log = staticmethod(logged.append)

        @property
        def summary(self) -> dict[str, object]:
            return summary

        def define_metric(self, name: str, step_metric: str) -> None:
            assert step_metric.startswith(name[:-1])

        def finish(self) -> None:
            logged.append({"finished": 1})

    def init(**options: object) -> Run:
        assert options["project"] == "pruning"
        assert options["id"] == finished.config.run_id
        assert options["mode"] == "offline"
        return Run()

    module = type(sys)("wandb")
    vars(module)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    play(Wandb("pruning", mode="offline"), finished)
    assert logged[0]["proxy/trial"] == 0
    assert logged[-2]["front/score"] == finished.models[-1].score
    assert logged[-1] == {"finished": 1}
    assert summary["best_score"] == max(m.score for m in finished.models)


@pytest.mark.parametrize(("tracker", "name"), [(TensorBoard, "tensorboardX"), (MLflow, "mlflow"), (Wandb, "wandb")])
def test_an_absent_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tracker: type[Tracker], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed: `pip install 'autoprune\[{name.lower()[:5]}"):
        tracker()


def test_a_tracker_of_ones_own_ignores_what_it_does_not_define(finished: autoprune.Run) -> None:
    play(Tracker(), finished)
    assert json.loads(json.dumps(finished.config.model_dump(mode="json")))  # what `begin` gets is plain
