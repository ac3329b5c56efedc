"""Where the calls of a model's modules lie in its captured graph: nodes that hold their inputs and outputs.

The dense model and its dense graph run on the same random parameters and inputs, at two sizes. A node whose values
equal those of a module's input in both passes holds this input; the same goes for outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from autoprune.structure.module import GraphModel
from autoprune.structure.native_proof import Form, fill, in_float64

_EQUAL = 1e-9
"""Largest difference between marks of equal tensors, relative to their size."""
_PERIOD = 9973
"""Entries after which the weights of a mark repeat."""


@dataclass(frozen=True)
class Mark:
    """The shape of a tensor, and three sums over its entries that tell it from other tensors."""

    shape: tuple[int, ...]
    sums: tuple[float, float, float]

    @classmethod
    def of(cls, tensor: Tensor) -> Mark:
        """Return the mark of a tensor; entries that are not finite count as 0."""
        x = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        flat = np.nan_to_num(x.detach().cpu().double().numpy().ravel(), posinf=0.0, neginf=0.0)
        weights = np.sin(np.arange(flat.size) % _PERIOD)
        return cls(tuple(tensor.shape), (float(flat.sum()), float(flat @ weights), float(flat @ flat)))

    def equals(self, other: Mark) -> bool:
        """Return whether two tensors are equal, as far as marks tell."""
        if self.shape != other.shape:
            return False
        size = 1.0 + self.sums[2] ** 0.5 + self.sums[2]
        return all(abs(a - b) <= _EQUAL * size for a, b in zip(self.sums, other.sums, strict=True))


@dataclass(frozen=True)
class Call:
    """One call of a module: how its arguments and outputs nest, and their leaves, marks in place of tensors."""

    arguments: Any
    inputs: Sequence[Any]
    result: Any
    outputs: Sequence[Any]


@dataclass
class Boundaries:
    """Values in two passes of the dense model in one mode.

    - `calls`: of every module that is called once in a pass, by path; one call for each pass.
    - `nodes`: marks of the tensors and sizes that nodes of the dense graph hold, one for each pass.
    """

    calls: dict[str, tuple[Call, ...]] = field(default_factory=dict)
    nodes: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def holding(self, values: Sequence[Any]) -> list[str]:
        """Return the names of the nodes that hold a value, given its marks in all passes, in the order of the graph."""
        return [name for name, held in self.nodes.items() if len(held) == len(values) and all(map(_same, held, values))]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mark):
        return isinstance(b, Mark) and a.equals(b)
    return type(a) is type(b) and a == b


def boundaries(
    model: Form, graph: Form, state: Mapping[str, Tensor], inputs: Iterable[Sequence[Tensor]], training: bool
) -> Boundaries:
    """Run the dense model and its dense graph in one mode on all inputs."""
    passes = [(calls_of(model, state, x, training), _marks(graph, state, x, training)) for x in inputs]
    found = Boundaries()
    for path in passes[0][0]:
        calls = [calls.get(path, []) for calls, _ in passes]
        if all(len(of_pass) == 1 for of_pass in calls):
            found.calls[path] = tuple(of_pass[0] for of_pass in calls)
    for name in passes[0][1]:
        found.nodes[name] = tuple(marks[name] for _, marks in passes if name in marks)
    return found


def calls_of(
    form: Form, state: Mapping[str, Tensor], inputs: Sequence[Tensor], training: bool
) -> dict[str, list[Call]]:
    """Run a model; return the calls of its modules by path, modules with several paths left out."""
    calls: dict[str, list[Call]] = {}
    begun: dict[str, list[tuple[Any, list[Any]]]] = {}
    paths = _single_paths(form.module)
    with _hooks() as hooks:
        for path, module in paths.items():

            def before(_: nn.Module, args: Any, named: Any, path: str = path) -> None:
                leaves, spec = pytree.tree_flatten((args, named))
                begun.setdefault(path, []).append((spec, [_marked(leaf) for leaf in leaves]))

            def after(_: nn.Module, __: Any, outputs: Any, path: str = path) -> None:
                leaves, spec = pytree.tree_flatten(outputs)
                call = Call(*begun[path].pop(), spec, [_marked(leaf) for leaf in leaves])
                calls.setdefault(path, []).append(call)

            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(module.register_forward_hook(after, prepend=True))
        fill(form.module, state)
        with in_float64(), torch.no_grad():
            form.module.train(training)(*(x.clone() for x in inputs))
    return calls


def _single_paths(model: nn.Module) -> dict[str, nn.Module]:
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    return {of_module[0]: module for module, of_module in paths.items() if len(of_module) == 1 and of_module[0]}


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    hooks: list[Any] = []
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()


def _marked(value: Any) -> Any:
    return Mark.of(value) if isinstance(value, Tensor) else value


def _marks(graph: Form, state: Mapping[str, Tensor], inputs: Sequence[Tensor], training: bool) -> dict[str, Any]:
    return {name: _marked(value) for name, value in values_of_nodes(graph, state, inputs, training)}


def values_of_nodes(
    graph: Form,
    state: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    training: bool,
    kept: AbstractSet[str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Run a graph module; yield the marks of tensors and the whole numbers that its nodes hold.

    Where `kept` names nodes, their tensors come themselves, and other nodes are left out.
    """
    module: Any = graph.module
    assert isinstance(module, GraphModel)
    fill(module, state)
    values: list[tuple[str, Any]] = []

    class Marking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor | int) and (kept is None or n.name in kept):
                values.append(
                    (n.name, Mark.of(value) if kept is None and isinstance(value, Tensor) else _cloned(value))
                )
            return value

    runnable = fx.GraphModule(module, module.captures[training].graph)
    with in_float64(), torch.no_grad():
        Marking(runnable.train(training)).run(*(x.clone() for x in inputs))
    yield from values


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
