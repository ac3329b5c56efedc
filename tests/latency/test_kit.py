import copy
import io
import json
import math
import zipfile

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.errors import KitError
from autoprune.latency.bench import make_bench
from autoprune.latency.kit import kit_bytes, kit_manifest, parse_results, read_manifest, read_results
from autoprune.latency.measure import Protocol
from autoprune.structure import analyze

PROTOCOL = Protocol(repeats=4, reference_samples=2, block=2, retries=2)
FEEDS = [np.arange(6, dtype=np.float32).reshape(1, 6)]
TIMED, PROFILED = (3, 0, 2), (1, 0)
TARGET = {
    "provider": "CPUExecutionProvider",
    "threads": 2,
    "runtime": "onnxruntime",
    "runtime_version": "1.19.2",
    "cpu": "Cortex-A76",
    "isa": ["asimd", "asimddp"],
    "accelerator": "",
}


def made(**changed):
    given = {
        "provider": "CPUExecutionProvider",
        "threads": 2,
        "protocol": PROTOCOL,
        "timed": TIMED,
        "profiled": PROFILED,
        "origin": {"seed": 3},
    } | changed
    models = [f"model {i}".encode() for i in range(4)]
    return kit_bytes(models, b"reference", FEEDS, **given)


CONTENT = made()
MANIFEST = kit_manifest(CONTENT, "kit")


def valid():
    """What a device could have returned for the kit."""
    rng = np.random.default_rng(0)
    name = "{:04d}.onnx".format
    jobs = [
        {"job": i, "kind": "nodes", "models": [name(m)], "kernels": ["conv", "gemm"], "ms": rng.uniform(0, 1, (5, 2))}
        for i, m in enumerate(PROFILED)
    ]
    for number, block in enumerate((TIMED[:2], TIMED[2:])):
        samples = {"samples_ms": rng.uniform(1, 2, (len(block), 4)), "reference_ms": rng.uniform(1, 2, 8)}
        jobs.append({"job": 2 + number, "kind": "block", "models": [name(m) for m in block], "repeated": 1} | samples)
    return json.loads(
        json.dumps(
            {"schema": 1, "kit": MANIFEST["kit"], "target": TARGET, "jobs": jobs}, default=lambda array: array.tolist()
        )
    )


VALID = valid()


def parsed(edit=lambda document: None):
    document = copy.deepcopy(VALID)
    edit(document)
    return parse_results(document, MANIFEST, "results.json")


def refused(edit, match):
    with pytest.raises(KitError, match=match) as caught:
        parsed(edit)
    assert "results.json" in str(caught.value)


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
        bench = make_bench(structure, target, constant_weights=constant)
        models = list(bench.models(np.array([[256], [128], [64]]), "building"))
        for model in models:
            onnx.checker.check_model(onnx.load_from_string(model))
        sizes.append(len(kit_bytes(models, bench.dense, bench.feeds, **given)))
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
    where = st.integers(0, 1500) | st.integers(len(content) - 1000, len(content) - 1)
    for position in data.draw(st.lists(where, min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        found = kit_manifest(bytes(content), "kit")
    except KitError:
        return
    assert found == MANIFEST


# --- what comes back


def test_valid_results_are_read():
    found = parsed()
    assert found.target == TARGET
    assert [kernels.names for kernels in found.kernels] == [("conv", "gemm")] * 2
    np.testing.assert_array_equal(found.kernels[1].ms, VALID["jobs"][1]["ms"])
    timings = found.timings
    assert timings is not None
    first, second = VALID["jobs"][2:]
    quiet = [np.percentile(row, 20) / np.percentile(first["reference_ms"], 20) for row in first["samples_ms"]]
    quiet.append(np.percentile(second["samples_ms"][0], 20) / np.percentile(second["reference_ms"], 20))
    np.testing.assert_allclose(timings.ratios, quiet)
    assert timings.repeated_blocks == 2


def test_the_order_of_the_jobs_does_not_matter():
    assert parsed(lambda d: d["jobs"].reverse()).timings == parsed().timings


def test_a_kit_that_times_nothing_has_no_timings():
    content = made(timed=())
    manifest = kit_manifest(content, "kit")
    document = copy.deepcopy(VALID) | {"kit": manifest["kit"]}
    del document["jobs"][2:]
    assert parse_results(document, manifest, "results.json").timings is None


@pytest.mark.parametrize("document", [[], 3, None, "text", {}, {"schema": 2}, {"schema": None}])
def test_another_schema_is_refused(document):
    with pytest.raises(KitError, match="schema 1"):
        parse_results(document, MANIFEST, "results.json")


def test_results_of_another_kit_are_refused():
    refused(lambda d: d.update(kit="abc"), "belongs to kit 'abc'")
    refused(lambda d: d.update(kit=["abc"]), "belongs to kit")
    refused(lambda d: d.pop("kit"), "belongs to kit None")


@pytest.mark.parametrize("jobs", [None, {}, "jobs", [1], [None], [[]]])
def test_jobs_are_a_list_of_measurements(jobs):
    refused(lambda d: d.update(jobs=jobs), "`jobs` must be a list")


@pytest.mark.parametrize("number", range(4))
def test_a_missing_job_is_refused(number):
    refused(lambda d: d["jobs"].pop(number), r"lacks 1 of 4 measurements.*to the end")


@pytest.mark.parametrize("number", range(4))
def test_a_job_that_comes_twice_is_refused(number):
    refused(lambda d: d["jobs"].append(d["jobs"][number]), "was measured twice")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["jobs"].append(d["jobs"][2] | {"models": ["0001.onnx"]}),
        lambda d: d["jobs"].append(d["jobs"][2] | {"models": ["../../etc/passwd"]}),
        lambda d: d["jobs"].append(d["jobs"][2] | {"kind": "other"}),
        lambda d: d["jobs"][2].pop("kind"),
        lambda d: d["jobs"][2]["models"].reverse(),
        lambda d: d["jobs"][0].update(kind="block"),
    ],
)
def test_unknown_jobs_are_refused(edit):
    refused(edit, "models that are not in the kit")


