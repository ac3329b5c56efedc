"""File formats that a model is delivered in, and where a file and its companions go."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import UsageError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format.

    Args:
        suffix: of its files.
        runs_on: what a machine needs to run such a file.
        int8: whether a file holds int8 layers as such.
    """

    suffix: str
    runs_on: str
    int8: bool


PACKED = "safetensors"
"""Format of the weights alone, packed as `autoprune.save` does; `autoprune.load` needs the dense model's class."""

FORMATS = {
    "onnx": Format(suffix=".onnx", runs_on="onnxruntime and numpy", int8=True),
    "torchscript": Format(suffix=".pt", runs_on="torch", int8=False),
    "pt2": Format(suffix=".pt2", runs_on="torch", int8=False),
    "openvino": Format(suffix=".xml", runs_on="openvino and numpy", int8=True),
    PACKED: Format(suffix=".safetensors", runs_on="autoprune, torch and the dense model's class", int8=True),
}

PARITY_LIMIT = 1e-4
"""Largest output difference between PyTorch and a file, relative to the largest output."""

INT8_LIMIT = 0.1
"""The same for int8 layers: where two sums lie on both sides of a half step, all that follows differs a little.

The twins of trained nets differ by 0.004 (`resnet8`) and 0.009 (`resnet20`) of the largest output, and by 0.03 where a
quarter of every width is left (`scripts/benchmarks/int8.py`).
"""

MARK = "Written by autoprune"
"""A line of every companion file: only files with it are overwritten, and a model's file only beside one."""

_LIKE_A_FILE = re.compile(r"\.[A-Za-z]\w*")
"""Suffixes of files; `v1.2` is the name of a folder."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Paths of a delivered model: its file, the script that runs it, and the page with its numbers."""

    model: Path
    script: Path
    page: Path


def places(out: str | Path, format: str | None) -> tuple[str, Places]:
    """Return the name of a format and where its files go.

    A path that ends like a file of a format, in small or capital letters, is that file, and its companions are named
    after it: `small.onnx`, `small_deploy.py`, `small_README.md`; or `small_pt2_deploy.py`, where these are of the same
    model in another format. Any other path is a folder with `model.onnx`,
    `deploy.py` and `README.md`; one that ends like some other file, such as `small.pth`, must exist as a folder or end
    in a slash.

    Args:
        out: the path.
        format: a key of `FORMATS`; by default what the path ends like, and ONNX for a folder.

    Raises:
        UsageError: for an unknown format, a file name of another or of no format, or files that autoprune did not
            write: its companions hold `MARK`, and a model's file has such companions beside it.

    Example:
        >>> [str(path) for path in vars(places("out/small.pt2", None)[1]).values()]
        ['out/small.pt2', 'out/small_deploy.py', 'out/small_README.md']
    """
    path = Path(out)
    by_suffix = {kind.suffix: name for name, kind in FORMATS.items()}
    is_folder = path.is_dir() or str(out).endswith(("/", os.sep))
    named = None if is_folder else by_suffix.get(path.suffix.lower())
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format is not None and named is not None and format != named:
        raise UsageError(
            f"a {format} file ends in {FORMATS[format].suffix}, and {path} is one of {named}. Name another file, a "
            "folder, or leave out the format"
        )
    if not is_folder and named is None and _LIKE_A_FILE.fullmatch(path.suffix):
        known = ", ".join(by_suffix)
        raise UsageError(f"{path} ends like a file of no known format ({known}). Name one, or a folder: {path}/")
    chosen = format or named or "onnx"
    if named is not None:
        stem = path.with_suffix("").name
        own = _beside(path, stem)
        if _is_marked(own.script) and _runs_another(own.script, path):
            own = _beside(path, f"{stem}_{chosen}")  # the same model in another format keeps its script
    else:
        own = Places(model=path / f"model{FORMATS[chosen].suffix}", script=path / "deploy.py", page=path / "README.md")
    _require_own(own)
    return chosen, own


def _beside(path: Path, stem: str) -> Places:
    return Places(model=path, script=path.with_name(f"{stem}_deploy.py"), page=path.with_name(f"{stem}_README.md"))


def _require_own(places: Places) -> None:
    """Raise `UsageError` when autoprune did not write a file that would be overwritten."""
    foreign = [path for path in (places.script, places.page) if path.exists() and not _is_marked(path)]
    if places.model.exists() and not any(map(_is_marked, (places.script, places.page))):
        foreign.append(places.model)
    if foreign:
        raise UsageError(f"{foreign[0]} is not a file that `autoprune export` wrote, and stays. Choose another --out")


def _runs_another(script: Path, model: Path) -> bool:
    """Return whether a script runs a model of the same name in another format."""
    text = script.read_text(errors="replace")
    others = [model.with_suffix(kind.suffix).name for kind in FORMATS.values()]
    return f'"{model.name}"' not in text and any(f'"{name}"' in text for name in others)


def _is_marked(path: Path) -> bool:
    return path.is_file() and MARK in path.read_text(errors="replace")
