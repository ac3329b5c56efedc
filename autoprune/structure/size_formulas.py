"""Short names for long formulas of sizes, so that an export with free sizes takes seconds.

With free sizes, every size in the exporter is a formula of the sizes of the inputs. Where `forward` pads to a multiple
and crops again, formulas grow with each block, and the algebra about them takes minutes or hours.

Within `short_formulas`, a formula of more than `_MOST_TERMS` terms becomes a symbol with a definition. Formulas that
agree at all trial sizes of the inputs share one symbol: padding and cropping again gives the size from before.
Questions of torch about such a symbol ("is it 1?") are answered by numbers: by its values at the trial sizes where
these agree, and elsewhere by the example, which is then recorded. A question of the user's code is always recorded, so
that no branch is taken in silence. The captured graph is compared with the model at a second size afterwards.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import DimConstraints, ShapeEnv
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.symbol import SymT, make_symbol
from torch.utils._sympy.value_ranges import ValueRanges

from autoprune.structure.input_sizes import evaluated

_MOST_TERMS = 12
"""Terms of a formula above which it gets a name; short ones are left to torch, which can simplify them."""
_NEAR, _FAR = 24, 4
"""Numbers of trial sizes: from half to twice the example's size, and as many below and above each as `_FAR` says."""
_FIRST_NAME = 900_000
"""Number of the first symbol of a named formula; the exporter counts its own from 0 or by a hash below 100."""
_LOCK = threading.RLock()
"""One export at a time: methods of the exporter are replaced in the whole process."""
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_CONVERSIONS = {"__bool__", "__int__", "__index__", "__float__"}
"""Methods of symbolic numbers that Python calls where code needs a plain one."""


def printed(expression: sympy.Basic) -> str:
    """Return a formula as a Python expression of symbols; "" where torch's printer refuses it, as broken powers.

    A size without an expression counts as fixed; a condition without one is left to the proof at a second size.
    """
    try:
        return PythonPrinter().doprint(expression)
    except (AssertionError, NotImplementedError, TypeError):  # the ways in which the printer refuses a formula
        return ""


def example_sizes(env: Any) -> dict[sympy.Symbol, Any]:
    """Return the size that each symbol of an export had in the example."""
    return env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val


def definitions(env: Any) -> dict[sympy.Symbol, sympy.Expr]:
    """Return the formula of every named symbol of an export; each has symbols of inputs or earlier names."""
    return _formulas(env).definitions


def inputs_of(env: Any, expression: Any) -> frozenset[sympy.Symbol]:
    """Return the symbols of inputs in a formula, and in the definitions of the names that it has."""
    own = getattr(expression, "free_symbols", frozenset())
    named = own & definitions(env).keys()
    behind = (inputs_of(env, definitions(env)[name]) for name in named)
    return frozenset(own - named).union(*behind)


