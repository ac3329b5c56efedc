"""The script that runs on devices: what Python it needs, and itself as a process that measures a kit."""

import ast
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoprune.device import measure
from autoprune.device.kit import kit_bytes, kit_manifest, read_results
from autoprune.device.measure import measure_kit
from autoprune.onnxgraph.resizer import Resizer
from tests.machines import QUICK

SCRIPT = Path(measure.__file__)

# --- what Python the script needs


def _tree():
    return ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))


def _annotations(tree):
    """Nodes that are never evaluated, because annotations are postponed."""
    for node in ast.walk(tree):
        for value in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if value is not None:
                yield from ast.walk(value)


def test_the_script_is_written_for_python_3_8():
    tree = _tree()
    assert any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
    assert not any(isinstance(node, (ast.Match, ast.TryStar)) for node in ast.walk(tree))
    skipped = set(_annotations(tree))
    evaluated = [node for node in ast.walk(tree) if node not in skipped]
    builtin = {"list", "dict", "tuple", "set", "frozenset", "type"}
    generics = [n for n in evaluated if isinstance(n, ast.Subscript) and getattr(n.value, "id", "") in builtin]
    assert generics == []
    newer = {
        "removeprefix",
        "removesuffix",
        "is_relative_to",
        "readlink",
        "with_stem",
        "bit_count",
        "pairwise",
        "nulls",
    }
    assert {n.attr for n in evaluated if isinstance(n, ast.Attribute)}.isdisjoint(newer)
    calls = [n for n in evaluated if isinstance(n, ast.Call)]
    keywords = {(getattr(c.func, "id", ""), k.arg) for c in calls for k in c.keywords}
    assert keywords.isdisjoint({("zip", "strict"), ("dataclass", "slots"), ("dataclass", "kw_only")})
    merged = [n for n in evaluated if isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitOr)]
    assert not any(isinstance(side, ast.Dict) for n in merged for side in (n.left, n.right))


def test_the_script_needs_numpy_and_onnxruntime_alone():
    imported = set()
    for node in ast.walk(_tree()):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


# --- the script as a process


@pytest.fixture(scope="module")
def models(structure_of, dense_of, space_of):
    resizer = Resizer(dense_of("flat"), structure_of("flat"))
    levels = space_of("flat").levels
    policies = [space_of("flat").policy({name: ls[i] for name, ls in levels.items()}) for i in range(3)]
    return [resizer.resize(policy) for policy in policies]


def kit_of(models, dense, feeds, timed=(2, 0, 1), block=2):
    return kit_bytes(
        models,
        dense.SerializeToString(),
        feeds,
        provider="CPUExecutionProvider",
        threads=1,
        protocol=replace(QUICK, block=block),
        timed=timed,
        profiled=(1,),
    )


@pytest.fixture
def kit(models, dense_of, feeds, tmp_path):
    """An unpacked kit with three jobs (one profile, two blocks), and its manifest."""
    content = kit_of(models, dense_of("flat"), feeds)
    folder = tmp_path / "kit"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder, kit_manifest(content, "kit")


def run_script(*arguments, cwd=None):
    command = [sys.executable, "-I", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_script_measures_a_kit_and_goes_on_after_an_interruption(kit):
    folder, manifest = kit
    done = run_script(folder / "measure.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "autoprune profile import" in done.stdout
    assert "3 of 3" in done.stderr
    whole = read_results(folder / "results.json", manifest)
    assert whole.timings is not None
    assert len(whole.timings.ratios) == 3
    assert len(whole.kernels) == 1
    head, *jobs = lines_of(folder)
    assert head == {"kit": manifest["kit"], "target": whole.target}
    assert [job["job"] for job in jobs] == [0, 1, 2]
    assert [job["models"] for job in jobs] == [["0001.onnx"], ["0002.onnx", "0000.onnx"], ["0001.onnx"]]

    text = (folder / "results.jsonl").read_text()
    kept = text[: text.rstrip("\n").rfind("\n") + 1]
    (folder / "results.jsonl").write_text(text[: len(kept) + 30])  # the last line is torn
    (folder / "results.json").unlink()
    again = run_script(folder / "measure.py", folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "results.jsonl").read_text().startswith(kept)
    assert lines_of(folder)[:3] == [head, *jobs[:2]]
    assert lines_of(folder)[3]["reference_ms"] != jobs[2]["reference_ms"]
    resumed = read_results(folder / "results.json", manifest)
    np.testing.assert_array_equal(resumed.kernels[0].ms, whole.kernels[0].ms)
    assert resumed.timings.ratios[:2] == whole.timings.ratios[:2]


def test_finished_jobs_are_not_measured_again(kit, monkeypatch):
    folder, manifest = kit
    measured = []
    original = measure._block

    def counted(folder, names, *rest):
        if len(measured) == 1:
            measured.append("power cut")
            raise KeyboardInterrupt
        measured.append(tuple(names))
        return original(folder, names, *rest)

    monkeypatch.setattr(measure, "_block", counted)
    with pytest.raises(KeyboardInterrupt):
        measure_kit(folder)
    assert not (folder / "results.json").exists()
    measure_kit(folder)
    assert measured == [("0002.onnx", "0000.onnx"), "power cut", ("0001.onnx",)]
    monkeypatch.setattr(measure, "_nodes", None)
    monkeypatch.setattr(measure, "_block", None)
    assert measure_kit(folder) == folder / "results.json"
    assert read_results(folder / "results.json", manifest).timings is not None


@pytest.mark.parametrize("torn", ["", '{"kit": "a'])
def test_a_start_that_broke_off_is_a_fresh_start(torn, kit):
    folder, manifest = kit
    (folder / "results.jsonl").write_text(torn)
    measure_kit(folder)
    assert lines_of(folder)[0]["kit"] == manifest["kit"]
    assert read_results(folder / "results.json", manifest).timings is not None


@pytest.mark.parametrize("change", ["kit", "target"])
def test_results_of_another_kit_or_device_are_refused(change, kit):
    folder, _ = kit
    measure_kit(folder)
    head, *jobs = lines_of(folder)
    head[change] = "another" if change == "kit" else head["target"] | {"runtime_version": "0.1"}
    text = "".join(json.dumps(line) + "\n" for line in [head, *jobs])
    (folder / "results.jsonl").write_text(text)
    (folder / "results.json").unlink()
    with pytest.raises(SystemExit, match="another kit, device or runtime"):
        measure_kit(folder)
    assert (folder / "results.jsonl").read_text() == text
    assert not (folder / "results.json").exists()


def test_the_script_says_what_the_device_is(target):
    done = run_script(SCRIPT, "--fingerprint", "CPUExecutionProvider", "1")
    assert done.returncode == 0, done.stderr
    fingerprint = json.loads(done.stdout)
    assert fingerprint == {k: v for k, v in target.fingerprint().items() if k in fingerprint}
    assert set(fingerprint) >= {"provider", "threads", "runtime", "runtime_version", "cpu", "isa", "accelerator"}


def test_a_provider_that_the_device_lacks_ends_the_script(kit):
    folder, _ = kit
    manifest = json.loads((folder / "kit.json").read_text())
    (folder / "kit.json").write_text(json.dumps(manifest | {"provider": "QNNExecutionProvider"}))
    with pytest.raises(RuntimeError, match="no QNNExecutionProvider; it has"):
        measure_kit(folder)
