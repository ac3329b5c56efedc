"""Levels of layers with zeros: what a space file may say, and what each layer is offered."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from autoprune.errors import ConfigError
from autoprune.layer_levels import layer_levels
from autoprune.records import SearchSpace
from autoprune.space import SpaceSpec, load_spec
from autoprune.treatments import INT8, PRECISIONS, Layer

LAYERS = [
    Layer(
        name=f"{name}.weight", op=op, nodes=(name,), precisions=PRECISIONS, weights=(f"{name}.weight",), shapes=shapes
    )
    for name, op, shapes in (
        ("stem", "conv2d", ((16, 3, 3, 3),)),
        ("fc", "linear", ((16, 32),)),
        ("lstm", "lstm", ((32, 8), (32, 6))),
    )
]


def levels(**texts: list[str]) -> dict[str, list[str]]:
    found = layer_levels({"*": ["fp32"], **texts}, LAYERS, "file", None)
    return {name.removesuffix(".weight"): [*map(str, each)] for name, each in found.items()}


def test_layers_are_offered_the_zeros_that_divide_them() -> None:
    assert levels(**{"*": ["fp32", "2:4", "int8+sparse:80%", "sparse:50%@8x1"]}) == {
        "stem": ["int8+sparse:80%", "sparse:50%@8x1", "fp32"],
        "fc": ["int8+sparse:80%", "sparse:50%@8x1", "2:4", "fp32"],
        "lstm": ["int8+sparse:80%", "sparse:50%@8x1", "fp32"],
    }


def test_int8_is_the_form_of_int8_that_a_layer_has() -> None:
    layers = [*LAYERS[:2], replace(LAYERS[2], precisions=("fp32", "int8-dynamic"))]
    for texts in ({"*": ["fp32", "int8", "int8+sparse:80%"]}, {"*": ["fp32"], "lstm": ["fp32", "int8"]}):
        found = layer_levels(texts, layers, "file", None)
        assert {*map(str, found["lstm.weight"])} == {
            text.replace("int8", "int8-dynamic") for text in texts.get("lstm", texts["*"])
        }
    assert [*map(str, layer_levels({"*": ["fp32", "int8", "int8-dynamic"]}, layers, "file", None)["lstm.weight"])] == [
        "int8-dynamic", "fp32",
    ]  # fmt: skip


def test_large_layers_have_finer_shares_of_zeros() -> None:
    layers = [*LAYERS[:2], replace(LAYERS[2], shapes=((96, 100),))]  # 91 % of the weights
    found = layer_levels({"*": ["fp32", "int8+sparse:*"]}, layers, "file", None)
    shares = {name: [str(each).removeprefix("int8+sparse:") for each in of_layer] for name, of_layer in found.items()}
    coarse = ["98%", "95%", "87.5%", "75%", "50%"]
    fine = [f"{p}%" for p in (99, 98.5, 98, 97.5, 97, 96, 95, 94, 92, 90, 87.5, 84, 80, 75, 70, 60, 50)]
    assert shares == {
        "stem.weight": [*coarse, "fp32"], "fc.weight": [*coarse, "fp32"], "lstm.weight": [*fine, "fp32"],
    }  # fmt: skip


def test_a_threshold_is_the_share_that_it_makes_zero_in_each_layer() -> None:
    sizes = {"stem.weight": 1.0, "fc.weight": 0.1, "lstm.weight": 1e-3}
    layers = [replace(layer, magnitudes=partial(np.linspace, 0.0, sizes[layer.name], 1001)) for layer in LAYERS]

    def of(*texts: str) -> dict[str, list[str]]:
        found = layer_levels({"*": ["fp32", *texts]}, layers, "file", None)
        return {name.removesuffix(".weight"): [*map(str, each)] for name, each in found.items()}

    assert of("threshold:0.05", "int8+threshold:0.05") == {
        "stem": ["int8+sparse:5.1%", "sparse:5.1%", "fp32"],
        "fc": ["int8+sparse:50.05%", "sparse:50.05%", "fp32"],
        "lstm": ["int8+sparse:99.99%", "sparse:99.99%", "fp32"],
    }
    assert {*map(tuple, of("mean:0.4995").values())} == {("sparse:24.98%", "fp32")}
    none = [replace(layer, magnitudes=partial(np.full, 10, 1.0)) for layer in LAYERS]
    assert layer_levels({"*": ["fp32", "threshold:0.5"]}, none, "file", None) == {}
    with pytest.raises(ValueError, match="a threshold is a number above 0"):
        SpaceSpec(treatments={"*": ("fp32", "threshold:-1")})


@pytest.mark.parametrize(("pattern", "text"), [("stem", "2:4"), ("lstm", "1:4"), ("fc", "sparse:50%@5x1")])
def test_zeros_that_divide_no_named_layer_are_refused(pattern: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{pattern}': {text} has blocks .* can be divided into them \({pattern} "):
        levels(**{pattern: ["fp32", text]})


def test_a_table_says_nothing_about_zeros() -> None:
    texts = {"fc": ["fp32", "int8", "sparse:50%", "int8+sparse:50%"]}
    found = layer_levels(texts, LAYERS, "file", {"fc.weight": [0]})
    assert [*map(str, found["fc.weight"])] == ["sparse:50%", "fp32"]
    space = SearchSpace(id="s", levels=layer_levels(texts, LAYERS, "file", None))
    assert [*map(str, space.timed().levels["fc.weight"])] == ["int8", "fp32"]
    alone = SearchSpace(id="s", levels={"fc.weight": (INT8, *space.levels["fc.weight"][-1:])})
    assert alone.timed() is alone


def test_n_of_m_is_read_from_yaml_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("treatments:\n  '*': [fp32, 2:4, 1:16, sparse:80%, 8:16@8x1]\nsteps: 1_0\n")
    spec = load_spec(path)
    assert spec.treatments == {"*": ("fp32", "2:4", "1:16", "sparse:80%", "8:16@8x1")}
    assert spec.steps == 10


@pytest.mark.parametrize("text", ["sparse:100%", "4:2", "rank:8+2:4", "2:4+sparse:50%", "rank:*+sparse:*"])
def test_wrong_zeros_in_a_file_are_refused_with_their_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"'fc': .*; got"):
        SpaceSpec.model_validate({"treatments": {"fc": ["fp32", text]}})
