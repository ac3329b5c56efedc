from __future__ import annotations

import dataclasses
import json
import runpy
import shlex
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import typer
from typer.testing import CliRunner

import autoprune
from autoprune.cli.main import app
from autoprune.cli.options import minutes_of
from autoprune.config import OBJECT_TASK, RunConfig
from autoprune.errors import RunFolderError, UsageError
from autoprune.export.formats import FORMATS
from autoprune.pipeline.delivery import _NO_OPTIONS, _build_model, deliver, packed, search_command
from autoprune.pipeline.run import Candidate
from autoprune.report import read_run
from autoprune.report.server import ReportServer
from autoprune.treatments import Treatment
from tests.conftest import SPEC

# Runs a script in a process of its own and says which libraries it loaded.
RUN = "import runpy, sys; runpy.run_path(sys.argv[1]); print('LOADED', *sys.modules)"


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_proven_and_its_script_runs(
    finished: autoprune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    if format == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    candidate = finished.candidate(finished.models[0].digest)
    delivery = deliver(candidate, tmp_path / "out", format)
    assert delivery.difference is not None
    assert delivery.difference <= delivery.limit == 1e-4
    if "torch" in FORMATS[format].runs_on:  # another process would import it for seconds
        runpy.run_path(str(delivery.paths.script))
        assert "(1, 10)" in capsys.readouterr().out
    else:
        done = subprocess.run([sys.executable, "-c", RUN, str(delivery.paths.script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        output, _, loaded = done.stdout.partition("LOADED ")
        assert "output (1, 10) float32" in output
        assert not {"torch", "autoprune"} & set(loaded.split())
    page = delivery.paths.page.read_text()
    assert f"{candidate.record.score:.4f}" in page
    assert f"--policy {candidate.digest} --format {format}" in page
    assert "`x` float32 (1, 1, 8, 8)" in page


def test_an_onnx_file_is_the_proven_one(copied: autoprune.Run, tmp_path: Path) -> None:
    candidate = copied.candidate(copied.models[0].digest)
    path = candidate.export(tmp_path / "small.onnx")
    assert path.read_bytes() == candidate.onnx_path.read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} >= {"small.onnx", "small_deploy.py", "small_README.md"}
    copied.folder.manifest.unlink()
    metrics = copied.folder.model(candidate.digest).metrics
    known = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({k: v for k, v in known.items() if k not in ("onnx_sha256", "inputs")}))
    assert candidate.export(tmp_path / "older" / "small.onnx").with_name("small_deploy.py").read_text() == (
        (tmp_path / "small_deploy.py").read_text()
    )
    metrics.write_text(json.dumps(known))
    candidate.onnx_path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunFolderError, match=r"is not the file that was proven; `autoprune verify`"):
        candidate.export(tmp_path / "torn.onnx")
    candidate.onnx_path.unlink()
    with pytest.raises(RunFolderError, match="is gone; `autoprune verify`"):
        candidate.export(tmp_path / "gone.onnx")


@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2"])
def test_a_deployer_names_inputs_and_outputs(
    finished: autoprune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    if format == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    digest, out = finished.models[0].digest, tmp_path / "out"
    names = ["--input-names", "image", "--output-names", "logits"]
    command = ["export", str(finished.folder.path), "--policy", digest, "--format", format, "--out", str(out)]
    result = CliRunner().invoke(app, [*command, *names])
    assert result.exit_code == 0, result.output
    runpy.run_path(str(out / "deploy.py"))
    assert "logits (1, 10)" in capsys.readouterr().out
    page = (out / "README.md").read_text()
    assert "`image` float32 (1, 1, 8, 8)" in page
    assert "--input-names image --output-names logits" in page
    with pytest.raises(UsageError, match=r"the model has 1 input \(x\); got 2: a, b"):
        deliver(finished.candidate(digest), tmp_path / "two", format, input_names=["a", "b"])
    if format == "pt2":
        with pytest.raises(UsageError, match="inputs of a file of PyTorch are arguments in Python; got 'my image'"):
            deliver(finished.candidate(digest), tmp_path / "odd", format, input_names=["my image"])


@pytest.mark.parametrize("format", [name for name, kind in FORMATS.items() if not kind.int8])
def test_int8_layers_never_become_fp32_in_silence(finished: autoprune.Run, tmp_path: Path, format: str) -> None:
    candidate = finished.candidate(finished.models[0].digest)
    policy = dataclasses.replace(candidate.record.policy, treatments={"head.weight": Treatment(precision="int8")})
    treated = dataclasses.replace(candidate, record=dataclasses.replace(candidate.record, policy=policy))
    with pytest.raises(UsageError, match=f"has int8 layers, and a {format} file would compute them in fp32"):
        deliver(treated, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def opened_with(finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Candidate:
    """The first model of a run with other options."""
    monkeypatch.setattr(autoprune.Run, "config", finished.config.model_copy(update=changes))
    run = autoprune.Run.open(finished.folder.path)
    return run.candidate(run.models[0].digest)


def test_what_a_file_of_weights_cannot_hold_is_refused(
    finished: autoprune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = finished.candidate(finished.models[0].digest)
    with pytest.raises(UsageError, match="its inputs and outputs have no names"):
        deliver(candidate, tmp_path / "small.safetensors", input_names=["image"])
    with pytest.raises(UsageError, match=r"was quantized as a whole.*Export onnx"):
        deliver(opened_with(finished, monkeypatch, precision="int8"), tmp_path / "small.safetensors")
    assert not any(tmp_path.iterdir())


def test_the_script_of_packed_weights_names_the_dense_model(
    finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _build_model(finished.candidate(finished.models[0].digest)) == f"load_task({SPEC!r}).build_model"
    built_in = opened_with(finished, monkeypatch, task="digits", model="mlp", data_dir="data")
    assert _build_model(built_in) == "load_task('digits', model='mlp', data_dir=Path('data')).build_model"
    assert _build_model(opened_with(finished, monkeypatch, task=OBJECT_TASK)) is None


def test_the_command_of_a_search_is_written_with_its_options() -> None:
    config = RunConfig(task="my task.py:make", budgets=("50%", "bytes:1MB"), seed=3, allow_foreign_table=True)
    assert search_command(config, Path("runs/a")) == (
        "autoprune search --run-dir runs/a --allow-foreign-table --budget 50% --budget bytes:1MB --seed 3 "
        "--task 'my task.py:make'"
    )


def test_every_option_of_such_a_command_is_one_of_the_search() -> None:
    # Values that are no defaults, of the kind of each field.
    commands: Any = typer.main.get_command(app)
    known = {name for param in commands.commands["search"].params for name in param.opts}
    values = {"bool": True, "dict": {"cpu": 2.0}, "tuple": ("9%",), "int": 7, "float": 7.5}
    fields = set(RunConfig.model_fields) - set(_NO_OPTIONS)
    defaults = {name: RunConfig.model_fields[name].get_default(call_default_factory=True) for name in fields}
    numbers = {"trials": 7, "max_minutes": 7.5, "trial_timeout": 7.5, "workers": 7}
    given = {n: numbers.get(n, values.get(type(default).__name__, "x")) for n, default in defaults.items()}
    words = shlex.split(search_command(RunConfig.model_construct(set(fields), **given), Path("runs/a")))
    options = {word for word in words if word.startswith("--")}
    assert options <= known
    assert len(options) == len(fields) + 1
    assert minutes_of(words[words.index("--max-time") + 1]) == 7.5


def test_the_dense_model_in_int8_is_exported_by_the_command_of_its_card(copied: autoprune.Run, tmp_path: Path) -> None:
    document = json.loads(copied.folder.front.read_text())
    document["dense_in_int8"] = document["models"].pop()
    copied.folder.front.write_text(json.dumps(document))
    copied.folder.manifest.unlink()
    run = autoprune.Run.open(copied.folder.path)
    digest = document["dense_in_int8"]["digest"]
    assert run.candidate(digest).export(tmp_path / "dense.onnx").exists()
    server = ReportServer(
        lambda: [read_run(run.folder, run.config.model_dump(), run.folder.study)], lambda: 0,
        archive=lambda _, name: packed(run.candidate(name)),
    )  # fmt: skip
    with ZipFile(BytesIO(server.archive(0, digest) or b"")) as archive:
        assert set(archive.namelist()) == {f"{digest}/{name}" for name in ("model.onnx", "deploy.py", "README.md")}
        assert f"--out {digest}`" in archive.read(f"{digest}/README.md").decode()
    assert server.archive(0, "0" * 12) is None
    server._server.server_close()
    assert all(run.candidate(model["digest"]) for _, model in read_run(run.folder, {}, run.folder.study).models)