@pytest.mark.parametrize("models", [None, "0000.onnx", [1], [None], ["x" * 1001], [["0000.onnx"]]])
def test_models_are_a_list_of_names(models):
    refused(lambda d: d["jobs"][0].update(models=models), "models must be a list of names")


@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, -1e-12, 3_600_001, 1e300, 10**30, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["samples_ms", "reference_ms"])
def test_impossible_times_are_refused(key, value):
    def edit(document):
        times = document["jobs"][2][key]
        (times[0] if key == "samples_ms" else times)[1] = value

    refused(edit, "a time is above 0 and at most an hour")


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, 1e9])
def test_impossible_kernel_times_are_refused(value):
    refused(lambda d: d["jobs"][0]["ms"][2].__setitem__(1, value), "a time is above 0 and at most an hour")


def test_kernels_may_take_less_than_the_clock_can_tell():
    parsed(lambda d: d["jobs"][0]["ms"][2].__setitem__(1, 0))


@pytest.mark.parametrize("value", ["1.5", "fast", None, True, [1.0], {}, {"a": 1}, 10**400])
@pytest.mark.parametrize("key", ["samples_ms", "ms"])
def test_times_of_the_wrong_type_are_refused(key, value):
    job = 2 if key == "samples_ms" else 0
    refused(lambda d: d["jobs"][job][key][0].__setitem__(0, value), "must be numbers|at most an hour")


@pytest.mark.parametrize(
    "value", [None, 3, "x", {}, [], [[]], [[1.0] * 4], [[1.0] * 3] * 2, [[1.0] * 4] * 3, [1.0] * 8]
)
def test_samples_of_the_wrong_shape_are_refused(value):
    refused(lambda d: d["jobs"][2].update(samples_ms=value), "must have shape")


@pytest.mark.parametrize("value", [None, 3, [1.0] * 7, [1.0] * 9, [[1.0] * 8]])
def test_references_of_the_wrong_shape_are_refused(value):
    refused(lambda d: d["jobs"][3].update(reference_ms=value), "must have shape")


@pytest.mark.parametrize("edit", [{"kernels": ["conv"]}, {"kernels": []}, {"ms": []}, {"ms": None}, {"ms": [[1.0]]}])
def test_kernels_without_their_times_are_refused(edit):
    refused(lambda d: d["jobs"][0].update(edit), "must have shape")


@pytest.mark.parametrize("kernels", [None, "conv", [1, 2], ["a", "b" * 1001], ["a", "\x1b[2J"]])
def test_kernels_have_names(kernels):
    refused(lambda d: d["jobs"][0].update(kernels=kernels), "kernels must be a list of names")


