"""The dense model that a shrunk one is compared with: removed entries are zeroed, and statistics know about it.

A mean over a dimension of which a part was removed is one over what lives. So that nodes with statistics agree, their
input is gathered, the operator of the shrunk graph runs, and its output is scattered. Weights of a norm are applied
after that, and products of activations have one side zeroed: what is paired with what stays that of the dense model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.structure.branches import ADDITIONS
from autoprune.structure.capture import Capture
from autoprune.structure.nodes import symbolic_dims
from autoprune.structure.units import Site

aten = torch.ops.aten
_DROPOUTS = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default,
    aten.alpha_dropout.default, aten.alpha_dropout_.default,
}  # fmt: skip
_AVERAGES = {
    aten.mean.dim, aten.mean.default, aten.var.correction, aten.var.dim, aten.std.correction, aten.std.dim,
    aten.var_mean.correction, aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten._weight_norm.default,
}  # fmt: skip
_NORMS = {aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default}
_SUMS = {aten.sum.dim_IntList, aten.sum.default}
_PRODUCTS: dict[Any, int] = {
    aten.matmul.default: 1, aten.mm.default: 1, aten.bmm.default: 1, aten.addmm.default: 2, aten.baddbmm.default: 2,
    aten.scaled_dot_product_attention.default: 1, aten.linear.default: 1, aten.conv1d.default: 1,
    aten.conv2d.default: 1, aten.conv3d.default: 1, aten.conv2d.padding: 1, aten.conv1d.padding: 1,
    aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 1,
}  # fmt: skip
"""The operand of which removed entries are zeroed."""
_SHORTER = (torch.float32, torch.float16, torch.bfloat16)
Masks = Mapping[Site, np.ndarray]


def steps(graph: fx.Graph) -> list[Any]:
    """What a `Reference` computes, step by step: graphs with equal steps compute the same on the same tensors."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        args = node.args
        if node.target in _DROPOUTS:
            args = args[:1]
        elif node.target is aten.scaled_dot_product_attention.default:
            args = (*args[:4], 0.0, *args[5:])
        found.append((node.op, node.target, map_arg((args, node.kwargs), lambda n: f"%{places[n]}")))
    return found


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _SHORTER else value


