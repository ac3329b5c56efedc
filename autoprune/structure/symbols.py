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

from autoprune.structure.input_sizes import Condition, InputSizes
from autoprune.structure.nodes import FREE
from autoprune.structure.size_formulas import definitions, example_sizes, inputs_of, printed

_TORCH, _OURS = f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}"
_LAYERS = f"{_TORCH}nn{os.sep}"
_EXPORTING = str(Path(__file__).with_name("capture.py"))


class OutOfTimeError(BaseException):
    """Raised in the exporter when free sizes take too long; no `except Exception` of the exporter may catch it."""


@contextmanager
def limited(seconds: float, lines: dict[str, str]) -> Iterator[None]:
    """Raise `OutOfTimeError` when the algebra of sizes goes on after `seconds` of this thread's own time.

    `lines` receives the line of the user's code that was running, for each symbol that becomes a number and for each
    equation that the capture relies on.
    """
    thread, end = threading.get_ident(), time.thread_time() + seconds
    limits = ("_maybe_evaluate_static", "simplify")
    own = {name: getattr(ShapeEnv, name) for name in (*limits, "_set_replacement", "_maybe_guard_rel")}

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

    def learn(self: Any, guard: Any) -> None:
        if threading.get_ident() == thread and isinstance(guard, sympy.Eq):
            lines.setdefault(str(guard), _running_line())
        own["_maybe_guard_rel"](self, guard)

    patched = {name: limit(name) for name in limits} | {"_set_replacement": replace, "_maybe_guard_rel": learn}
    try:
        for name, method in patched.items():
            setattr(ShapeEnv, name, method)
        yield
    finally:
        for name, method in own.items():
            setattr(ShapeEnv, name, method)


def _running_line() -> str:
    """Return the innermost line of the model's code that runs now: `net.py line 8`; "" if there is none."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename == _EXPORTING:
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
        formulas.append(tuple("" if isinstance(e, int) else printed(e) for e in expressions))
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
        conditions=() if env is None else tuple(_conditions(env, known, lines, of_user=True)),
        needs=() if env is None else tuple(c for c in _conditions(env, known, lines, of_user=False) if "==" in c.code),
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


def fixing_line(program: ExportedProgram, lines: Mapping[str, str], name: str, dim: int) -> str:
    """Return the line of the user's code that made a number of a dimension of an input; "" if it is unknown.

    `lines` are those of `limited`.
    """
    nodes = [node for node in program.graph.nodes if node.name == name]
    env = next((x.node.shape_env for n in nodes for x in n.meta["val"].shape if isinstance(x, torch.SymInt)), None)
    env = _shape_env(program) if env is None else env
    return "" if env is None else lines.get(_origins(env).get((re.sub(r"\W+", "_", name), dim), ""), "")


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


def _conditions(env: Any, known: set[str], lines: Mapping[str, str], *, of_user: bool) -> Iterator[Condition]:
    """Yield the questions about known symbols that the user's code and layers of torch asked, or the exporter's own."""
    seen = set()
    for guard in env.guards:
        frame = guard.sloc.framework_loc
        if not isinstance(frame, traceback.FrameSummary):
            continue
        own = frame.filename.startswith(_TORCH) and not frame.filename.startswith(_LAYERS)
        code = printed(guard.expr) if own is not of_user else ""
        if code and code not in seen and {str(s) for s in inputs_of(env, guard.expr)} <= known:
            seen.add(code)
            line = lines.get(str(guard.expr)) or f"{Path(frame.filename).name} line {frame.lineno}"
            yield Condition(code=code, line=line, definitions=tuple(_definitions(env, guard.expr)))


def _definitions(env: Any, expression: Any) -> Iterator[tuple[str, str]]:
    """Yield the names behind a formula with their Python expressions, in the order in which they were defined."""
    needed, waiting = set[Any](), [expression]
    while waiting:
        names = waiting.pop().free_symbols & definitions(env).keys() - needed
        needed |= names
        waiting += [definitions(env)[name] for name in names]
    yield from ((str(name), printed(formula)) for name, formula in definitions(env).items() if name in needed)


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
            left = _of_batch(size.node.shape_env, expression, batch)
            if left.is_number:
                reduced[expression] = int(left)
            else:
                reduced[expression] = (
                    size if left == expression else size.node.shape_env.create_symintnode(left, hint=size.node.hint)
                )
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


def _of_batch(env: Any, expression: Any, batch: frozenset[str]) -> Any:
    """Return a formula in the batch alone: other sizes are the example's, and names are replaced by definitions."""
    values: dict[Any, Any] = {}
    for symbol in expression.free_symbols:
        behind = {str(s) for s in inputs_of(env, symbol)}
        if symbol in definitions(env) and behind & batch:
            values[symbol] = _of_batch(env, definitions(env)[symbol], batch)
        elif str(symbol) not in batch and symbol in example_sizes(env):
            values[symbol] = example_sizes(env)[symbol]
    left = expression.xreplace(values) if values else expression
    # All inputs have one batch, for which the exporter may have several symbols.
    batches = sorted((s for s in left.free_symbols if str(s) in batch), key=str)
    return left.xreplace(dict.fromkeys(batches[1:], batches[0])) if len(batches) > 1 else left


def _free_dims(value: Any, batch: frozenset[str]) -> dict[int, frozenset[str]]:
    """Return the symbols of inputs, besides the batch, in each dimension of a value's first tensor."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if not isinstance(first, torch.Tensor):
        return {}
    free = {dim: _inputs_of(size) - batch for dim, size in enumerate(first.shape)}
    return {d: names for d, names in free.items() if names}


def _inputs_of(size: Any) -> frozenset[str]:
    expression = _expression(size)
    if isinstance(expression, int):
        return frozenset()
    return frozenset(str(symbol) for symbol in inputs_of(size.node.shape_env, expression))
