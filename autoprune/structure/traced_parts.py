"""The part of a pruned graph that computes one module: cut out between the nodes of its inputs and outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from autoprune.errors import StructureError, UsageError
from autoprune.structure.aliases import is_in_place
from autoprune.structure.boundaries import Boundaries, Call, Mark
from autoprune.structure.module import compiled

aten = torch.ops.aten
_UNPICKLED = (
    "a pruned model in which graphs compute modules cannot be pickled. Keep it with autoprune.save(model, path), and "
    "make it again with autoprune.load(build_model, path)"
)


@dataclass(frozen=True)
class Part:
    """The part of a graph that computes one module in one mode.

    - `arguments` and `result`: how arguments and outputs nest.
    - `taken`: positions of the leaves of the arguments that the graph takes, in order.
    - `fixed`: leaves that every call must have, by position.
    - `constants`: tensors that the graph reads, by the names that they have in the module.
    - `output_names`: nodes of the whole graph that hold the outputs; "" where an output is `None`.
    """

    graph: fx.Graph
    arguments: Any
    taken: tuple[int, ...]
    fixed: Mapping[int, Any]
    result: Any
    output_names: tuple[str, ...]
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def run(self) -> Callable[..., Any]:
        """A function of the module and the taken leaves."""
        return compiled(self.graph)

    def __deepcopy__(self, memo: dict[int, Any]) -> Part:
        return self  # nothing in it changes

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled, because nodes of graphs cannot be.

        Raises:
            UsageError: always.
        """
        raise UsageError(_UNPICKLED)


