"""autoprune: search per-layer pruning policies that meet a latency on your device, and prove the result.

import autoprune
run = autoprune.search("mnist5k", budgets=["50%"], run_dir="runs/mnist")
run.front()                                  # pandas.DataFrame
best = run.pick(max_latency="50%")
best.model(); best.export("model.onnx")

In a study of Optuna of your own: `prepare`, `SearchProblem.objective`, `GuidedSampler`.
Single stages, without a task: `units`, `prune`, `recover`, `sparsify`, `zeros`, `cut_vocabulary`, `export_onnx`,
`save`, `load`, `to_semi_structured`.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.errors import AutopruneError
    from autoprune.export.onnx_file import export_verified as export_onnx
    from autoprune.export.semi_structured import to_semi_structured
    from autoprune.export.weights import load, save
    from autoprune.pipeline import Candidate, Run, search
    from autoprune.pipeline.problem import GuidedSampler, SearchProblem, prepare
    from autoprune.pruning import prune, units, zeros
    from autoprune.pruning.vocabulary import cut_vocabulary
    from autoprune.recovery.recover import recover
    from autoprune.recovery.sparsify import sparsify
    from autoprune.task.base import Task
    from autoprune.task.recipe import Recipe
else:
    from autoprune import search

__all__ = [
    "AutopruneError", "Candidate", "GuidedSampler", "Recipe", "Run", "SearchProblem", "Task",
    "cut_vocabulary", "export_onnx", "load", "prepare", "prune", "recover", "save", "search", "sparsify",
    "to_semi_structured", "units", "zeros",
]  # fmt: skip

# Imported when first used: `autoprune --help` and planning must not wait for torch.
_HOMES = {
    "AutopruneError": "autoprune.errors:AutopruneError",
    "Candidate": "autoprune.pipeline:Candidate",
    "GuidedSampler": "autoprune.pipeline.problem:GuidedSampler",
    "Recipe": "autoprune.task.recipe:Recipe",
    "Run": "autoprune.pipeline:Run",
    "SearchProblem": "autoprune.pipeline.problem:SearchProblem",
    "Task": "autoprune.task.base:Task",
    "cut_vocabulary": "autoprune.pruning.vocabulary:cut_vocabulary",
    "export_onnx": "autoprune.export.onnx_file:export_verified",
    "load": "autoprune.export.weights:load",
    "prepare": "autoprune.pipeline.problem:prepare",
    "prune": "autoprune.pruning:prune",
    "recover": "autoprune.recovery.recover:recover",
    "save": "autoprune.export.weights:save",
    "sparsify": "autoprune.recovery.sparsify:sparsify",
    "to_semi_structured": "autoprune.export.semi_structured:to_semi_structured",
    "units": "autoprune.pruning:units",
    "zeros": "autoprune.pruning:zeros",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


def _search() -> Any:
    return importlib.import_module("autoprune.pipeline").search


class _CallablePackage(ModuleType):
    """The package `autoprune.search`, which is at the same time the function that people call.

    A function in its place would break `import autoprune.search.controller as controller`. `help()` and
    `inspect.signature()` show the function.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _search()(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_search())

    @property
    def __doc__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"autoprune.search{inspect.signature(_search())}\n\n{inspect.getdoc(_search())}\n\n{_options()}"


def _options() -> str:
    """The fields of `RunConfig` with their defaults, for `help(autoprune.search)`."""
    from autoprune.config import RunConfig, field_docs

    docs = field_docs()
    lines = ["Options (fields of `autoprune.config.RunConfig`):"]
    for name, field in RunConfig.model_fields.items():
        default = "" if field.default_factory else f" = {field.default!r}"
        lines.append(f"    {name}: {inspect.formatannotation(field.annotation)}{default}")
        lines.append(textwrap.indent(docs[name], " " * 8))
    return "\n".join(lines)


if not TYPE_CHECKING:
    search.__class__ = _CallablePackage
