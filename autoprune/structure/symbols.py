"""Symbolic sizes of an export: a time limit for them, the line that fixes one, and graphs that keep the batch alone.

With free sizes, the exporter decides every question about a size ("is it 1?", "is it as large as that one?") by
algebra. That takes minutes for some models, and leaves a record: a size that met a number is fixed, and a branch of
`forward` that a size decided is a condition.

All stages after the capture read one shape for each value, with the batch apart. So `keep_batch` gives every other
free size the number that it has in the example.
"""

from __future__ import annotations

import os
import re
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from autoprune.structure.input_sizes import Condition, InputSizes
from autoprune.structure.nodes import FREE

_TORCH, _OURS = f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}"
_LAYERS = f"{_TORCH}nn{os.sep}"


class OutOfTimeError(BaseException):
    """Raised in the exporter when free sizes take too long; no `except Exception` of the exporter may catch it."""


@contextmanager
def limited(seconds: float, lines: dict[str, str]) -> Iterator[None]:
    """Raise `OutOfTimeError` when the algebra of sizes goes on after `seconds` of this thread's own time.

    `lines` receives, for each symbol that becomes a number, the line of the user's code that was running.
    """
    thread, end = threading.get_ident(), time.thread_time() + seconds
    own = {name: getattr(ShapeEnv, name) for name in ("_maybe_evaluate_static", "simplify", "_set_replacement")}

    def limit(name: str) -> Any:
        def called(self: Any, *args: Any, **options: Any) -> Any:
            if threading.get_ident() == thread and time.thread_time() > end:
                raise OutOfTimeError
            return own[name](self, *args, **options)

        called.cache_clear = getattr(own[name], "cache_clear", None)  # type: ignore[attr-defined]
        return called

    def replace(self: Any, symbol: Any, value: Any, *args: Any, **options: Any) -> Any:
        if threading.get_ident() == thread and getattr(value, "is_number", False):
            lines.setdefault(str(symbol), _running_line())
        return own["_set_replacement"](self, symbol, value, *args, **options)

    patched = {name: limit(name) for name in own} | {"_set_replacement": replace}
    try:
        for name, method in patched.items():
            setattr(ShapeEnv, name, method)
        yield
    finally:
        for name, method in own.items():
            setattr(ShapeEnv, name, method)


def _running_line() -> str:
    """Return the innermost line of the model's code that runs now: `net.py line 8`; "" if there is none."""
    inside = False
    for frame in reversed(traceback.extract_stack()):
        inside = inside or not frame.filename.startswith(_OURS)
        if inside and frame.filename.startswith(_OURS):
            break  # the caller of autoprune comes next
        if not frame.filename.startswith((_TORCH, _OURS, "<")):
            return f"{Path(frame.filename).name} line {frame.lineno}"
    return ""


