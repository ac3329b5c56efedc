from __future__ import annotations

import errno
import json
import signal
import sys
from pathlib import Path

import pytest

import autoprune
from autoprune.cli import main as cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["autoprune", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--budget=0"], "above 0; got '0'"),
        (["search", "--budget=-1ms"], "got '-1ms'"),
        (["search", "--budget=50"], "Write `50%` or `1.2ms`"),
        (["search", "--budget=abc"], "got 'abc'"),
        (["search", "--budget=50%,byte:1MB"], "unknown cost 'byte'. Did you mean 'bytes'? Known: activation_bytes,"),
        (["search", "--budget=bytes:1MZ"], "units %, B, kB, MB, GB, KiB, MiB, GiB, above 0; got 'bytes:1MZ'"),
        (["search", "--budget=params:0"], "above 0 and finite; got 'params:0'"),
        (["search", "--task", "mnist"], "Did you mean 'mnist5k'?"),
        (["search", "--space", "absent.yaml"], "no search-space file"),
        (["search", "--strategy", "best"], "Known: "),
        (["search", "--target", "toaster"], "Known: ort-cpu"),
        (["search", "--storage", "mysql://db"], "or journal:PATH; got scheme 'mysql'"),
        (["search", "--storage", "postgresql+psycopg://a:b@db/x"], "holds no password: write $NAME"),
        (["search", "--storage", "postgresql+psycopg://a@127.0.0.1:1/x"], "cannot be used: "),
        (["search", "--resources", "cpu=-1"], "0 or more, as in cpu=1,gpu=0.25"),
        (["search", "--max-time", "30"], "such as 90s, 30m or 1h30m; got '30'"),
        (["search", "--max-time", "0s"], "a time above 0"),
        (["status", "nothing"], "no run folder"),
        (["search", "--dense", "absent.safetensors", "--task", "digits"], "absent.safetensors"),
        (["front", "nothing"], "does not exist"),
        (["init", "task.txt"], "a task is a Python file; got task.txt"),
        (["profile", "--out", "t.json", "--task", "digits", "--model", "resnet"], "unknown model"),
    ],
)
def test_bad_input_gets_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "search", "--budget=0", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_malformed_file_is_named_with_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("task: digits\nbudgets: [50%\nseed: 1\n")
    assert run(monkeypatch, "search", str(tmp_path / "run.yaml"), "--run-dir", str(tmp_path / "r")) == 2
    assert "run.yaml, line 3: not valid YAML" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, "search", "--task", "digits", "--run-dir", str(tmp_path / "file" / "run")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_run_of_another_schema(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("schema: 7\ntask: digits\n")
    assert run(monkeypatch, "search", "--run-dir", str(tmp_path)) == 2
    assert "has schema 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name"), [("tasks", "fashion-mnist"), ("spaces", "mobilenet"), ("targets", "ort-cpu")]
)
def test_listings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, name: str) -> None:
    assert run(monkeypatch, command) == 0
    assert name in capsys.readouterr().out


def test_units_are_listed_with_what_is_fixed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "units", "--task", "digits", "--model", "mlp") == 0
    out = capsys.readouterr().out
    assert "fc1" in out
    assert "an output of the model" in out


def test_init_writes_a_task_that_passes_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "init", "sub/my_task.py") == 0
    assert "autoprune check --task sub/my_task.py:make_task" in capsys.readouterr().out
    written = Path("sub/my_task.py").read_text()
    assert run(monkeypatch, "init", "sub/my_task.py") == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert Path("sub/my_task.py").read_text() == written
    assert run(monkeypatch, "check", "--task", "sub/my_task.py:make_task", "--workers", "2") == 0
    out = capsys.readouterr().out
    assert "fails" not in out
    assert "skipped" not in out
    assert "ONNX Runtime differs by" in out
    assert "an output of the model" in out
    assert "small, on 2 workers: latency table" in out
    assert all(effort in out for effort in ("small", "medium", "large"))


def test_check_of_a_broken_task_names_the_stage_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(BROKEN)
    assert run(monkeypatch, "check", "--task", "bad.py:make_task") == 1
    lines = capsys.readouterr().out.splitlines()
    states = {line.split("│")[0].strip(): line.split("│")[1].strip() for line in lines if line.count("│") >= 3}
    assert states["trace and units"] == "fails"
    assert states["shrink"] == states["latency"] == "skipped"
    assert states["fine-tuning"] == states["evaluation"] == "works"
    assert any("bad.py, line" in line for line in lines)


def test_check_of_no_task(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "check", "--task", "absent.py:make_task") == 1
    assert "there is no file absent.py" in capsys.readouterr().out


BROKEN = """
import torch, autoprune
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x if x.sum() > 0 else -x)

def make_task():
    data = TensorDataset(torch.rand(40, 4), torch.arange(40) % 2)
    return autoprune.Task(build_model=Net, example_inputs=(torch.zeros(1, 4),), train_set=data, val_set=data,
                          test_set=data, loss=F.cross_entropy)
"""


