"""The script that runs on devices: its protocol on a simulated clock, itself as a process, and what Python it needs."""

import ast
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoprune.latency import measure
from autoprune.latency.kit import kit_bytes, kit_manifest, read_results
from autoprune.latency.measure import Protocol, measure_block, measure_kit, pinned, quiet, session_options
from autoprune.latency.onnx_model import Resizer
from tests.latency.machines import QUICK, Machine

SCRIPT = Path(measure.__file__)


def block_of(machine, latencies_ms, protocol, reference_ms=1.0):
    runs = [machine.run(ms) for ms in latencies_ms]
    rng = np.random.default_rng(0)
    return measure_block(runs, machine.run(reference_ms), protocol, rng, machine.clock)


def test_a_block_holds_all_samples_of_all_models():
    protocol = Protocol(repeats=7, reference_samples=3)
    block = block_of(Machine(), [0.5, 2.0], protocol)
    assert block.samples_ms.shape == (2, 7)
    assert block.reference_ms.shape == (21,)
    np.testing.assert_allclose(block.ratios, [0.5, 2.0])


def test_quiet_latency_is_the_20th_percentile():
    assert quiet(np.arange(101.0)) == 20
    np.testing.assert_allclose(quiet(np.array([[1.0] * 10, [1.0] * 3 + [9.0] * 7])), [1.0, 1.0])


def test_models_are_interleaved_in_random_order():
    order = []

    class Noted(Machine):
        def run(self, ms):
            once = super().run(ms)
            return lambda: (order.append(ms), once())

    protocol = Protocol(repeats=4, reference_samples=1, sample_ms=0.1, warmup_runs=0, retries=0)
    block_of(Noted(), [1.0, 2.0, 3.0], protocol, reference_ms=4.0)
    rounds = np.array(order[4 * 2 * 3 :][::2]).reshape(
        4, 4
    )  # every sample is a run that is not counted, and one that is
    assert all(sorted(turn) == [1.0, 2.0, 3.0, 4.0] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1


def test_the_first_run_of_a_sample_is_not_counted():
    machine, started = Machine(), []

    def cold():
        started.append(machine.now)
        slow = len(started) < 2 or machine.now != cold.ended
        machine.now += 9e-3 if slow else 1e-3
        cold.ended = machine.now

    cold.ended = -1.0
    protocol = Protocol(repeats=3, reference_samples=1, retries=0)
    block = measure_block([cold], machine.run(1.0), protocol, np.random.default_rng(0), machine.clock)
    np.testing.assert_allclose(block.samples_ms, 1.0)


def test_a_block_whose_reference_moves_is_measured_again():
    machine = Machine(lambda now: 1.0 if now < 0.1 else 1.5)
    block = block_of(machine, [1.0, 2.0], Protocol(repeats=20, warmup_runs=1))
    assert block.repeated == 1
    assert block.drift < 1e-6
    np.testing.assert_allclose(block.ratios, [1.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_repetition_is_bounded(retries):
    protocol = Protocol(repeats=20, retries=retries)
    block = block_of(Machine(lambda now: 1 + 3 * now), [1.0, 2.0], protocol)
    assert block.repeated == retries
    assert block.drift > protocol.max_drift


def test_the_stillest_attempt_is_kept():
    def drift(retries, slowness):
        machine = Machine(slowness)
        block = block_of(machine, [1.0, 2.0], Protocol(repeats=20, retries=retries))
        return block.drift, machine.now

    steep, first = drift(0, lambda now: 1 + 3 * now)
    gentle = lambda now: 1 + 3 * min(now, first) + 1.5 * max(0, now - first)  # noqa: E731
    _, second = drift(1, gentle)
    steep_again = lambda now: gentle(now) + 9 * max(0, now - second)  # noqa: E731
    assert 0.03 < drift(1, gentle)[0] < steep
    assert drift(2, steep_again)[0] == pytest.approx(drift(1, gentle)[0], rel=1e-9)


@pytest.mark.parametrize(("slower", "repeated"), [(1.02, 0), (1.045, 1)])
def test_a_move_within_three_percent_is_accepted(slower, repeated):
    machine = Machine(lambda now: 1.0 if now < 0.1 else slower)
    block = block_of(machine, [1.0, 2.0], Protocol(repeats=20, warmup_runs=1))
    assert block.repeated == repeated
    assert block.drift <= 0.03
    assert (block.drift > 0.001) == (repeated == 0)


class Cores:
    """A host whose cores are unequally busy; stands for the affinity of this thread."""

    def __init__(self, busyness):
        self.busyness = busyness
        self.now = self.before = set(busyness)

    def install(self, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(self.now), raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self.move, raising=False)
        monkeypatch.setattr(measure, "_busyness", self.try_core)

    def move(self, pid, cores):
        self.now = set(cores)

    def try_core(self, core):
        self.now = {core}
        return self.busyness[core]


@pytest.mark.parametrize(("threads", "wanted"), [(1, {5}), (2, {5, 0}), (3, {0, 3, 5}), (8, {0, 3, 5})])
def test_pinning_takes_the_fastest_cores_and_gives_them_back(threads, wanted, monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0, 5: 1.0})
    cores.install(monkeypatch)
    with pinned(threads):
        assert cores.now == wanted
    assert cores.now == cores.before


@pytest.mark.parametrize(("name", "value"), [("repeats", 1), ("block", 0), ("retries", -1), ("reference_samples", 0)])
def test_a_protocol_that_cannot_tell_noise_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} .* or more; got {value}"):
        Protocol(**{name: value})


def places_of_workers(threads):
    try:
        return session_options(threads).get_session_config_entry("session.intra_op_thread_affinities")
    except RuntimeError:
        return None


@pytest.mark.parametrize(
    ("threads", "own", "workers"), [(1, {5}, None), (2, {5}, "1"), (3, {5}, "1;4"), (8, {0, 3, 5}, None)]
)
def test_every_thread_of_a_session_can_have_a_core_of_its_own(threads, own, workers, monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0, 5: 1.0})
    cores.install(monkeypatch)
    with pinned(threads, one_each=True):
        assert cores.now == own
        assert places_of_workers(threads) == workers
    assert cores.now == cores.before
    assert places_of_workers(threads) is None


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_session_with_another_number_of_workers_than_there_are_cores_has_no_places(threads, monkeypatch):
    Cores({0: 2.0, 3: 9.0, 5: 1.0, 6: 4.0}).install(monkeypatch)
    with pinned(3, one_each=True):
        assert places_of_workers(3) == "1;7"
        assert places_of_workers(threads) is None