class InFloat64(TorchDispatchMode):
    """Keeps in float64 what operators would cast to a shorter type."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        return func(*pytree.tree_map(_widened, args), **pytree.tree_map(_widened, kwargs or {}))


class Reference(fx.Interpreter):
    """Runs a captured graph on other tensors, with dropout off; every other random node draws the same numbers.

    With `masks`, the graph is that of a dense model and `small` the one that was cut by them.
    """

    def __init__(
        self,
        capture: Capture,
        tensors: Mapping[str, torch.Tensor],
        small: fx.Graph | None = None,
        masks: Masks | None = None,
        canonical: Mapping[str, str] | None = None,
        absent: AbstractSet[str] = frozenset(),
    ) -> None:
        super().__init__(fx.GraphModule(torch.nn.Module(), fx.Graph()), graph=capture.graph)
        self._tensors = tensors
        self._mode = capture.mode
        self._small = {node.name: node for node in small.nodes} if small else {}
        self._masks = {site: mask for site, mask in (masks or {}).items() if not mask.all()}
        self._canonical = canonical or {}
        self._absent = absent

    def outputs(self, *inputs: torch.Tensor) -> Any:
        """Outputs for copies of the inputs."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return self.run(*(x.clone() for x in inputs))
        finally:
            torch.set_default_dtype(before)

    def fetch_attr(self, target: str) -> torch.Tensor:
        """A parameter, buffer or constant by name."""
        return self._tensors[target]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator; what it would cast to a shorter type stays in float64."""
        if target is aten._assert_tensor_metadata.default:
            return None
        args, kwargs = pytree.tree_map(_widened, (args, kwargs))
        return target(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, as its kind asks for; where a removed entry is not a number (0 / 0), it is 0."""
        value = self._answer(n)
        computed = n.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point()
        if computed and not value.sum().isfinite():  # much faster than every entry
            self.env[n] = value
            return self._zeroed(n)
        return value

    def _answer(self, n: fx.Node) -> Any:
        if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()):
            torch.manual_seed(zlib.crc32(n.name.encode()))
        if n.target in _DROPOUTS:
            return self.env[n.args[0]]  # type: ignore[index]
        gone = [m for m in n.all_input_nodes if m.name in self._absent] if n.target in ADDITIONS else []
        if gone and len(gone) < len(n.all_input_nodes):
            return self._call(n, {m: torch.zeros_like(self.env[m]) for m in gone})
        if n.target is aten.scaled_dot_product_attention.default and len(n.args) > 4:
            return self._attention(n)
        if not self._is_cut(n) or n.name not in self._small:  # nothing counts that a removed branch computes
            return super().run_node(n)
        if n.target is aten.batch_norm.default and n.args[5] and set(self._living(n.args[0])) - {1}:  # type: ignore[arg-type]
            return self._gathered(n)
        if n.target in _NORMS:
            return self._norm(n)
        if n.target in _AVERAGES:
            return self._gathered(n)
        if n.target in _SUMS:
            return self._call(n, {m: self._zeroed(m) for m in n.all_input_nodes})
        if n.target is aten.einsum.default:
            return self._call(n, {m: self._zeroed(m) for m in n.all_input_nodes[1:]})
        if n.target in _PRODUCTS:
            operand = n.args[_PRODUCTS[n.target]]
            assert isinstance(operand, fx.Node)
            return self._call(n, {} if operand.op == "get_attr" else {operand: self._zeroed(operand)})
        return super().run_node(n)

    def _call(self, node: fx.Node, other: Mapping[fx.Node, torch.Tensor]) -> Any:
        """Run a node with other values for some of its inputs."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda m: other.get(m, self.env[m]))
        return self.call_function(node.target, args, kwargs)  # type: ignore[arg-type]

    def _attention(self, node: fx.Node) -> torch.Tensor:
        """Attention without its own dropout."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda m: self.env[m])
        if self._is_cut(node):
            args = (args[0], self._zeroed(node.args[1]), *args[2:])  # type: ignore[arg-type]
        return self.call_function(node.target, (*args[:4], 0.0, *args[5:]), kwargs)  # type: ignore[arg-type]

    def _is_cut(self, node: fx.Node) -> bool:
        return node.op == "call_function" and any(self._living(m) for m in node.all_input_nodes)

    def _living(self, node: fx.Node) -> dict[int, torch.Tensor]:
        """Living indices of every dimension of a node that was cut; not those that are merged with the batch."""
        value = self.env.get(node)
        if not isinstance(value, torch.Tensor):
            return {}
        kind, name = self._mode, node.name
        if node.op == "get_attr":
            kind, name = "parameter", self._canonical.get(str(node.target), "")
        found = {d: self._masks.get((kind, name, d)) for d in range(value.dim()) if d not in symbolic_dims(node)}
        return {d: torch.from_numpy(np.flatnonzero(mask)) for d, mask in found.items() if mask is not None}

    def _zeroed(self, node: fx.Node) -> torch.Tensor:
        value = self.env[node]
        for dim, living in self._living(node).items():
            value = torch.zeros_like(value).index_copy(dim, living, value.index_select(dim, living))
        return value

    def _taken(self, node: fx.Node) -> Any:
        value = self.env[node]
        if isinstance(value, torch.Tensor):
            for dim, living in self._living(node).items():
                value = value.index_select(dim, living)
        return value

    def _gathered(self, node: fx.Node) -> Any:
        """Run the operator of the shrunk graph on what lives; behind a removed branch it reads another node there."""
        small = self._small[node.name]
        taken = {s: self._taken(m) for s, m in zip(small.all_input_nodes, node.all_input_nodes, strict=True)}
        args, kwargs = map_arg((small.args, small.kwargs), lambda m: taken[m])
        found = self.call_function(small.target, args, kwargs)  # type: ignore[arg-type]
        if isinstance(found, torch.Tensor):
            return self._scattered(found, node, node.meta["val"].dim())
        return tuple(self._scattered(x, part, x.dim()) for x, part in zip(found, self._parts(node), strict=True))

    def _parts(self, node: fx.Node) -> list[fx.Node | None]:
        by_index = {user.args[1]: user for user in node.users}
        return [by_index.get(k) for k in range(len(node.meta["val"]))]

    def _scattered(self, value: torch.Tensor, node: fx.Node | None, rank: int) -> torch.Tensor:
        """Put living indices back to where they are in the dense model, zeros elsewhere."""
        if node is None:
            return value
        for dim in range(rank):
            mask = self._masks.get((self._mode, node.name, dim)) if dim not in symbolic_dims(node) else None
            if mask is not None:
                shape = [*value.shape[:dim], len(mask), *value.shape[dim + 1 :]]
                living = torch.from_numpy(np.flatnonzero(mask))
                value = value.new_zeros(shape).index_copy(dim, living, value)
        return value

    def _norm(self, node: fx.Node) -> torch.Tensor:
        """Statistics over what lives; the weight and the bias are those of the dense model."""
        small = self._small[node.name]
        names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
        given = dict(zip(names, small.args, strict=False)) | dict(small.kwargs)
        given |= {"weight": None, "bias": None} if "bias" in names else {"weight": None}
        source = node.args[0]
        assert isinstance(source, fx.Node)
        given[names[0]] = self._taken(source)
        value = self._scattered(node.target(**given), node, self.env[source].dim())  # type: ignore[operator]
        weights = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        weight, bias = (
            self.env[n] if isinstance(n, fx.Node) else None for n in (weights.get("weight"), weights.get("bias"))
        )
        channels = [1, -1] + [1] * (value.dim() - 2) if node.target is aten.group_norm.default else None
        scale, shift = (w.reshape(channels) if w is not None and channels else w for w in (weight, bias))
        value = value if scale is None else value * scale
        return value if shift is None else value + shift
