"""Faults of a task's own code: whatever it raises ends in one `TaskError` that names the function and the line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from torch import nn

from autoprune.errors import AutopruneError, TaskError
from autoprune.task.base import DATA_SETS, Task

_CALLBACKS = ("build_model", "loss", "train_step", "metric", "augment", "finetune", "outputs")
_ITEMS = ("__getitem__", "__getitems__", "__len__", "__iter__")
_PACKAGE = str(Path(__file__).parents[1])
_DEPTH = 4
"""Wrappers around a function of the user, at most."""


@contextmanager
def task_faults(task: Task) -> Iterator[None]:
    """Turn what the functions and data sets of a task raise into `TaskError`; `SystemExit` would end all with code 0.

    Errors that do not come from them, and errors of this program, are left alone.
    """
    try:
        yield
    except AutopruneError:
        raise
    except (Exception, SystemExit) as error:
        origin = _origin(error, task)
        if origin is None:
            raise
        raise TaskError(f"{origin} raised {type(error).__name__}: {error}") from error


def described_fault(error: BaseException) -> str:
    """Return type, message and line of an error that a user's code raised."""
    own = [frame for frame in _frames(error.__traceback__) if not frame[0].co_filename.startswith(_PACKAGE)]
    where = f" ({Path(own[-1][0].co_filename).name}, line {own[-1][1]})" if own else ""
    return f"{type(error).__name__}: {error}{where}"


def _origin(error: BaseException, task: Task) -> str | None:
    """Return the callback and the line that an error comes from; `None` when no function of the task is in it."""
    codes = {code: name for name in _CALLBACKS for code in _codes(getattr(task, name), _DEPTH)}
    for name in DATA_SETS:
        codes |= dict.fromkeys(_item_codes(getattr(task, name), _DEPTH), name)
    frames = list(_frames(error.__traceback__))
    name = next((codes[code] for code, _ in frames if code in codes), None)
    if name is None:
        return None
    own = [(code, line) for code, line in frames if not code.co_filename.startswith(_PACKAGE)]
    code, line = next((entry for entry in reversed(own) if entry[0] in codes), own[-1])
    return f"{name} of the task ({Path(code.co_filename).name}, line {line})"


def _frames(trace: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lineno
        trace = trace.tb_next


def _codes(function: Any, depth: int) -> Iterator[CodeType]:
    """Yield the code of a function, also where it is wrapped, a method, a module or an object that is called."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        yield code
    elif function is not None and depth:
        called = type(function).forward if isinstance(function, nn.Module) else vars(type(function)).get("__call__")
        own = getattr(called, "__code__", None)
        if isinstance(own, CodeType) and not own.co_filename.startswith(_PACKAGE):
            yield own
        inner = [getattr(function, "func", None), *getattr(function, "__dict__", {}).values()]
        for part in inner:
            if callable(part) and not isinstance(part, type):
                yield from _codes(part, depth - 1)


def _item_codes(data: Any, depth: int) -> Iterator[CodeType]:
    """Yield the code that gives the items of a data set, also of one inside another."""
    for name in _ITEMS:
        code = getattr(getattr(type(data), name, None), "__code__", None)
        if isinstance(code, CodeType) and not code.co_filename.startswith(_PACKAGE):
            yield code
    for part in getattr(data, "__dict__", {}).values() if depth else ():
        if hasattr(type(part), "__getitem__") and not isinstance(part, (str, bytes, list, tuple, dict)):
            yield from _item_codes(part, depth - 1)
