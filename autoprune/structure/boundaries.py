"""Where the calls of a model's modules lie in its captured graph: nodes that hold their inputs and outputs.

The dense model and its dense graph run on the same random parameters and inputs, at two sizes. A node whose values
equal those of a module's input in both passes holds this input; the same goes for outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

from autoprune.errors import StructureError
from autoprune.structure.capture import quiet
from autoprune.structure.deadline import Deadline
from autoprune.structure.module import GraphModel
from autoprune.structure.native_proof import Form, fill, in_float64

_EQUAL = 1e-9
"""Largest difference between marks of equal tensors, relative to their size."""
_SIZES = 2
"""Further sizes at which shapes are computed: a whole number that stays the same at these is a constant."""
_ENTRIES = 10_007
"""About as many entries of a tensor are summed up."""


@dataclass(frozen=True)
class Mark:
    """The shape of a tensor, and three sums over some of its entries that tell it from other tensors."""

    shape: tuple[int, ...]
    sums: tuple[float, float, float]

    @classmethod
    def of(cls, tensor: Tensor) -> Mark:
        """Return the mark of a tensor; entries that are not finite count as 0."""
        x = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        flat = x.detach().cpu().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _ENTRIES)].double().numpy()
        finite = np.nan_to_num(sample, posinf=0.0, neginf=0.0)
        sums = finite, finite * _weights(finite.size), finite * finite  # products of BLAS would start its threads
        return cls(tuple(tensor.shape), (float(sums[0].sum()), float(sums[1].sum()), float(sums[2].sum())))

    def equals(self, other: Mark) -> bool:
        """Return whether two tensors are equal, as far as marks tell."""
        if self.shape != other.shape:
            return False
        size = 1.0 + self.sums[2] ** 0.5 + self.sums[2]
        return all(abs(a - b) <= _EQUAL * size for a, b in zip(self.sums, other.sums, strict=True))


@lru_cache(maxsize=64)
def _weights(size: int) -> np.ndarray:
    return np.sin(np.arange(size))


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
    - `nodes`: marks of the tensors and whole numbers that nodes of the dense graph hold, one for each pass.
    - `shapes`: shapes and whole numbers of the nodes at further sizes of the inputs, one for each size.
    - `sizes_are_known`: whether inputs had enough sizes to tell which whole numbers follow them.
    """

    calls: dict[str, tuple[Call, ...]] = field(default_factory=dict)
    nodes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    sizes_are_known: bool = False

    def holding(self, values: Sequence[Any]) -> list[str]:
        """Return the names of the nodes that hold a value, given its marks in all passes, in the order of the graph."""
        alike = self._by_kind.get(_kind(values[0]), [])
        return [name for name, held in alike if len(held) == len(values) and all(map(_same, held, values))]

    def of_size(self, name: str, dim: int) -> list[str]:
        """Return the names of the nodes that hold the size of a dimension of a node, if it is not always the same."""
        sizes = [mark.shape[dim] for mark in self.nodes[name]] + [shape[dim] for shape in self.shapes.get(name, ())]
        return self._numbers.get(tuple(sizes), []) if len(set(sizes)) > 1 else []

    def constant(self, name: str) -> int | None:
        """Return the whole number that a node holds at all sizes of the inputs; `None` for others."""
        values = self.numbers_of(name)
        return values[0] if self.sizes_are_known and values and len(set(values)) == 1 else None

    def numbers_of(self, name: str) -> tuple[int, ...]:
        """Return the whole numbers that a node holds at all sizes; none for a tensor."""
        values = (*self.nodes.get(name, ()), *self.shapes.get(name, ()))
        return values if all(type(value) is int for value in values) else ()

    @cached_property
    def _by_kind(self) -> dict[Any, list[tuple[str, tuple[Any, ...]]]]:
        nodes: dict[Any, list[tuple[str, tuple[Any, ...]]]] = {}
        for name, held in self.nodes.items():
            if held:
                nodes.setdefault(_kind(held[0]), []).append((name, held))
        return nodes

    @cached_property
    def _numbers(self) -> dict[tuple[int, ...], list[str]]:
        names: dict[tuple[int, ...], list[str]] = {}
        for name in self.nodes:
            if values := self.numbers_of(name):
                names.setdefault(values, []).append(name)
        return names


