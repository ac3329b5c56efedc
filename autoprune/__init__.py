"""autoprune: search per-layer pruning policies that meet a latency on your device, and prove the result.

import autoprune
run = autoprune.search("mnist5k", budgets=["50%"], run_dir="runs/mnist")
run.front()                                  # pandas.DataFrame
best = run.pick(max_latency_ms=0.1)
best.model(); best.export("model.onnx")

Parts of it, without a task: `units`, `prune`, `recover`, `export_onnx`, `save`, `load`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.errors import AutopruneError
    from autoprune.export.onnx_file import export_verified as export_onnx
    from autoprune.export.weights import load, save
    from autoprune.pipeline import Candidate, Run, search
    from autoprune.pruning import prune, units
    from autoprune.recovery.recover import recover
    from autoprune.task.base import Recipe, Task
else:
    from autoprune import search

__all__ = [
    "AutopruneError", "Candidate", "Recipe", "Run", "Task",
    "export_onnx", "load", "prune", "recover", "save", "search", "units",
]  # fmt: skip

# Imported when first used: `autoprune --help` and planning must not wait for torch.
_HOMES = {
    "AutopruneError": "autoprune.errors:AutopruneError",
    "Candidate": "autoprune.pipeline:Candidate",
    "Recipe": "autoprune.task.base:Recipe",
    "Run": "autoprune.pipeline:Run",
    "Task": "autoprune.task.base:Task",
    "export_onnx": "autoprune.export.onnx_file:export_verified",
    "load": "autoprune.export.weights:load",
    "prune": "autoprune.pruning:prune",
    "recover": "autoprune.recovery.recover:recover",
    "save": "autoprune.export.weights:save",
    "units": "autoprune.pruning:units",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    module, _, found = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), found)


class _CallablePackage(ModuleType):
    """`autoprune.search` is the package of that stage, and the function that people call."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("autoprune.pipeline").search(*args, **options)


if not TYPE_CHECKING:
    search.__class__ = _CallablePackage