class Nodes:
    """The nodes of a graph by name, by place and by the modules around them, computed once for all modules."""

    def __init__(self, graph: fx.Graph) -> None:
        self.by_name = {node.name: node for node in graph.nodes}
        self.places = {node: place for place, node in enumerate(graph.nodes)}
        self._within: dict[str, dict[fx.Node, None]] = {}
        for node in graph.nodes:
            if node.op != "get_attr":
                for path, *_ in (node.meta.get("nn_module_stack") or {}).values():
                    self._within.setdefault(path, {})[node] = None

    def within(self, path: str) -> Mapping[fx.Node, None]:
        """Return the nodes of calls within a module, in the order of the graph."""
        return self._within.get(path, {})

    def ordered(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return nodes in the order of the graph."""
        return sorted(nodes, key=self.places.__getitem__)


def part_of(path: str, nodes: Nodes, tensors: Mapping[str, Tensor], known: Boundaries) -> Part:
    """Return the part of a pruned graph that computes one module.

    Args:
        path: of the module.
        nodes: of the graph of the pruned model in one mode.
        tensors: of the pruned model by name.
        known: values of the dense model and its graph, whose nodes have the same names.

    Raises:
        StructureError: the inputs or outputs of the module are no nodes of the graph, or the part needs others.
    """
    calls = known.calls.get(path)
    if not calls:
        raise StructureError(f"{path} is not called once in each pass")
    cutter = _Cutter(path, nodes, tensors, known, calls)
    return cutter.part()


class _Cutter:
    """Cuts the part of one module out of a graph."""

    def __init__(
        self, path: str, nodes: Nodes, tensors: Mapping[str, Tensor], known: Boundaries, calls: Sequence[Call]
    ) -> None:
        self._path, self._nodes, self._tensors, self._known, self._calls = path, nodes, tensors, known, calls
        self._within = nodes.within(path)
        self._new = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        self._of_leaf: dict[str, fx.Node] = {}
        self._numbers: dict[fx.Node, int] = {}

    def part(self) -> Part:
        first = self._calls[0]
        taken, fixed = self._leaves()
        names = tuple(self._output(leaf) for leaf in zip(*(call.outputs for call in self._calls), strict=True))
        outputs = [self._nodes.by_name[name] for name in names if name]
        needed = self._needed(outputs)
        copied: dict[fx.Node, Any] = dict(self._numbers)
        copied |= {self._nodes.by_name[n]: new for n, new in self._of_leaf.items() if n in self._nodes.by_name}
        for node in self._nodes.ordered(needed):
            copied[node] = self._copied(node, copied)
        self._new.output(tuple(copied[node] for node in outputs))
        return Part(self._new, first.arguments, taken, fixed, first.result, names, self._constants)

    def _leaves(self) -> tuple[tuple[int, ...], dict[int, Any]]:
        """Make placeholders for the leaves that differ between calls; return their positions, and the other leaves."""
        calls = self._calls
        if any(call.arguments != calls[0].arguments or call.result != calls[0].result for call in calls):
            raise StructureError(f"calls of {self._path} nest differently")
        placeholders, fixed, held = dict[int, fx.Node](), dict[int, Any](), dict[fx.Node, str]()
        for place, values in enumerate(zip(*(call.inputs for call in calls), strict=True)):
            if isinstance(values[0], Mark) or (type(values[0]) is int and len(set(values)) > 1):
                placeholders[place] = self._new.placeholder(f"leaf_{place}")
                names = self._known.holding(values)
                self._of_leaf |= {name: placeholders[place] for name in names if name not in self._of_leaf}
                if isinstance(values[0], Mark) and names:
                    held[placeholders[place]] = names[0]
            elif isinstance(values[0], int | float | str | None) and len(set(values)) == 1:
                fixed[place] = values[0]
            else:
                raise StructureError(f"{self._path} takes a {type(values[0]).__name__}")
        for placeholder, name in held.items():
            self._add_sizes(placeholder, name)
        return tuple(placeholders), fixed

    def _add_sizes(self, placeholder: fx.Node, name: str) -> None:
        """Make nodes of the sizes of an input, which `name` holds in the graph, where other nodes hold them."""
        for dim in range(len(self._known.nodes[name][0].shape)):
            names = [number for number in self._known.of_size(name, dim) if number not in self._of_leaf]
            if names:
                size = self._new.call_function(aten.sym_size.int, (placeholder, dim))
                self._of_leaf |= dict.fromkeys(names, size)

    def _output(self, values: Sequence[Any]) -> str:
        """Return the name of the node that holds an output, one within the module if there is any."""
        if all(value is None for value in values):
            return ""
        known = self._known.holding(values) if isinstance(values[0], Mark) else []
        nodes = [self._nodes.by_name[name] for name in known if name in self._nodes.by_name]
        if not nodes:
            raise StructureError(f"no node of the graph holds an output of {self._path}")
        return next((node for node in nodes if node in self._within), nodes[0]).name

    def _needed(self, outputs: Sequence[fx.Node]) -> set[fx.Node]:
        """Return the nodes behind the outputs, as far back as the inputs, and those that write within the module."""
        writing = [node for node in self._within if is_in_place(node) or not node.users]
        pending, needed, reachable = [*outputs, *writing], set[fx.Node](), self._reachable([*outputs, *writing])
        while pending:
            node = pending.pop()
            if node not in reachable:
                raise StructureError(f"{self._path} needs {node.name}, which does not follow from its arguments")
            if node not in needed and node.name not in self._of_leaf and node not in self._numbers:
                needed.add(node)
                pending += node.all_input_nodes
        return needed

    def _reachable(self, ends: Sequence[fx.Node]) -> set[fx.Node]:
        """Return the nodes up to `ends` that follow from the inputs and from what the module holds.

        A whole number that does not, such as a width that was computed from those of another module, may be a constant.
        """
        reachable = set[fx.Node]()
        for node in self._nodes.ordered(self._up_to(ends)):
            if node.op == "get_attr":
                follows = str(node.target).startswith((f"{self._path}.", "constant_"))
            else:
                follows = node.op == "call_function" and reachable.issuperset(node.all_input_nodes)
            if not follows and node.name not in self._of_leaf:
                number = self._known.constant(node.name)
                if number is None:
                    continue
                self._numbers[node] = number
            reachable.add(node)
        return reachable

    def _up_to(self, ends: Sequence[fx.Node]) -> set[fx.Node]:
        """Return `ends` and the nodes that they follow from, as far back as the inputs of the module."""
        pending, behind = list(ends), set[fx.Node]()
        while pending:
            node = pending.pop()
            if node not in behind:
                behind.add(node)
                if node.name not in self._of_leaf:
                    pending += node.all_input_nodes
        return behind

    def _copied(self, node: fx.Node, copied: Mapping[fx.Node, Any]) -> fx.Node:
        if node.op != "get_attr":
            new = self._new.node_copy(node, lambda n: copied[n])
            new.meta = {}
            return new
        target, prefix = str(node.target), f"{self._path}."
        if not target.startswith(prefix):
            self._constants[target] = self._tensors[target]
        return self._new.create_node("get_attr", target.removeprefix(prefix))


def has_own_forward(module: nn.Module) -> bool:
    """Return whether a module has a forward of its own class, in Python, that may be replaced."""
    kind = type(module)
    return (
        not isinstance(module, torch.jit.ScriptModule | nn.ModuleList | nn.ModuleDict)
        and "forward" not in vars(module)
        and any(inspect.isfunction(vars(base).get("forward")) for base in kind.__mro__)
    )