class TestFinished:
    """Commands on a finished run."""

    def test_front_and_pick(
        self,
        finished: autoprune.Run,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = str(finished.folder.path)
        assert run(monkeypatch, "front", path) == 0
        assert "uniform" in capsys.readouterr().out
        assert run(monkeypatch, "front", path, "--format", "json") == 0
        assert json.loads(capsys.readouterr().out)["schema"] == 1
        assert run(monkeypatch, "front", path, "--format", "csv") == 0
        assert capsys.readouterr().out.startswith("digest,strategy,budget")
        assert run(monkeypatch, "front", path, "--format", "xml") == 2
        capsys.readouterr()
        assert run(monkeypatch, "pick", path, "--knee") == 0
        picked = json.loads(capsys.readouterr().out)
        assert Path(picked["onnx"]).is_file()
        assert run(monkeypatch, "pick", path, "--knee", "--digest") == 0
        assert capsys.readouterr().out == f"{picked['digest']}\n"
        assert run(monkeypatch, "pick", path, "--max-bytes", "100%", "--max-drop", "100%") == 0
        assert json.loads(capsys.readouterr().out)["score"] == max(m.score for m in finished.models)
        assert run(monkeypatch, "pick", path, "--max-latency", "1us") == 2
        assert run(monkeypatch, "pick", path, "--max-latency", "bytes:1MB") == 2
        assert "a limit on latency is a share" in capsys.readouterr().err
        assert run(monkeypatch, "pick", path) == 2

    def test_report_and_export(
        self,
        finished: autoprune.Run,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        path, digest = str(finished.folder.path), finished.models[0].digest
        assert run(monkeypatch, "report", path, "--out", str(tmp_path / "r.html")) == 0
        page = (tmp_path / "r.html").read_text()
        assert digest in page
        assert 'src="http' not in page
        assert run(monkeypatch, "export", path, "--policy", digest[:5], "--out", str(tmp_path / "m.onnx")) == 0
        assert (tmp_path / "m.onnx").read_bytes() == finished.candidate(digest).onnx_path.read_bytes()

    def test_finetune_and_verify(
        self,
        copied: autoprune.Run,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path, model = str(copied.folder.path), copied.models[0]
        before = copied.folder.model(model.digest).weights.read_bytes()
        assert run(monkeypatch, "finetune", path, "--policy", model.digest, "--epochs", "0.5", "--json") == 0
        unchanged = copied.folder.model(model.digest).weights.read_bytes() == before
        shown = capsys.readouterr()
        assert ("the weights stay as they were" in " ".join(shown.err.split())) == unchanged
        assert json.loads(shown.out)["digest"] == model.digest
        assert run(monkeypatch, "verify", path, "--policy", model.digest) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert metrics["schema"] == 1
        assert metrics["onnx_relative_difference"] <= 1e-4
        again = autoprune.Run.open(copied.folder.path).candidate(model.digest).record
        assert again.score == metrics["score"]
        assert run(monkeypatch, "finetune", path, "--policy", model.digest, "--epochs", "0") == 2

    def test_training_from_scratch_is_a_control_and_changes_no_file(
        self, copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, digest = copied.folder.path, copied.models[0].digest

        def contents() -> dict[Path, bytes]:
            return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "lock" not in path.name}

        before, command = contents(), ("finetune", str(folder), "--policy", digest, "--from-scratch", "--json")
        assert run(monkeypatch, *command, "--epochs", "3") == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["score_of_run"] == pytest.approx(copied.models[0].score)
        assert shown["score"] > 0.5  # it learned
        changed = [path.name for path, content in contents().items() if before.get(path) != content]
        assert changed == []
        assert run(monkeypatch, *command, "--epochs", "0") == 2


def test_an_import_that_a_signal_cut_off_is_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("numpy._core.multiarray failed to import") from None

    monkeypatch.setattr("autoprune.pipeline.search", cut_off)
    assert run(monkeypatch, "search", "--run-dir", str(tmp_path / "x")) == 128 + signal.SIGTERM
    assert capsys.readouterr().out == "Stopped. Nothing was begun.\n"


def test_a_full_disk_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/.lock")

    monkeypatch.setattr("autoprune.pipeline.search", full)
    assert run(monkeypatch, "search", "--run-dir", "runs/x") == 2
    assert capsys.readouterr().err == "error: No space left on device: runs/x/.lock. What was finished is kept\n"


def test_a_folder_is_proven_without_running_its_task(
    copied: autoprune.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoprune.task.load.load_task", lambda *_: pytest.fail("code of the task was run"))
    path = str(copied.folder.path)
    assert run(monkeypatch, "verify", path, "--check", "--json") == 0
    assert json.loads(capsys.readouterr().out)["whole"] is True
    copied.folder.order.unlink()
    copied.folder.model(copied.models[0].digest).onnx.write_bytes(b"")
    assert run(monkeypatch, "verify", path, "--check") == 1
    shown = capsys.readouterr().out
    assert "model.onnx: changed\n" in shown
    assert "order.json: absent\n" in shown
