"""Making a device kit, and reading one that may have been changed on its way."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.device import measure
from autoprune.device.kit import kit_bytes, kit_manifest, read_manifest
from autoprune.device.measure import Protocol
from autoprune.errors import KitError
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.records import digest_of
from autoprune.structure import analyze
from tests.device import kits
from tests.device.kits import CONTENT, FEEDS, MANIFEST, PROFILED, PROTOCOL, TARGET, TIMED, made

# --- making a kit


def test_equal_content_gives_equal_bytes():
    assert made() == CONTENT


@pytest.mark.parametrize(
    "changed",
    [
        {"threads": 3},
        {"provider": "CUDAExecutionProvider"},
        {"timed": (0, 2, 3)},
        {"profiled": ()},
        {"origin": {"seed": 4}},
        {"protocol": Protocol(repeats=5)},
    ],
)
def test_everything_that_matters_changes_the_name_of_a_kit(changed):
    assert kit_manifest(made(**changed), "kit")["kit"] != MANIFEST["kit"]


def test_other_models_change_the_name_of_a_kit():
    other = kit_bytes(
        [b"x"] * 4, b"reference", FEEDS, provider=TARGET["provider"], threads=2, protocol=PROTOCOL,
        timed=TIMED, profiled=PROFILED, origin={"seed": 3},
    )  # fmt: skip
    assert kit_manifest(other, "kit")["kit"] != MANIFEST["kit"]


def test_other_inputs_change_the_name_of_a_kit(monkeypatch):
    """Models have any batch: that of a measurement is the inputs'."""
    monkeypatch.setattr(kits, "FEEDS", [np.repeat(FEEDS[0], 8, axis=0)])
    assert kit_manifest(made(), "kit")["kit"] != MANIFEST["kit"]


def test_another_script_changes_the_name_of_a_kit(monkeypatch, tmp_path):
    (tmp_path / "measure.py").write_text("# measures otherwise")
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "measure.py"))
    assert kit_manifest(made(), "kit")["kit"] != MANIFEST["kit"]


def test_one_model_at_a_time_is_in_memory():
    models = (bytes(4_000_000) for _ in range(12))
    tracemalloc.start()
    try:
        kit_bytes(
            models, b"", FEEDS, provider=TARGET["provider"], threads=2, protocol=PROTOCOL, timed=range(12), profiled=()
        )
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()


def test_a_kit_holds_models_inputs_and_the_script():
    with zipfile.ZipFile(io.BytesIO(CONTENT)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = set(archive.namelist())
        models = {f"models/{i:04d}.onnx" for i in range(4)} | {"models/reference.onnx"}
        assert names == {"kit.json", "inputs.npz", "measure.py"} | models
        assert archive.read("models/0002.onnx") == b"model 2"
        assert archive.read("models/reference.onnx") == b"reference"
        assert b"def measure_kit" in archive.read("measure.py")
        with np.load(io.BytesIO(archive.read("inputs.npz"))) as stored:
            np.testing.assert_array_equal(stored["input_0"], FEEDS[0])
    assert MANIFEST["timed"] == ["0003.onnx", "0000.onnx", "0002.onnx"]
    assert MANIFEST["profiled"] == ["0001.onnx", "0000.onnx"]
    assert MANIFEST["origin"] == {"seed": 3}
    assert Protocol(**MANIFEST["protocol"]) == PROTOCOL


def test_constant_weights_make_a_kit_small(target):
    """A wider net than the others, because only large weights show it."""
    torch.manual_seed(0)
    structure = analyze(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 9)), (torch.zeros(1, 64),))
    given = {"provider": target.provider, "threads": 1, "protocol": PROTOCOL, "timed": range(3), "profiled": ()}
    sizes = []
    for constant in (False, True):
        timer = make_policy_timer(structure, target, constant_weights=constant)
        models = list(timer.models(np.array([[256], [128], [64]]), "building"))
        for model in models:
            onnx.checker.check_model(onnx.load_from_string(model))
        sizes.append(len(kit_bytes(models, timer.dense, timer.feeds, **given)))
    assert sizes[1] < 0.1 * sizes[0]


# --- reading a kit


def test_a_kit_is_read_from_its_file(tmp_path):
    (tmp_path / "kit.zip").write_bytes(CONTENT)
    assert read_manifest(tmp_path / "kit.zip") == MANIFEST


def test_an_absent_kit_says_how_to_make_one(tmp_path):
    with pytest.raises(KitError, match=r"nothing\.zip cannot be read.*autoprune profile kit"):
        read_manifest(tmp_path / "nothing.zip")


def repacked(manifest):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("kit.json", manifest if isinstance(manifest, bytes) else json.dumps(manifest))
    return packed.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 1},
        {"timed": ["0000.onnx"]},
        {"origin": {"seed": 9}},
        {"models": {}},
        {"kit": "0" * 32},
        {"kit": None},
        {"more": 1},
    ],
)
def test_a_changed_kit_is_refused(change):
    with pytest.raises(KitError, match="kit was changed after it was made"):
        kit_manifest(repacked(MANIFEST | change), "kit")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"not a zip file", CONTENT[:200], CONTENT[: len(CONTENT) // 2], repacked(b"{"), repacked(b"\xff")],
)
def test_what_is_no_kit_is_refused(content):
    with pytest.raises(KitError, match="kit is no kit of autoprune"):
        kit_manifest(content, "kit")


def test_a_zip_without_a_manifest_is_refused():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("other.json", "{}")
    with pytest.raises(KitError, match=r"kit\.json"):
        kit_manifest(packed.getvalue(), "kit")


@pytest.mark.parametrize("manifest", [[], 3, {}, {"schema": 2}])
def test_a_kit_of_another_version_is_refused(manifest):
    with pytest.raises(KitError, match="no kit of this version"):
        kit_manifest(repacked(manifest), "kit")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_kit_gives_the_same_manifest_or_is_refused(data):
    content = bytearray(CONTENT)
    where = st.integers(0, 1500) | st.integers(len(content) - 2500, len(content) - 1)
    for position in data.draw(st.lists(where, min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        manifest = kit_manifest(bytes(content), "kit")
    except KitError:
        return
    assert manifest == MANIFEST


@pytest.mark.parametrize(
    "change",
    [{"threads": "2"}, {"threads": True}, {"protocol": []}, {"protocol": {"repeats": 0}}, {"timed": ["absent.onnx"]},
     {"models": None}, {"origin": 3}, {"protocol": {"speed": 1}}, {"provider": ["x"]}],
)  # fmt: skip
def test_a_kit_with_other_types_is_refused(change):
    manifest = {key: value for key, value in MANIFEST.items() if key != "kit"} | change
    with pytest.raises(KitError, match="is of a wrong type or value"):
        kit_manifest(repacked(manifest | {"kit": digest_of(manifest, length=32)}), "kit")


def test_a_manifest_that_unpacks_to_gigabytes_is_not_unpacked(monkeypatch):
    monkeypatch.setattr("autoprune.device.kit._MOST_MANIFEST", 10_000)
    with pytest.raises(KitError, match="larger than 10,000 bytes"):
        kit_manifest(repacked(b" " * 10_001), "kit")
