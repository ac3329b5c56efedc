from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoprune.errors import ConfigError, UsageError
from autoprune.records import Unit
from autoprune.space import SpaceSpec, build_space, builtin_spaces, find_space, load_spec
from autoprune.treatments import PRECISIONS, Layer

UNITS = [Unit(name=n, kind="channel", width=w, members=()) for n, w in (("stem", 16), ("body.0", 32), ("body.1", 20))]


def levels(**keys: object) -> dict[str, tuple[int, ...]]:
    return dict(build_space(SpaceSpec.model_validate(keys), UNITS, "digest").levels)


def test_levels_are_multiples_within_the_keep_ratios_and_the_full_width() -> None:
    assert levels(multiple_of=8, min_keep=0.25) == {"stem": (8, 16), "body.0": (8, 16, 24, 32), "body.1": (8, 16, 20)}
    assert levels(multiple_of=8, max_keep=0.5)["body.0"] == (8, 16)


def test_steps_are_rounded_up_to_multiples() -> None:
    widths = levels(multiple_of=4, steps=8)
    assert widths == {"stem": (4, 8, 12, 16), "body.0": (4, 8, 12, 16, 20, 24, 28, 32), "body.1": (4, 8, 12, 16, 20)}
    assert levels(multiple_of=8, steps=2)["body.1"] == (16, 20)


def test_one_entry_is_a_list_of_one() -> None:
    one = SpaceSpec.model_validate({"include": "body.*", "exclude": "*.1", "levels": 16, "treatments": {"*": "fp32"}})
    many = {"include": ["body.*"], "exclude": ["*.1"], "levels": [16], "treatments": {"*": ["fp32"]}}
    assert one == SpaceSpec.model_validate(many)


def test_include_and_exclude() -> None:
    widths = levels(include=["body.*"], exclude=["*.1"], multiple_of=16)
    assert widths == {"stem": (16,), "body.0": (16, 32), "body.1": (20,)}


def test_overrides_win_and_later_ones_over_earlier() -> None:
    widths = levels(multiple_of=8, overrides={"body.*": {"levels": [4, 32, 20]}, "body.1": {"multiple_of": 10}})
    assert widths["body.0"] == (4, 20, 32)
    assert widths["body.1"] == (10, 20)


BLOCK = [replace(UNITS[1], removable=True), UNITS[2]]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"multiple_of": 8}, (0, 8, 16, 24, 32)),
        ({"multiple_of": 8, "min_keep": 0.5, "max_keep": 0.8}, (0, 16, 24)),
        ({"multiple_of": 8, "removable": False}, (8, 16, 24, 32)),
        ({"multiple_of": 8, "overrides": {"body.0": {"removable": False}}}, (8, 16, 24, 32)),
        ({"multiple_of": 8, "removable": False, "overrides": {"body.0": {"removable": True}}}, (0, 8, 16, 24, 32)),
        ({"levels": [16, 20, 32]}, (16, 20, 32)),
        ({"levels": "efficient", "multiple_of": 16}, (0, 16, 32)),
        ({"overrides": {"body.0": {"levels": [0, 16, 32]}}, "removable": False}, (0, 16, 32)),
        ({"exclude": ["body.0"]}, (32,)),
    ],
)
def test_removable_units_may_have_width_0(keys: dict[str, object], wanted: tuple[int, ...]) -> None:
    widths = build_space(SpaceSpec.model_validate(keys), BLOCK, "digest").levels
    assert widths["body.0"] == wanted
    assert 0 not in widths["body.1"]


def test_useful_widths_do_not_thin_out_width_0() -> None:
    spec = SpaceSpec(levels="efficient", steps=2)
    useful = {"body.0": (0, 8, 16, 24, 32), "body.1": (10, 20)}
    assert build_space(spec, BLOCK, "d", useful=useful).levels["body.0"] == (0, 8, 32)
    without = {"body.0": (8, 32), "body.1": (10, 20)}
    assert build_space(spec, BLOCK, "d", useful=without).levels["body.0"] == (0, 8, 32)


def test_the_smallest_policy_removes_all_branches() -> None:
    assert dict(build_space(SpaceSpec(multiple_of=4), BLOCK, "d").smallest().widths) == {"body.0": 0, "body.1": 4}


