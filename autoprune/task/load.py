"""Tasks by their specification: a built-in name, `package.module:function` or `path/to/file.py:function`.

The same specification gives the same task in every process that runs in the same folder, so workers reload it.
`sys.path` is left alone, but modules beside a task stay importable: its functions may import when they are called.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from autoprune.errors import AutopruneError, TaskError, UsageError, unknown_name
from autoprune.task.base import Task
from autoprune.task.builtin import TASKS, make_task

_FORMS = "A task of your own is named `package.module:function` or `path/to/file.py:function`."


def load_task(spec: str, model: str | None = None, data_dir: Path | None = None) -> Task:
    """Build the task that `spec` names; paths are relative to the working folder.

    `model` and `data_dir` belong to built-in tasks. Raises `UsageError` for an unknown name, `TaskError` for a file,
    module or function that is absent, that fails, or that does not return a `Task`.
    """
    source, colon, function = spec.rpartition(":")
    if not colon:
        if spec not in TASKS:
            raise UsageError(f"{unknown_name('task', spec, TASKS)} {_FORMS}")
        return make_task(spec, model, data_dir)
    if not source or not function.isidentifier():
        raise UsageError(f"{spec!r} does not name a function. {_FORMS}")
    _reject_builtin_options(spec, model, data_dir)
    with _importable(Path(source).resolve().parent if source.endswith(".py") else Path.cwd()):
        module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
        return _call(module, function, spec)


@dataclass(frozen=True)
class _Beside(MetaPathFinder):
    """Finds modules in the folder of a task that was loaded, where nothing else has their name."""

    folder: str

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module or package of that name in the folder; a package finds its own modules by its own path."""
        return PathFinder.find_spec(fullname, [self.folder], target) if path is None else None


def _reject_builtin_options(spec: str, model: str | None, data_dir: Path | None) -> None:
    for option, value in (("model", model), ("data-dir", data_dir)):
        if value is not None:
            raise UsageError(
                f"--{option} belongs to the built-in tasks; {spec!r} builds its own. Leave out --{option} ({value})."
            )


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"there is no file {path} (looked in {Path.cwd()}); give a path relative to this folder")
    # A name of its own: two files called task.py, or one called like a package, do not meet in sys.modules.
    name = f"autoprune_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TaskError(f"running {path} failed: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise TaskError(f"importing {name!r} failed: {type(error).__name__}: {error}. {_FORMS}") from error


def _call(module: ModuleType, function: str, spec: str) -> Task:
    build = getattr(module, function, None)
    if not callable(build):
        known = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise TaskError(f"{spec!r} names no function; the callables there are: {', '.join(known) or 'none'}")
    try:
        task = build()
    except AutopruneError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{spec!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{spec!r} must return an autoprune.Task; it returned {type(task).__name__}")
    return task


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Search a folder first while a task is loaded, and last from then on."""
    entry, finder = str(folder), _Beside(str(folder))
    sys.path.insert(0, entry)
    if finder not in sys.meta_path:
        sys.meta_path.append(finder)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