def input_sizes(
    program: ExportedProgram, lines: Mapping[str, str], why_static: Mapping[tuple[int, int], str]
) -> InputSizes:
    """Read the sizes of inputs off an exported program.

    Args:
        program: as exported.
        lines: lines that fixed symbols, of `limited`.
        why_static: reasons of dimensions that were not free to begin with, by (input, dimension).
    """
    users = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    tensors = [n for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    env = _shape_env(program)
    origins = {} if env is None else _origins(env)
    formulas, shapes, reasons = [], [], dict(why_static)
    for number, node in enumerate(tensors):
        expressions = [_expression(size) for size in node.meta["val"].shape]
        formulas.append(tuple("" if isinstance(e, int) else _printed(e) for e in expressions))
        shapes.append(tuple(_hint(size) for size in node.meta["val"].shape))
        for dim, expression in enumerate(expressions):
            if isinstance(expression, int) and (number, dim) not in reasons:
                symbol = origins.get((re.sub(r"\W+", "_", node.name), dim), "")
                reasons[number, dim] = _why(expression, lines.get(symbol))
    known = {symbol for own in formulas for symbol in own if symbol}
    return InputSizes(
        names=tuple(str(node.target) for node in tensors),
        shapes=tuple(shapes),
        formulas=tuple(formulas),
        reasons=reasons,
        conditions=() if env is None else tuple(_conditions(env, known, of_user=True)),
        needs=() if env is None else tuple(c for c in _conditions(env, known, of_user=False) if "==" in c.code),
    )


def _why(size: int, line: str | None) -> str:
    if line:
        return f"{line} fixes it"
    return "a size of 1 in the example stays 1" if size == 1 else "a weight fixes it"


def _shape_env(program: ExportedProgram) -> Any:
    for node in program.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            for size in value.shape if isinstance(value, torch.Tensor) else ():
                if isinstance(size, torch.SymInt):
                    return size.node.shape_env
    return None


def _origins(env: Any) -> dict[tuple[str, int], str]:
    """Return the symbol that each dimension of an input began with, by the input's name and the dimension."""
    origins = {}
    for symbol, sources in env.var_to_sources.items():
        for source in sources:
            name = source.name if isinstance(source.name, str) else source.name()
            match = re.fullmatch(r"L(.*)\.size\(\)\[(\d+)\]", name)
            if match:
                origins[re.sub(r"\W+", "_", match[1]).strip("_"), int(match[2])] = str(symbol)
    return origins


def _conditions(env: Any, known: set[str], *, of_user: bool) -> Iterator[Condition]:
    """Yield the questions about known symbols that the user's code and layers of torch asked, or the exporter's own."""
    seen = set()
    for guard in env.guards:
        frame = guard.sloc.framework_loc
        if not isinstance(frame, traceback.FrameSummary):
            continue
        own = frame.filename.startswith(_TORCH) and not frame.filename.startswith(_LAYERS)
        code = _printed(guard.expr) if own is not of_user else ""
        if code and code not in seen and {str(s) for s in guard.expr.free_symbols} <= known:
            seen.add(code)
            yield Condition(code=code, line=f"{Path(frame.filename).name} line {frame.lineno}")


def _printed(expression: sympy.Basic) -> str:
    try:
        return PythonPrinter().doprint(expression)
    except (AttributeError, NotImplementedError, TypeError):
        return ""


def _expression(size: Any) -> Any:
    """Return an integer, or the expression of a size that is not known before the run."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    known = size.node.maybe_as_int()
    return size.node.expr if known is None else int(known)


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def keep_batch(graph: fx.Graph, sizes: InputSizes) -> None:
    """Give all free sizes besides the batch the example's number in the `meta` of a graph's nodes, in place.

    Which dimensions are free is kept under `FREE`.
    """
    batch = sizes.batch_symbols()
    reduced: dict[Any, Any] = {}

    def without_free(size: Any) -> Any:
        expression = _expression(size)
        if isinstance(expression, int):
            return expression
        if expression not in reduced:
            node = size.node
            free = [s for s in expression.free_symbols if str(s) not in batch and s in _hints(node.shape_env)]
            left = expression.xreplace({s: _hints(node.shape_env)[s] for s in free})
            # All inputs have one batch, for which the exporter may have several symbols.
            batches = sorted((s for s in left.free_symbols if str(s) in batch), key=str)
            left = left.xreplace(dict.fromkeys(batches[1:], batches[0])) if len(batches) > 1 else left
            if left.is_number:
                reduced[expression] = int(left)
            elif free or len(batches) > 1:
                reduced[expression] = node.shape_env.create_symintnode(left, hint=node.hint)
            else:
                reduced[expression] = size
        return reduced[expression]

    def visited(value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return without_free(value)
        if isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            shape = tuple(without_free(size) for size in value.shape)
            if any(new is not old for new, old in zip(shape, value.shape, strict=True)):
                with value.fake_mode:  # type: ignore[attr-defined]
                    return torch.empty(shape, dtype=value.dtype)
        return value

    for node in graph.nodes:
        if "val" in node.meta:
            node.meta[FREE] = _free_dims(node.meta["val"], batch)
            node.meta["val"] = pytree.tree_map(visited, node.meta["val"])


def _hints(env: Any) -> Any:
    return env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val


def _free_dims(value: Any, batch: frozenset[str]) -> dict[int, frozenset[str]]:
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if not isinstance(first, torch.Tensor):
        return {}
    symbols = {d: getattr(_expression(size), "free_symbols", set()) for d, size in enumerate(first.shape)}
    free = {d: frozenset(str(s) for s in of_dim) - batch for d, of_dim in symbols.items()}
    return {d: names for d, names in free.items() if names}
