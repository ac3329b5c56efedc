"""The surface that users build on: commands, options, public names, run files, configuration keys.

`surface.txt` holds it. A deliberate change rewrites the file: `UPDATE_SURFACE=1 pytest tests/test_surface.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pydoc
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument

import autoprune
from autoprune import errors, pipeline
from autoprune.cli.main import app
from autoprune.config import RunConfig, field_docs
from autoprune.records import Policy, SearchSpace
from autoprune.runfolder import ModelFolder, RunFolder
from autoprune.trials import FrontModel, Measurement, TrialResult

GOLDEN = Path(__file__).with_name("surface.txt")


def test_the_surface_changes_on_purpose_only() -> None:
    surface = "\n".join(_surface()) + "\n"
    if os.environ.get("UPDATE_SURFACE"):
        GOLDEN.write_text(surface)
    assert surface == GOLDEN.read_text(), "the surface changed; if it should: UPDATE_SURFACE=1 pytest " + __file__


def test_the_package_lists_its_public_names() -> None:
    assert [name for name in dir(autoprune) if not name.startswith("_")] == autoprune.__all__


def test_help_on_search_shows_the_function_and_every_option() -> None:
    assert inspect.signature(autoprune.search) == inspect.signature(pipeline.search)
    page = pydoc.render_doc(autoprune.search, renderer=pydoc.plaintext)
    assert "autoprune.search(task: 'Task | str | None' = None, *, run_dir: 'str | Path'" in page
    assert all(f"{name}: " in page for name in RunConfig.model_fields)
    assert field_docs().keys() == RunConfig.model_fields.keys()


def _surface() -> Iterator[str]:
    yield "# commands"
    yield from _commands("autoprune", typer.main.get_command(app))
    yield "\n# python"
    for name in sorted(autoprune.__all__):
        yield from _public(f"autoprune.{name}", getattr(autoprune, name))
    yield "\n# errors"
    yield from sorted(_errors(errors.AutopruneError))
    yield "\n# configuration"
    for name, field in RunConfig.model_fields.items():
        default = f" = {field.default!r}" if field.default_factory is None and not field.is_required() else ""
        yield f"{name}: {inspect.formatannotation(field.annotation)}{default}"
    yield "\n# files of a run"
    yield from sorted(_paths(RunFolder(Path("RUN"))) + _paths(ModelFolder(Path("RUN/models/DIGEST"))))
    yield "\n# fields of JSON records"
    for record in (Policy, SearchSpace, Measurement, TrialResult, FrontModel):
        yield f"{record.__name__}: {', '.join(field.name for field in dataclasses.fields(record))}"


def _commands(name: str, command: Any) -> Iterator[str]:
    """One line for each command and each of its parameters."""
    yield name
    types = typing.get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
    for parameter in command.params:
        words = f"<{parameter.name}>" if isinstance(parameter, TyperArgument) else " ".join(parameter.opts)
        need = "required" if parameter.required else f"default {parameter.default!r}"
        yield f"    {words}: {inspect.formatannotation(types.get(parameter.name, bool))}, {need}"
    for word, child in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(f"{name} {word}", child)


def _public(name: str, value: Any) -> Iterator[str]:
    """One line for a function; for a class one more for each public member."""
    if not inspect.isclass(value):
        yield f"{name}{_parameters(value)}"
        return
    yield f"{name}{'' if issubclass(value, Exception) else _parameters(value)}"
    for key in sorted(dir(value)):
        if key.startswith("_") or hasattr(Exception, key):
            continue
        function = getattr(value, key)
        yield f"    {key}{_parameters(function) if callable(function) and not inspect.isclass(function) else ''}"


def _parameters(function: Any) -> str:
    """The signature without its annotations."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _errors(kind: type, above: str = "") -> Iterator[str]:
    name = f"{above}{kind.__name__}"
    yield name
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _errors(child, f"{name} > ")


def _paths(folder: Any) -> list[str]:
    names = [key for key, value in vars(type(folder)).items() if isinstance(value, property)]
    return [str(value) for name in names if isinstance(value := getattr(folder, name), Path)]