def _kind(value: Any) -> Any:
    """Return what equal values have in common: the shape of a tensor, the type of anything else."""
    return value.shape if isinstance(value, Mark) else type(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mark):
        return isinstance(b, Mark) and a.equals(b)
    return type(a) is type(b) and a == b


def boundaries(
    model: Form,
    graph: Form,
    state: Mapping[str, Tensor],
    inputs: Iterable[Sequence[Tensor]],
    others: Iterable[Sequence[Tensor]],
    training: bool,
    deadline: Deadline,
) -> Boundaries:
    """Run the dense model and its dense graph in one mode on all inputs.

    At the `others`, which are of further sizes, the shapes in the graph are computed without its numbers, until two
    sizes are accepted; this is left out where no node holds a whole number.

    Raises:
        StructureError: the model or its graph does not run in float64, or the deadline has passed.
    """
    passes = []
    for x in inputs:
        deadline.check()
        passes.append((calls_of(model, state, x, training), values_of_nodes(graph, state, x, training)[0]))
    boundaries = Boundaries()
    for path in passes[0][0]:
        calls = [calls.get(path, []) for calls, _ in passes]
        if all(len(of_pass) == 1 for of_pass in calls):
            boundaries.calls[path] = tuple(of_pass[0] for of_pass in calls)
    for name in passes[0][1]:
        boundaries.nodes[name] = tuple(marks[name] for _, marks in passes if name in marks)
    if any(type(held[0]) is int for held in boundaries.nodes.values()):
        _add_shapes(boundaries, graph, others, training, deadline)
    return boundaries


def _add_shapes(
    boundaries: Boundaries, graph: Form, others: Iterable[Sequence[Tensor]], training: bool, deadline: Deadline
) -> None:
    shapes, tried = list[dict[str, Any]](), 0
    for x in others:
        deadline.check()
        tried += 1
        if of_size := _shapes(graph, x, training):
            shapes.append(of_size)
        if len(shapes) == _SIZES:
            break
    for name in boundaries.nodes:
        boundaries.shapes[name] = tuple(of_size[name] for of_size in shapes if name in of_size)
    boundaries.sizes_are_known = len(shapes) >= min(tried, _SIZES)


def _shapes(graph: Form, inputs: Sequence[Tensor], training: bool) -> dict[str, Any]:
    """Return the shapes and whole numbers that nodes hold; nothing where the graph does not run at this size."""
    module: Any = graph.module
    shapes: dict[str, Any] = {}

    class Shaping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor | int):
                shapes[n.name] = tuple(value.shape) if isinstance(value, Tensor) else value
            return value

    runnable = fx.GraphModule(module, module.captures[training].graph).train(training)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, quiet(), torch.no_grad():
            of_type = (x.double() if x.is_floating_point() else x for x in inputs)
            Shaping(runnable).run(*map(fake.from_tensor, of_type))
    except Exception:  # sizes that do not fit, or a value that decides
        return {}
    return shapes


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
        try:
            with in_float64(), torch.no_grad():
                form.module.train(training)(*(x.clone() for x in inputs))
        except Exception as error:  # kernels of some operators, such as grouped products, have no float64
            raise StructureError(f"the model's own forward does not run in float64: {error}") from error
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


def values_of_nodes(
    graph: Form,
    state: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    training: bool,
    kept: AbstractSet[str] = frozenset(),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a graph module; return what its nodes hold by name: marks of tensors and whole numbers, and `kept` values.

    Raises:
        StructureError: the graph does not run in float64.
    """
    module: Any = graph.module
    assert isinstance(module, GraphModel)
    fill(module, state)
    marks, values = dict[str, Any](), dict[str, Any]()

    class Marking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor | int):
                marks[n.name] = _marked(value)
                if n.name in kept:
                    values[n.name] = value.clone() if isinstance(value, Tensor) else value
            return value

    runnable = fx.GraphModule(module, module.captures[training].graph)
    try:
        with in_float64(), torch.no_grad():
            Marking(runnable.train(training)).run(*(x.clone() for x in inputs))
    except Exception as error:  # kernels of some operators have no float64
        raise StructureError(f"the graph module does not run in float64 ({error}), so nothing is proven") from error
    return marks, values
