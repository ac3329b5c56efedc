"""Shared prefixes: pruned models that begin like the dense model reuse its activations before their first change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autoprune import memory_limits
from autoprune.structure import EvaluationGraph, GraphModel, Structure
from autoprune.structure.aliases import is_in_place, owners


@dataclass
class PrefixCache:
    """Runs pruned models on fixed batches of inputs, from the first node that a policy changes.

    Holds the dense model's values at one boundary alone: a search scores policies that change the same unit one after
    the other.
    """

    structure: Structure
    batches: tuple[tuple[Tensor, ...], ...]
    _boundary: frozenset[str] = frozenset()
    _values: list[Mapping[str, Any]] = field(default_factory=list)

    def outputs(
        self, model: GraphModel, changed: AbstractSet[str], select: Callable[[Any], Tensor] = lambda outputs: outputs
    ) -> Tensor | None:
        """Return outputs `[N, ...]` of a model that differs from the dense one in its `changed` nodes.

        `select` gives the part that counts of the outputs of a batch.
        `None` where no node before the first change computes anything.
        """
        starts = self.starts(model.evaluation_graph().graph, changed)
        if starts is None:
            return None
        with torch.no_grad():
            return torch.cat([select(model.evaluate_from(start)) for start in starts])

    def starts(self, graph: fx.Graph, changed: AbstractSet[str]) -> Iterator[dict[fx.Node, Any]] | None:
        """Return the node values that a pruned model's `graph` starts from, batch by batch; `None` without a prefix."""
        boundary, prefix = self._split(graph, changed)
        if not boundary:
            return None
        if boundary != self._boundary:
            self._fill(boundary)
        if not self._values:
            return None
        nodes = [node for node in graph.nodes if node.name in prefix]
        return ({n: _cloned(values.get(n.name)) for n in nodes} for values in self._values)

    def _split(self, graph: fx.Graph, changed: AbstractSet[str]) -> tuple[frozenset[str], set[str]]:
        """Return the boundary (unchanged nodes that changed ones read) and all unchanged nodes behind the inputs."""
        prefix = {n.name for n in graph.nodes if n.op in ("placeholder", "call_function") and n.name not in changed}
        if not any(n.op == "call_function" and n.name in prefix for n in graph.nodes):
            return frozenset(), prefix
        readers = [n for n in graph.nodes if n.name in changed or n.op == "output"]
        boundary = {source for n in readers for source in n.all_input_nodes if source.name in prefix}
        if _is_written(graph, boundary, prefix):
            return frozenset(), prefix
        return frozenset(node.name for node in boundary), prefix

    def _fill(self, boundary: frozenset[str]) -> None:
        self._boundary, self._values, held = boundary, [], 0
        graph = self.structure.evaluation_graph()
        for batch in self.batches:
            reader = _Reader(graph, boundary)
            with torch.no_grad():
                reader.run(*batch)
            held += sum(x.nbytes for x in pytree.tree_leaves(reader.values) if isinstance(x, Tensor))
            if held > memory_limits.PREFIX_BYTES:
                self._values = []
                return
            self._values.append(reader.values)


class _Reader(fx.Interpreter):
    def __init__(self, module: EvaluationGraph, boundary: frozenset[str]) -> None:
        super().__init__(module)
        self._boundary = boundary
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._boundary:
            self.values[n.name] = _cloned(value)  # a later node may write into it
        return value


def _cloned(value: Any) -> Any:
    """Copy a value of one or several tensors, so that a model that works in place does not change it for the next."""
    return pytree.tree_map_only(Tensor, Tensor.clone, value)


def _is_written(graph: fx.Graph, boundary: AbstractSet[fx.Node], prefix: AbstractSet[str]) -> bool:
    """Whether values of a boundary share memory that a node writes into: separate copies would not see the write."""
    memory = owners(graph)
    held = [memory.get(node) for node in boundary]
    writers = [node for node in graph.nodes if is_in_place(node) and memory.get(node) in held]
    return any(held.count(memory[n]) > 1 or (n.name in prefix and n not in boundary) for n in writers if n in memory)
