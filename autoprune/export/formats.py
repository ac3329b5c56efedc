"""File formats that a model is delivered in, and where a file and its companions go."""

from __future__ import annotations

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


FORMATS = {
    "onnx": Format(suffix=".onnx", runs_on="onnxruntime and numpy", int8=True),
    "torchscript": Format(suffix=".pt", runs_on="torch", int8=False),
    "pt2": Format(suffix=".pt2", runs_on="torch", int8=False),
    "openvino": Format(suffix=".xml", runs_on="openvino and numpy", int8=True),
}

PARITY_LIMIT = 1e-4
"""Largest output difference between PyTorch and a file, relative to the largest output."""

INT8_LIMIT = 0.1
"""The same for int8 layers: where two sums lie on both sides of a half step, all that follows differs a little.

The twins of trained nets differ by 0.004 (`resnet8`) and 0.009 (`resnet20`) of the largest output, and by 0.03 where a
quarter of every width is left (`scripts/benchmarks/int8.py`).
"""

MARK = "Written by autoprune"
"""A line of every companion file: only files with it are overwritten."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Paths of a delivered model: its file, the script that runs it, and the page with its numbers."""

    model: Path
    script: Path
    page: Path


def places(out: str | Path, format: str | None) -> tuple[str, Places]:
    """Return the name of a format and where its files go.

    A path that ends like a file of a format is that file, and its companions are named after it: `small.onnx`,
    `small_deploy.py`, `small_README.md`. Any other path is a folder with `model.onnx`, `deploy.py` and `README.md`.

    Args:
        out: the path.
        format: a key of `FORMATS`; by default what the path ends like, and ONNX for a folder.

    Raises:
        UsageError: for an unknown format, a file name of another format, or companions that autoprune did not write.

    Example:
        >>> [str(path) for path in vars(places("out/small.pt2", None)[1]).values()]
        ['out/small.pt2', 'out/small_deploy.py', 'out/small_README.md']
    """
    path = Path(out)
    by_suffix = {kind.suffix: name for name, kind in FORMATS.items()}
    named = None if path.is_dir() else by_suffix.get(path.suffix)
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format is not None and named is not None and format != named:
        raise UsageError(
            f"a {format} file ends in {FORMATS[format].suffix}, and {path} is one of {named}. Name another file, a "
            "folder, or leave out the format"
        )
    chosen = format or named or "onnx"
    if named is not None:
        stem = path.with_suffix("").name
        own = Places(model=path, script=path.with_name(f"{stem}_deploy.py"), page=path.with_name(f"{stem}_README.md"))
    else:
        own = Places(model=path / f"model{FORMATS[chosen].suffix}", script=path / "deploy.py", page=path / "README.md")
    for companion in (own.script, own.page):
        if companion.exists() and MARK not in companion.read_text(errors="replace"):
            raise UsageError(f"{companion} is not a file that autoprune wrote, and stays. Choose another --out")
    return chosen, own
