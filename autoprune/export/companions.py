"""The script that runs a delivered model, and the page with its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.export.formats import FORMATS, MARK, PACKED

_ONNX = '''\
"""Runs {words} with ONNX Runtime: `python {script}`. {mark}."""

from pathlib import Path

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(str(Path(__file__).with_name({path})), providers=["{provider}"])
inputs = {{{arrays}}}  # put your data here; the first dimension is the batch
for output, value in zip(session.get_outputs(), session.run(None, inputs)):
    print(output.name, value.shape, value.dtype)
'''

_OPENVINO = '''\
"""Runs {words} with OpenVINO: `python {script}`. {mark}."""

from pathlib import Path

import numpy as np
import openvino

path = Path(__file__).with_name({path})
model = openvino.Core().compile_model(path, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
inputs = {{{arrays}}}  # put your data here; the first dimension is the batch
for output, value in model(inputs).items():
    print(output.any_name, value.shape, value.dtype)
'''

_TORCH = '''\
"""Runs {words} with PyTorch: `python {script}`. {mark}."""

from pathlib import Path

import torch

model = {load}
inputs = [{tensors}]  # put your data here; the first dimension is the batch
with torch.no_grad():
    outputs = model(*inputs)
outputs = outputs if isinstance(outputs, (dict, tuple, list)) else [outputs]
for name, value in outputs.items() if isinstance(outputs, dict) else enumerate(outputs):
    print(name, tuple(value.shape), value.dtype)
'''

_PACKED = '''\
"""Runs {words} with autoprune and PyTorch: `python {script}`. {mark}."""

from pathlib import Path

import autoprune
import torch
from autoprune.task.load import load_task

# The task needs its data; or a function of yours that returns the dense model, whose weights do not matter.
build_model = {build}
model = autoprune.load(build_model, Path(__file__).with_name({path}))
inputs = {tensors}  # put your data here; the first dimension is the batch
with torch.no_grad():
    outputs = model({stars}inputs)
outputs = outputs if isinstance(outputs, (dict, tuple, list)) else vars(outputs) or [outputs]
for name, value in outputs.items() if isinstance(outputs, dict) else enumerate(outputs):
    print(name, tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__)
'''
_TO_FILL_IN = "None  # the search was given a task in Python: put your function here"

_LOADS = {
    "torchscript": "torch.jit.load(Path(__file__).with_name({path}))",
    "pt2": "torch.export.load(Path(__file__).with_name({path})).module(check_guards=False)",
}

Inputs = Sequence[Mapping[str, Any]]
"""For each input of a model its `name`, `dtype` and `shape` at a batch of one."""


def deploy_script(
    format: str,
    file: str,
    script: str,
    inputs: Inputs,
    provider: str = "CPUExecutionProvider",
    build: str | None = None,
    *,
    keywords: bool = False,
) -> str:
    """Return a script of about ten lines that loads a model and runs it on ones.

    Args:
        format: a key of `FORMATS`.
        file: name of the model's file, in the same folder.
        script: name of the script.
        inputs: of the model.
        provider: of ONNX Runtime.
        build: the function that returns the dense model, in Python, for packed weights; by default one to fill in.
        keywords: whether the model takes its inputs by name, for packed weights.
    """
    template = {"onnx": _ONNX, "openvino": _OPENVINO, PACKED: _PACKED}.get(format, _TORCH)
    arrays = ", ".join(f'{_quoted(x["name"])}: np.ones({tuple(x["shape"])}, "{x["dtype"]}")' for x in inputs)
    values = [f"torch.ones({tuple(x['shape'])}, dtype=torch.{x['dtype']})" for x in inputs]
    tensors = ", ".join(values)
    if format == PACKED:
        named = ", ".join(f"{_quoted(x['name'])}: {value}" for x, value in zip(inputs, values, strict=True))
        tensors = f"{{{named}}}" if keywords else f"[{tensors}]"
    load = _LOADS.get(format, "").format(path=_quoted(file))
    return template.format(
        path=_quoted(file), words=_plain(file), script=_plain(script), mark=MARK, arrays=arrays, tensors=tensors,
        load=load, provider=provider, build=build or _TO_FILL_IN, stars="**" if keywords else "*",
    )  # fmt: skip


def _quoted(text: str) -> str:
    """Return a text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """Return a name for a docstring, which quotes and backslashes would end or change."""
    return "".join("_" if char in '"\\' or not char.isprintable() else char for char in text)


def readme(title: str, format: str, file: str, rows: Mapping[str, tuple[str, str]], facts: Mapping[str, str]) -> str:
    """Return the page of a delivered model in Markdown.

    Args:
        title: of the page.
        format: a key of `FORMATS`.
        file: name of the model's file.
        rows: values of this model and of the dense one, by what they are.
        facts: further lines, by what they are.
    """
    lines = [f"# {title}", "", f"`{file}` runs on {FORMATS[format].runs_on}.", ""]
    lines += ["| | this model | dense model |", "|---|---|---|"]
    lines += [f"| {name} | {ours} | {dense} |" for name, (ours, dense) in rows.items()]
    lines += ["", *(f"- {name}: {text}" for name, text in facts.items()), "", f"{MARK}."]
    return "\n".join(lines) + "\n"