class _Formulas:
    """Named formulas of one export, and the values of formulas at the trial sizes."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.definitions: dict[sympy.Symbol, sympy.Expr] = {}
        self._of_symbol: dict[sympy.Symbol, tuple[Any, ...]] = {}
        self._of_formula: dict[sympy.Basic, tuple[Any, ...]] = {}
        self._first_with: dict[tuple[Any, ...], sympy.Expr] = {}

    def hard(self, expression: Any) -> bool:
        """Return whether algebra about a formula may take long, or cannot know enough because names are in it."""
        if not isinstance(expression, sympy.Basic):
            return False
        named = bool(self.definitions) and not self.definitions.keys().isdisjoint(expression.free_symbols)
        return named or _has_many_terms(expression)

    def values(self, expression: sympy.Basic) -> tuple[Any, ...]:
        """Return a formula's values at the trial sizes, first the example's; `()` when a symbol has no size.

        A value is `None` where the formula has none, such as a division by zero at a very small size.
        """
        if expression not in self._of_formula:
            symbols, code = expression.free_symbols, printed(expression)
            rows = [self._sizes(symbol) for symbol in symbols]
            columns = zip(*rows, strict=True) if code and all(rows) else ()
            names, function = [str(symbol) for symbol in symbols], evaluated(code) if code else None
            self._of_formula[expression] = tuple(_value(function, dict(zip(names, c, strict=True))) for c in columns)
        return self._of_formula[expression]

    def _sizes(self, symbol: Any) -> tuple[Any, ...]:
        """Return the trial sizes of a symbol."""
        if symbol not in self._of_symbol:
            size = example_sizes(self._env).get(symbol)
            if not isinstance(size, (int, sympy.Integer)):
                return ()
            size, draw = int(size), random.Random(str(symbol))
            low, high = max(2, size // 2), 2 * size + 8
            near = [draw.randint(low, high) for _ in range(_NEAR)]
            far = [draw.randint(2, low) for _ in range(_FAR)] + [draw.randint(high, 60 * high) for _ in range(_FAR)]
            self._of_symbol[symbol] = (size, *near, *far)
            self._first_with.setdefault(self._of_symbol[symbol], symbol)
        return self._of_symbol[symbol]

    def short(self, expression: sympy.Expr) -> sympy.Expr:
        """Return a formula of a size as it is, or the name of a long one."""
        values = self.values(expression)
        if not values or not isinstance(values[0], int):
            return expression
        if not _has_many_terms(expression):
            self._first_with.setdefault(values, expression)
            return expression
        if values not in self._first_with:
            self._first_with[values] = self._name(expression, values)
        return self._first_with[values]

    def _name(self, expression: sympy.Expr, values: tuple[Any, ...]) -> sympy.Symbol:
        least = min((v for v in values[: _NEAR + 1] if v is not None), default=0)
        symbol = make_symbol(
            SymT.SIZE, _FIRST_NAME + len(self.definitions), integer=True, **({"positive": True} if least > 0 else {})
        )
        self.definitions[symbol], self._of_symbol[symbol] = expression, values
        example_sizes(self._env)[symbol] = sympy.Integer(values[0])
        lower = 2 if least > 1 else 0 if least >= 0 else -int_oo
        self._env.var_to_range[symbol] = ValueRanges(lower, int_oo)
        return symbol

    def answer(self, question: sympy.Basic) -> sympy.Basic | None:
        """Return the answer that holds at all trial sizes; `None` when the example has to decide."""
        values = self.values(question)
        # Maps of one pixel at tiny sizes would make torch's question whether a size is 1 a condition of every model.
        given = {value for value in values[: -2 * _FAR] + values[-_FAR:] if value is not None}
        if len(given) != 1 or values[0] is None or _asked_by_user():
            return None
        return sympy.sympify(values[0])


def _has_many_terms(expression: sympy.Basic) -> bool:
    left, waiting = _MOST_TERMS, [expression]
    while waiting and left >= 0:
        left -= 1
        waiting.extend(waiting.pop().args)
    return left < 0


def _value(function: Any, sizes: dict[str, int]) -> Any:
    try:
        return function(**sizes)
    except (ArithmeticError, NameError, TypeError, ValueError):
        return None


def _asked_by_user() -> bool:
    """Return whether Python code of the user asks the running question about a size."""
    machinery, frame, in_python = symbolic_shapes.uninteresting_files(), sys._getframe(), False
    while frame is not None and (frame.f_code.co_filename in machinery or frame.f_code.co_filename == __file__):
        in_python = in_python or frame.f_code.co_name in _CONVERSIONS  # else C++ asks, below an operator
        frame = frame.f_back
    return in_python and frame is not None and not frame.f_code.co_filename.startswith(_TORCH)


def _formulas(env: Any) -> _Formulas:
    if not hasattr(env, "_autoprune_formulas"):
        env._autoprune_formulas = _Formulas(env)
    return env._autoprune_formulas


@contextmanager
def short_formulas() -> Iterator[None]:
    """Let the exporter name long formulas of sizes and decide questions about them by numbers."""
    with _LOCK:
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in _replacements()]
        try:
            for owner, name, method in _replacements():
                setattr(owner, name, method)
            yield
        finally:
            for owner, name, method in before:
                setattr(owner, name, method)


def _replacements() -> list[tuple[Any, str, Any]]:
    """Return the replaced functions of the exporter: the owner, the name and the function."""
    unhurried = {name: getattr(ShapeEnv, name) for name in ("_maybe_evaluate_static", "simplify")}
    expand = symbolic_shapes.safe_expand

    def static(self: Any, expression: Any, *args: Any, **options: Any) -> Any:
        if args or any(options.values()) or not _formulas(self).hard(expression):
            return unhurried["_maybe_evaluate_static"](self, expression, *args, **options)
        expression = self.replace(expression)
        return _formulas(self).answer(expression) if expression.free_symbols else expression

    def simplified(self: Any, expression: Any, *args: Any, **options: Any) -> Any:
        if _formulas(self).hard(expression):
            return self.replace(expression)
        return unhurried["simplify"](self, expression, *args, **options)

    for name, function in (("_maybe_evaluate_static", static), ("simplify", simplified)):
        function.cache_clear = getattr(unhurried[name], "cache_clear", None)  # type: ignore[attr-defined]
    return [
        (ShapeEnv, "_maybe_evaluate_static", static),
        (ShapeEnv, "simplify", simplified),
        (ShapeEnv, "_refine_ranges", _unless_hard("_refine_ranges")),
        (ShapeEnv, "_maybe_guard_rel", _unless_hard("_maybe_guard_rel")),
        (ShapeEnv, "produce_guards_verbose", _without_names(ShapeEnv.produce_guards_verbose)),
        (symbolic_shapes, "safe_expand", lambda e: e if _has_many_terms(e) else expand(e)),
        (SymNode, "__init__", _with_short(SymNode.__init__)),
        (DimConstraints, "solve", lambda self: None),  # ranges for messages of the exporter, solved by algebra
    ]


def _unless_hard(name: str) -> Any:
    """Return a method of `ShapeEnv` that learns nothing from a hard formula."""
    own = getattr(ShapeEnv, name)

    def learned(self: Any, expression: Any) -> None:
        if not _formulas(self).hard(expression):
            own(self, expression)

    return learned


def _without_names(own: Any) -> Any:
    """Return a method that leaves out the guards on names: these have no place in an input where they are read."""

    def produced(self: Any, *args: Any, **options: Any) -> Any:
        names = definitions(self).keys()
        if options.get("guards") is None:
            options["guards"] = [guard for guard in self.guards if names.isdisjoint(guard.expr.free_symbols)]
        return own(self, *args, **options)

    return produced


def _with_short(own: Any) -> Any:
    """Return the constructor of a symbolic number that names long formulas."""

    def made(self: Any, expr: Any, shape_env: Any, pytype: Any, *args: Any, **options: Any) -> None:
        if pytype is int and shape_env is not None and isinstance(expr, sympy.Expr) and not expr.is_Atom:
            expr = _formulas(shape_env).short(expr)
        own(self, expr, shape_env, pytype, *args, **options)

    return made
