"""A table by kit: made here, measured by the script in a process of its own, imported here."""

import io
import json
import subprocess
import sys
import zipfile
from collections import Counter

import numpy as np
import onnx
import pytest

from autoprune.device.kit import kit_bytes, read_manifest
from autoprune.errors import KitError, UsageError
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.sampling import scanned_rows, uniform_ladder
from autoprune.latency.table import FIT, HELD_OUT, SCAN, LatencyTable
from autoprune.profiling import kit_profile
from autoprune.profiling.kit_profile import AGAIN, import_kit, make_kit
from tests.machines import QUICK


@pytest.fixture(scope="module")
def kit(structure_of, space_of, tmp_path_factory):
    """Paths of a small kit and of what a device measured for it, and the progress while it was made."""
    folder, stages = tmp_path_factory.mktemp("kit"), []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_COVERING": 24, "_HELD_OUT": 10, "_REMEASURED": 4, "_PROFILED": 6}.items():
            patch.setattr(kit_profile, name, value)
        content = make_kit(
            structure_of("residual"),
            space_of("residual", 4),
            "ort-cpu",
            seed=5,
            protocol=QUICK,
            origin={"task": "mine"},
            on_progress=lambda *stage: stages.append(stage),
        )
        same = make_kit(
            structure_of("residual"),
            space_of("residual", 4),
            "ort-cpu",
            seed=5,
            protocol=QUICK,
            origin={"task": "mine"},
        )
    assert same == content
    (folder / "kit.zip").write_bytes(content)
    device = folder / "device"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(device)
    command = [sys.executable, "-I", "measure.py"]
    done = subprocess.run(command, cwd=device, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "kit.zip", device / "results.json", stages


@pytest.fixture(scope="module")
def imported(kit, structure_of):
    return import_kit(kit[1], kit[0], structure_of("residual"))


def test_a_kit_says_what_it_was_made_for(kit, structure_of, space_of):
    origin = read_manifest(kit[0])["origin"]
    assert origin["options"] == {"task": "mine"}
    assert origin["structure"] == structure_of("residual").digest()
    assert origin["target"] == {"name": "ort-cpu", "batch": 1, "precision": "fp32"}
    assert origin["space"] == json.loads(json.dumps(space_of("residual", 4).to_json()))
    counts = Counter(origin["roles"])
    assert (counts[HELD_OUT], counts[AGAIN]) == (10, 4)
    space, varying = space_of("residual", 4), PricedOperators.of(structure_of("residual")).varying
    assert counts[SCAN] == len(scanned_rows(space, varying, space.levels))
    assert counts[FIT] == len(uniform_ladder(space)) + 24
    assert len(kit[2]) == len(origin["widths"]) + 1


def test_the_profiled_models_are_policies_that_are_fitted_to(kit):
    manifest = read_manifest(kit[0])
    roles = manifest["origin"]["roles"]
    assert len(manifest["profiled"]) == 6
    assert {roles[int(name.removesuffix(".onnx"))] for name in manifest["profiled"]} == {FIT}
    assert sorted(manifest["timed"]) == sorted(set(manifest["models"]) - {manifest["reference"]})


def test_the_models_of_a_kit_are_those_of_its_widths(kit):

    origin = read_manifest(kit[0])["origin"]
    unit = list(origin["space"]["levels"]).index("stem.0")
    with zipfile.ZipFile(kit[0]) as archive:
        for number in (0, 7, 20):
            model = onnx.load_from_string(archive.read(f"models/{number:04d}.onnx"))
            weight = next(i for i in model.graph.initializer if i.name == "stem.0.weight")
            assert weight.dims[0] == origin["widths"][number][unit]


def test_the_table_has_every_entry_and_held_out_policies(imported, structure_of, space_of, target):
    structure, space = structure_of("residual"), space_of("residual", 4)
    varying = PricedOperators.of(structure).varying
    assert set(possible_geometries(varying, space, tuple(space.levels))) <= set(imported.entries)
    assert imported.target == target.fingerprint()
    assert imported.space == space
    assert imported.held_out.policies == imported.counts[HELD_OUT] == 10
    assert len(imported.again_ms) == 4
    assert any("measured by a kit on" in note for note in imported.notes)
    widths = np.array([list(sample.widths.values()) for sample in imported.samples])
    predicted_ms = imported.predictor(structure).predict(widths)
    np.testing.assert_allclose(predicted_ms, [sample.predicted_ms for sample in imported.samples])


def test_measurements_are_brought_back_into_the_order_of_the_policies(kit, imported):
    """Timed in random order: every sample must have the ratio that the device measured for its widths."""
    manifest = read_manifest(kit[0])
    jobs = json.loads(kit[1].read_text())["jobs"]
    quiet = {}
    for job in jobs:
        if job["kind"] == "block":
            for name, row in zip(job["models"], job["samples_ms"], strict=True):
                quiet[name] = np.percentile(row, 20) / np.percentile(job["reference_ms"], 20)
    widths = manifest["origin"]["widths"]
    for number, sample in enumerate(imported.samples):
        assert list(sample.widths.values()) == widths[number]
        assert sample.measured_ms / imported.dense_ms == pytest.approx(quiet[f"{number:04d}.onnx"])
    reference_ms = np.concatenate([job["reference_ms"] for job in jobs if job["kind"] == "block"])
    assert imported.dense_ms == pytest.approx(np.percentile(reference_ms, 20))
    again = [number for number, role in enumerate(manifest["origin"]["roles"]) if role == AGAIN]
    first = manifest["origin"]["roles"].index(HELD_OUT)
    assert [widths[number] for number in again] == widths[first : first + 4]
    wanted = [quiet[f"{number:04d}.onnx"] * imported.dense_ms for number in again]
    assert list(imported.again_ms) == pytest.approx(wanted)


def test_the_table_says_how_long_the_device_measured(kit, imported):
    jobs = json.loads(kit[1].read_text())["jobs"]
    for job in jobs:
        assert job["seconds"] > np.sum(job["samples_ms"] if job["kind"] == "block" else job["ms"]) / 1e3
    assert imported.seconds == pytest.approx(sum(job["seconds"] for job in jobs), abs=0.06)


def test_an_imported_table_survives_its_file(imported, tmp_path):
    imported.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == imported


def test_results_are_imported_with_the_model_they_were_made_for(kit, structure_of):
    with pytest.raises(KitError, match="made for another model"):
        import_kit(kit[1], kit[0], structure_of("flat"))


def test_results_are_imported_with_their_own_kit(kit, structure_of, tmp_path):
    document = json.loads(kit[1].read_text()) | {"kit": "0" * 32}
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(KitError, match="Import it with its own kit"):
        import_kit(tmp_path / "results.json", kit[0], structure_of("residual"))


def test_unfinished_results_are_refused(kit, structure_of, tmp_path):
    document = json.loads(kit[1].read_text())
    document["jobs"].pop()
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(KitError, match="lacks 1 of"):
        import_kit(tmp_path / "results.json", kit[0], structure_of("residual"))


def test_a_kit_of_something_else_is_refused(structure_of, dense_of, feeds, kit, tmp_path):
    """A valid kit that no `make_kit` made, as one that was sent over ssh."""

    content = kit_bytes(
        [b""], b"", feeds, provider="CPUExecutionProvider", threads=1, protocol=QUICK, timed=[0], profiled=[]
    )
    (tmp_path / "kit.zip").write_bytes(content)
    with pytest.raises(KitError, match="made for another model"):
        import_kit(kit[1], tmp_path / "kit.zip", structure_of("residual"))


def test_a_kit_for_a_provider_that_this_host_lacks_can_be_made(structure_of, space_of, monkeypatch):
    for name, value in {"_COVERING": 2, "_HELD_OUT": 1, "_REMEASURED": 1, "_PROFILED": 1}.items():
        monkeypatch.setattr(kit_profile, name, value)
    content = make_kit(structure_of("flat"), space_of("flat", 4), "ort-tensorrt", threads=3, batch=2, protocol=QUICK)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        manifest = json.loads(archive.read("kit.json"))
        with np.load(io.BytesIO(archive.read("inputs.npz"))) as stored:
            assert stored["input_0"].shape == (2, 1, 8, 8)
    assert (manifest["provider"], manifest["threads"]) == ("TensorrtExecutionProvider", 3)


def test_a_kit_is_for_targets_that_run_onnx_models(structure_of, space_of):
    with pytest.raises(KitError, match="torch-cpu does not run them"):
        make_kit(structure_of("flat"), space_of("flat"), "torch-cpu")
    with pytest.raises(UsageError, match="unknown target"):
        make_kit(structure_of("flat"), space_of("flat"), "ort-gpu")
    with pytest.raises(UsageError, match="int8"):
        make_kit(structure_of("flat"), space_of("flat"), "ort-cuda", precision="int8")