def test_an_error_gives_the_cores_back(monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0, 5: 1.0})
    cores.install(monkeypatch)
    with pytest.raises(KeyError, match="boom"), pinned(1):
        raise KeyError("boom")
    assert cores.now == cores.before


def test_an_error_while_looking_for_a_core_gives_them_back(monkeypatch):
    cores = Cores({0: 2.0, 3: 9.0})
    cores.install(monkeypatch)
    monkeypatch.setattr(cores, "busyness", {0: 1.0})
    monkeypatch.setattr(measure, "_busyness", cores.try_core)
    with pytest.raises(KeyError), pinned(1):
        pass
    assert cores.now == cores.before


def test_hosts_without_affinity_are_measured_as_they_are(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pinned(1):
        pass


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_this_host_is_pinned():
    before = os.sched_getaffinity(0)
    with pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_host_is_described(monkeypatch):
    cpu, isa = measure.host()
    assert cpu
    assert list(isa) == sorted(set(isa))


def test_a_host_without_cpuinfo_still_has_a_name(monkeypatch):
    def absent(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    cpu, isa = measure.host()
    assert cpu
    assert isa == ()


def test_an_arm_host_is_described(monkeypatch):
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert measure.host() == ("0xd0c", ("asimd", "asimddp"))


@pytest.mark.parametrize("script", ["exit 1", "echo 'Tesla T4'; echo 'Tesla T5'"])
def test_the_accelerator_is_the_first_one_or_none(script, tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert measure.accelerator() == ("" if "exit" in script else "Tesla T4")


def test_a_host_without_the_tool_has_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure.accelerator() == ""


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
    found = json.loads(done.stdout)
    assert found == {k: v for k, v in target.fingerprint().items() if k in found}
    assert set(found) >= {"provider", "threads", "runtime", "runtime_version", "cpu", "isa", "accelerator"}


def test_a_provider_that_the_device_lacks_ends_the_script(kit):
    folder, _ = kit
    manifest = json.loads((folder / "kit.json").read_text())
    (folder / "kit.json").write_text(json.dumps(manifest | {"provider": "QNNExecutionProvider"}))
    with pytest.raises(RuntimeError, match="no QNNExecutionProvider; it has"):
        measure_kit(folder)