def test_the_id_names_structure_and_levels() -> None:
    spec = SpaceSpec(multiple_of=8)
    ids = {
        build_space(spec, UNITS, "one").id,
        build_space(spec, UNITS, "two").id,
        build_space(SpaceSpec(multiple_of=4), UNITS, "one").id,
        build_space(SpaceSpec(multiple_of=8, description="other words"), UNITS, "one").id,
    }
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"include": ["head*"]}, r"include: 'head\*' matches no unit. Units: stem, body.0, body.1"),
        ({"exclude": ["nothing"]}, "exclude: 'nothing' matches no unit"),
        ({"overrides": {"x": {}}}, "overrides: 'x' matches no unit"),
        ({"levels": []}, "needs levels"),
        ({"levels": [0, 8]}, "needs levels from 1"),
        ({"multiple_of": 64, "max_keep": 0.5}, "needs levels"),
        ({"exclude": ["*"]}, "nothing to search"),
    ],
)
def test_spaces_that_make_no_sense(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        levels(**keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep: 0.5\n", r"space.yaml: unknown key 'keep'. Did you mean 'min_keep'\? \(known: min_keep"),
        (
            "overrides:\n  '*': {step: 3}\n",
            r"unknown key 'overrides.\*.step'. Did you mean 'steps'\? \(known: min_keep, .*, levels, removable\)",
        ),
        ("min_keep: 2\n", "min_keep: .*less than or equal to 1, got 2"),
        ("a: [1\nb: 2\n", "space.yaml, line 2: not valid YAML"),
        ("- 1\n", "must hold `key: value` lines; got list"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_spec(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("levels: [4, 8, 16]\nmin_keep: 0.5\n", r"leave out min_keep, or the levels; .* levels \[4, 8, 16\]"),
        ("levels: [4]\nmultiple_of: 8\nmax_keep: 0.5\nsteps: 2\n", "leave out max_keep, multiple_of, steps,"),
        ("overrides:\n  'body.*': {levels: [4], steps: 2}\n", r"space.yaml: overrides.body.\*: .*leave out steps,"),
        ("min_keep: 0.5\nsteps: 8\nmin_keep: 0.25\n", "space.yaml, line 3: .*key 'min_keep' is given twice"),
        ("overrides:\n  '*': {steps: 3}\n  \"*\": {steps: 4}\n", r"line 3: .*key '\*' is given twice"),
        ("levels: [8, true]\n", r"levels: wants numbers .*; got \[8, True\]"),
        ("overrides:\n  '*': {steps: on}\n", r"overrides.\*.steps: wants numbers .*; got True"),
    ],
)
def test_no_key_is_accepted_and_ignored(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_spec(path)


def test_a_key_that_is_merged_may_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("overrides:\n  stem: &rule {steps: 2, multiple_of: 8}\n  'body.*': {<<: *rule, steps: 4}\n")
    assert load_spec(path).overrides["body.*"].model_dump(exclude_none=True) == {"steps": 4, "multiple_of": 8}


def test_useful_widths_of_another_space_are_multiples_too() -> None:
    spec = SpaceSpec(levels="efficient", multiple_of=8)
    useful = {"stem": (4, 16), "body.0": (3, 8, 20, 24, 31, 32), "body.1": (16, 20)}
    assert dict(build_space(spec, UNITS, "d", useful=useful).levels) == {
        "stem": (16,),
        "body.0": (8, 24, 32),
        "body.1": (16, 20),
    }
    with pytest.raises(ConfigError, match=r"nothing to search: .*that the rules allow is measurably faster"):
        build_space(spec, UNITS[:1], "d", useful=useful)
    with pytest.raises(ConfigError, match=r"unit 'stem' .*'multiple_of': 8.*gives none"):
        build_space(SpaceSpec(levels="efficient", multiple_of=8, max_keep=0.5), UNITS[:1], "d", useful=useful)


def test_an_empty_file_means_everything(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("")
    assert build_space(load_spec(find_space(str(path))), UNITS[:1], "d").levels["stem"] == tuple(range(2, 17))


def test_builtin_spaces_load() -> None:
    assert {"default", "mobilenet", "recurrent"} <= set(builtin_spaces())
    assert all(load_spec(path).description for path in builtin_spaces().values())


def test_unknown_spaces() -> None:
    with pytest.raises(UsageError, match=r"unknown space 'defalt'. Did you mean 'default'\? Known: default"):
        find_space("defalt")
    with pytest.raises(ConfigError, match="no search-space file"):
        find_space("absent.yaml")


LAYERS = [
    Layer(name="stem.weight", op="conv2d", nodes=("conv2d",), precisions=("fp32", "int8")),
    Layer(name="head.weight", op="linear", nodes=("linear",), precisions=PRECISIONS),
]


def test_layers_keep_the_treatments_that_they_can_have() -> None:
    treatments = {"*": ["fp32", "w4", "int8", "int8-dynamic"], "stem": ["fp32"]}
    space = build_space(SpaceSpec.model_validate({"treatments": treatments}), UNITS, "digest", layers=LAYERS)
    assert {name: [*map(str, space.levels[name])] for name in space.layer_names} == {
        "head.weight": ["int8-dynamic", "int8", "w4", "fp32"]
    }


@pytest.mark.parametrize("treatments", [["int8"], ["fp32", "w4", "w4"], []])
def test_treatments_are_distinct_and_fp32_is_one_of_them(treatments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"are distinct precisions .*w4.*, ranks .*, and fp32 is one of them; got"):
        SpaceSpec.model_validate({"treatments": {"*": treatments}})


def layer_with(name: str, *matrix: int) -> Layer:
    return Layer(
        name=f"{name}.weight", op="linear", nodes=(name,), precisions=PRECISIONS, matrix=(matrix[0], matrix[1])
    )


def test_layers_have_the_ranks_that_make_them_smaller() -> None:
    layers = [layer_with("wide", 64, 256), layer_with("narrow", 64, 64), layer_with("tied", 0, 0)]
    treatments = {"*": ["fp32", "rank:*", "int8+rank:40"]}
    space = build_space(SpaceSpec.model_validate({"treatments": treatments}), UNITS, "digest", layers=layers)
    assert {name: [*map(str, space.levels[name])] for name in space.layer_names} == {
        "wide.weight": ["rank:8", "rank:16", "rank:24", "int8+rank:40", "rank:40", "fp32"],
        "narrow.weight": ["rank:8", "rank:16", "rank:24", "fp32"],
    }


def test_a_rank_that_makes_no_layer_smaller_is_refused() -> None:
    layers = [layer_with("wide", 64, 256), layer_with("narrow", 64, 64)]
    most = r"'n\*': two factors of a rank above 31 have no fewer numbers .*; got int8\+rank:32"
    with pytest.raises(ConfigError, match=most):
        build_space(
            SpaceSpec.model_validate({"treatments": {"n*": ["fp32", "int8+rank:32"]}}), UNITS, "digest", layers=layers
        )
    both = SpaceSpec.model_validate({"treatments": {"*": ["fp32", "rank:32"]}})
    assert len(build_space(both, UNITS, "digest", layers=layers).levels["wide.weight"]) == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("wi*", r"'wi\*': the largest full rank of these layers is 64; got rank:65"), ("tied", "none .* can be factors")],
)
def test_a_rank_above_the_full_one_is_refused(pattern: str, message: str) -> None:
    layers, treatments = [layer_with("wide", 64, 256), layer_with("tied", 0, 0)], {pattern: ["fp32", "rank:65"]}
    with pytest.raises(ConfigError, match=message):
        build_space(SpaceSpec.model_validate({"treatments": treatments}), UNITS, "digest", layers=layers)


@pytest.mark.parametrize(
    ("treatments", "message"),
    [
        ({"stem": ["fp32"], "*": ["fp32", "int8"]}, r"'stem' has no effect, because '\*' below it .*; got stem, \*"),
        ({"head": ["fp32", "w4"], "he*": ["fp32"]}, r"'head' has no effect, because 'he\*' below it"),
        ({"stem": ["fp32", "int8-dynamic"]}, r"'stem': stem \(conv2d\) can be fp32, int8; got int8-dynamic"),
        ({"*": ["fp32"], "s*": ["fp32", "w4+rank:*"]}, r"'s\*': stem \(conv2d\) can be fp32, int8; got w4\+rank:\*"),
    ],
)
def test_treatments_without_effect_are_refused(treatments: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_space(SpaceSpec.model_validate({"treatments": treatments}), UNITS, "digest", layers=LAYERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treatments: [fp32, int8]", r"treatments are texts by patterns of layer names.*; got \['fp32', 'int8'\]"),
        ("treatments:", r"treatments are texts by patterns of layer names.*; got None"),
        ("treatments: {head: {precision: int8}}", r"treatments are texts by .*; got {'head': {'precision': 'int8'}}"),
        ("treatments: {head: [fp32, 8]}", r"treatments are texts by .*; got {'head': \['fp32', 8\]}"),
        ("treatments: {8: [fp32]}", r"treatments are texts by .*; got {8: \['fp32'\]}"),
        ("treat_if_faster: true", "treat_if_faster says when .*; got it alone"),
        ("levels: [50%]", r"levels are whole numbers of channels, .* or efficient; got \['50%'\]"),
        ("overrides: {head: {levels: fast}}", "levels are whole numbers of channels, .* or efficient; got 'fast'"),
    ],
)
def test_a_file_of_another_form_is_refused_by_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_spec(path)
    assert "Input should" not in str(caught.value)
