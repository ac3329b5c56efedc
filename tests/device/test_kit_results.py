"""What comes back from a device: believed where it fits the kit that was sent, refused otherwise."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.device.kit import kit_manifest, parse_results, read_results
from autoprune.errors import KitError
from tests.device.kits import MANIFEST, TARGET, TIMED, VALID, made, parsed, refused


def test_valid_results_are_read():
    results = parsed()
    assert results.target == TARGET
    assert [kernels.names for kernels in results.kernels] == [("conv", "gemm")] * 2
    np.testing.assert_array_equal(results.kernels[1].ms, VALID["jobs"][1]["ms"])
    timings = results.timings
    assert timings is not None
    first, second = VALID["jobs"][2:]
    quiet = [np.percentile(row, 20) / np.percentile(first["reference_ms"], 20) for row in first["samples_ms"]]
    quiet.append(np.percentile(second["samples_ms"][0], 20) / np.percentile(second["reference_ms"], 20))
    np.testing.assert_allclose(timings.ratios, quiet)
    assert timings.repeated_blocks == 2


def test_the_seconds_of_all_jobs_are_summed():
    assert parsed().seconds == 0
    assert parsed(lambda d: [job.update(seconds=1.5) for job in d["jobs"]]).seconds == 6


def test_the_share_of_time_that_other_work_had_the_core_is_read():
    assert parsed().timings.waited == 0
    assert parsed(lambda d: [job.update(waited=0.5) for job in d["jobs"][2:]]).timings.waited == 0.5


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, True, None, "1"])
def test_absurd_shares_are_refused(value):
    refused(lambda d: d["jobs"][2].update(waited=value), "`waited` is a share")


@pytest.mark.parametrize("value", [-1, math.nan, 1e9, 10**30, True, None, "1"])
def test_absurd_seconds_are_refused(value):
    refused(lambda d: d["jobs"][2].update(seconds=value), "the seconds of a measurement")


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
        results = parse_results(document, MANIFEST, "results.json")
    except KitError:
        return
    timings = results.timings
    assert timings is not None
    assert np.isfinite(timings.ratios).all()
    assert (np.array(timings.ratios) > 0).all()
    assert len(timings.ratios) == len(TIMED)
    assert [kernels.ms.shape[1] for kernels in results.kernels] == [len(kernels.names) for kernels in results.kernels]
    if path in OUTER:
        assert timings.ratios == parsed().timings.ratios