@pytest.mark.parametrize("value", [None, -1, 3, "1", 1.0, [1]])
def test_impossible_repetitions_are_refused(value):
    refused(lambda d: d["jobs"][2].update(repeated=value), "`repeated` is 0 to 2")


@pytest.mark.parametrize("key", ["provider", "runtime", "runtime_version", "cpu", "accelerator"])
@pytest.mark.parametrize("value", ["x" * 201, "a\nb", "\x1b[31mred", "\x00", 3, None, ["x"], {}])
def test_texts_of_the_fingerprint_are_short_and_printable(key, value):
    refused(lambda d: d["target"].update({key: value}), f"{key} of the device must be a short text")


@pytest.mark.parametrize("value", [None, "avx", [1], ["a" * 1001], ["\x1b[2J"], ["avx", None]])
def test_instruction_sets_are_names(value):
    refused(lambda d: d["target"].update(isa=value), "isa must be a list of names")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("target"),
        lambda d: d.update(target=[]),
        lambda d: d["target"].pop("cpu"),
        lambda d: d["target"].update(more="x"),
    ],
)
def test_a_fingerprint_has_all_its_fields_and_no_others(edit):
    refused(edit, "fingerprint is missing or has other fields")


@pytest.mark.parametrize(
    ("key", "value"),
    [("threads", 1), ("threads", "2"), ("threads", None), ("threads", 2.0), ("provider", "CUDAExecutionProvider")],
)
def test_another_provider_or_number_of_threads_is_refused(key, value):
    refused(lambda d: d["target"].update({key: value}), f"measured with {key} .*; the kit asks for")


# --- files


def test_results_are_read_from_their_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(VALID))
    assert read_results(path, MANIFEST).timings == parsed().timings


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_file_with_constants_that_are_no_numbers_is_refused(constant, tmp_path):
    path = tmp_path / "results.json"
    text = json.dumps(VALID)
    time = json.dumps(VALID["jobs"][2]["samples_ms"][0][0])
    path.write_text(text.replace(time, constant))
    with pytest.raises(KitError, match=f"results.json cannot be read: {constant} is no measurement"):
        read_results(path, MANIFEST)


@pytest.mark.parametrize("text", ["", "{", json.dumps(VALID)[:-20], "\ud800", "[" * 100_000])
def test_a_file_that_is_no_json_is_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(KitError, match=r"results\.json cannot be read.*measure\.py"):
        read_results(path, MANIFEST)


def test_an_absent_or_huge_file_is_refused(tmp_path):
    with pytest.raises(KitError, match="cannot be read"):
        read_results(tmp_path / "results.json", MANIFEST)
    with (tmp_path / "results.json").open("wb") as file:
        file.truncate(300 * 2**20)  # holds nothing, and takes no place
    with pytest.raises(KitError, match="larger than"):
        read_results(tmp_path / "results.json", MANIFEST)


# --- whatever comes back

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Every place of a JSON value, as keys from its root."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


PLACES = list(places(VALID))[1:]
OUTER = [path for path in PLACES if not {"samples_ms", "reference_ms", "ms"} & set(path)]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whatever_comes_back_is_refused_or_gives_usable_timings(data):
    document = copy.deepcopy(VALID)
    path = data.draw(st.sampled_from(OUTER) | st.sampled_from(PLACES))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    change = data.draw(st.sampled_from(["put", "drop", "copy", "rename"]))
    if change == "put":
        holder[path[-1]] = data.draw(json_values)
    elif change == "drop":
        del holder[path[-1]]
    elif change == "copy":
        other = document
        for key in data.draw(st.sampled_from(PLACES)):
            other = other[key]
        holder[path[-1]] = copy.deepcopy(other)
    elif isinstance(holder, dict):
        holder[data.draw(st.text(max_size=5))] = holder.pop(path[-1])
    else:
        holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
    try:
        found = parse_results(document, MANIFEST, "results.json")
    except KitError:
        return
    timings = found.timings
    assert timings is not None
    assert np.isfinite(timings.ratios).all()
    assert (np.array(timings.ratios) > 0).all()
    assert len(timings.ratios) == len(TIMED)
    assert [kernels.ms.shape[1] for kernels in found.kernels] == [len(kernels.names) for kernels in found.kernels]
    if path in OUTER:
        assert timings.ratios == parsed().timings.ratios
