from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoprune.errors import UsageError
from autoprune.export.companions import deploy_script
from autoprune.export.formats import FORMATS, MARK, PACKED, places


@pytest.mark.parametrize(
    ("out", "format", "names"),
    [
        ("small.onnx", None, ("onnx", "small.onnx", "small_deploy.py", "small_README.md")),
        ("a/small.pt2", "pt2", ("pt2", "a/small.pt2", "a/small_deploy.py", "a/small_README.md")),
        ("box", None, ("onnx", "box/model.onnx", "box/deploy.py", "box/README.md")),
        ("small.ONNX", None, ("onnx", "small.ONNX", "small_deploy.py", "small_README.md")),
        ("net.v2/", "pt2", ("pt2", "net.v2/model.pt2", "net.v2/deploy.py", "net.v2/README.md")),
        ("v1.2", "openvino", ("openvino", "v1.2/model.xml", "v1.2/deploy.py", "v1.2/README.md")),
    ],
)
def test_where_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, format: str, names: tuple) -> None:
    monkeypatch.chdir(tmp_path)
    chosen, paths = places(out, format)
    assert (chosen, *(str(path) for path in vars(paths).values())) == names


def test_a_second_format_of_the_same_name_keeps_the_script_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "small_deploy.py").write_text(f'"""{MARK}."""\nload("small.onnx")')
    assert places(tmp_path / "small.onnx", None)[1].script.name == "small_deploy.py"
    (tmp_path / "small.onnx").write_text("a model")
    second = places(tmp_path / "small.pt2", None)[1]
    assert (second.script.name, second.page.name) == ("small_pt2_deploy.py", "small_pt2_README.md")
    assert places(tmp_path / "small.onnx", None)[1].script.name == "small_deploy.py"


def test_a_folder_that_is_called_like_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "all.onnx").mkdir()
    assert places(tmp_path / "all.onnx", "torchscript")[1].model == tmp_path / "all.onnx" / "model.pt"


def test_formats_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown format 'torch_script'. Did you mean 'torchscript'"):
        places(tmp_path, "torch_script")
    with pytest.raises(UsageError, match=r"a pt2 file ends in .pt2, and .*small.ONNX is one of onnx"):
        places(tmp_path / "small.ONNX", "pt2")
    for out, format in (("small.pth", "torchscript"), ("small.bin", None), ("small.tar.gz", "onnx")):
        with pytest.raises(
            UsageError, match=rf"{out} ends like a file of no known format \(.onnx, .pt, .pt2, .xml, .safetensors\)"
        ):
            places(tmp_path / out, format)


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"README.md is not a file that `autoprune export` wrote"):
        places(tmp_path, None)
    assert places(tmp_path / "model.onnx", None)[1].page.name == "model_README.md"
    (tmp_path / "README.md").write_text(f"{MARK}.")
    assert places(tmp_path, None)[1].page == tmp_path / "README.md"
    (tmp_path / "theirs.onnx").write_text("a model")
    with pytest.raises(UsageError, match=r"theirs.onnx is not a file that `autoprune export` wrote"):
        places(tmp_path / "theirs.onnx", None)
    (tmp_path / "theirs_deploy.py").write_text(f"# {MARK}.")
    assert places(tmp_path / "theirs.onnx", None)[1].model.exists()


@pytest.mark.parametrize("stem", ["m", 'a"b', "a'b", "a\\x", "a{b}", '"""', "a\nb"])
@pytest.mark.parametrize("format", FORMATS)
def test_scripts_are_short_python(format: str, stem: str) -> None:
    inputs = [{"name": stem, "dtype": "int64", "shape": [1, 7]}, {"name": "scale", "dtype": "float32", "shape": []}]
    file = stem + FORMATS[format].suffix
    text = deploy_script(format, file, f"{stem}_deploy.py", inputs)
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert file in strings
    assert "torch" in FORMATS[format].runs_on or stem in strings
    assert stem in [n.value for n in ast.walk(ast.parse(deploy_script(PACKED, file, "d.py", inputs, keywords=True)))
                    if isinstance(n, ast.Constant)]  # fmt: skip
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 15
    assert format == PACKED or "autoprune." not in text.replace(MARK, "")


@pytest.mark.parametrize(
    ("outputs", "printed"),
    [
        (torch.zeros(1, 4), "0 (1, 4)\n"),
        ((torch.zeros(1, 4), None), "0 (1, 4)\n1 NoneType\n"),
        ({"logits": torch.zeros(1, 4)}, "logits (1, 4)\n"),
        (SimpleNamespace(logits=torch.zeros(1, 4), hidden=[]), "logits (1, 4)\nhidden list\n"),
    ],
)
def test_the_script_of_packed_weights_prints_the_shapes_of_outputs(
    outputs: object, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoprune.load", lambda build_model, path: lambda x: outputs)
    inputs = [{"name": "x", "dtype": "float32", "shape": [1, 2]}]
    exec(deploy_script(PACKED, "m.safetensors", "d.py", inputs), {"__file__": "d.py"})
    assert capsys.readouterr().out == printed
