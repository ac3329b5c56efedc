"""The dense model that a shrunk model is compared with: removed entries are zeroed, and statistics leave them out.

A mean over 8 channels of which 3 are removed must be one over 5, not over 8 with 3 zeros. So a node with statistics
gathers its living entries, runs the operator of the shrunk graph on them, and scatters the output to the dense places.
The weight and bias of a norm are applied after that. A product of two activations has the removed entries of one side
zeroed, so that the dense model still pairs the same entries.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.structure.aliases import is_in_place
from autoprune.structure.branches import ADDITIONS
from autoprune.structure.capture import Capture
from autoprune.structure.families import is_grouped_product
from autoprune.structure.nodes import symbolic_dims
from autoprune.structure.units import Site

aten = torch.ops.aten
_DROPOUTS = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default,
    aten.alpha_dropout.default, aten.alpha_dropout_.default, aten.feature_alpha_dropout.default,
    aten.feature_alpha_dropout_.default,
}  # fmt: skip
_AVERAGES = {
    aten.mean.dim, aten.mean.default, aten.var.correction, aten.var.dim, aten.var.default, aten.std.correction,
    aten.std.dim, aten.std.default, aten.var_mean.correction, aten.var_mean.dim, aten.var_mean.default,
    aten.std_mean.correction, aten.std_mean.dim, aten.amax.default, aten.amin.default, aten.max.dim, aten.min.dim,
    aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten._weight_norm.default,
}  # fmt: skip
_RANDOM = {
    aten.rand_like.default, aten.randn_like.default, aten.randint_like.default, aten.randint_like.low_dtype,
    aten.bernoulli.default, aten.bernoulli.p, aten.rand.default, aten.randn.default, aten.uniform_.default,
    aten.normal_.default, aten.exponential_.default, aten.bernoulli_.float, aten.bernoulli_.Tensor,
}  # fmt: skip
"""Operators that draw as many numbers as the tensor has entries, which are fewer after a cut."""
_NORMS = {aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default}
_SUMS = {
    aten.sum.dim_IntList, aten.sum.default, aten.cosine_similarity.default, aten.pairwise_distance.default,
    aten.cdist.default, aten.bilinear.default,
}  # fmt: skip
_PRODUCTS: dict[Any, int] = {
    aten.matmul.default: 1, aten.mm.default: 1, aten.bmm.default: 1, aten.addmm.default: 2, aten.baddbmm.default: 2,
    aten.scaled_dot_product_attention.default: 1, aten.linear.default: 1, aten.conv1d.default: 1,
    aten.conv2d.default: 1, aten.conv3d.default: 1, aten.conv2d.padding: 1, aten.conv1d.padding: 1,
    aten.conv3d.padding: 1, aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 1,
    aten.conv_transpose3d.input: 1,
}  # fmt: skip
"""Products, and the position of the operand whose removed entries are zeroed."""
_SHORTER = (torch.float32, torch.float16, torch.bfloat16)
Masks = Mapping[Site, np.ndarray]


def steps(graph: fx.Graph) -> list[Any]:
    """Return the steps that a `Reference` runs: graphs with equal steps compute the same on the same tensors."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    taken = []
    for node in graph.nodes:
        args = node.args
        if node.target in _DROPOUTS:
            args = args[:1]
        elif node.target is aten.scaled_dot_product_attention.default:
            args = (*args[:4], 0.0, *args[5:])
        taken.append((node.op, node.target, map_arg((args, node.kwargs), lambda n: f"%{places[n]}")))
    return taken


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _SHORTER else value


class InFloat64(TorchDispatchMode):
    """A mode in which operators that cast to a shorter type cast to float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator with the widened types."""
        return func(*pytree.tree_map(_widened, args), **pytree.tree_map(_widened, kwargs or {}))


class Reference(fx.Interpreter):
    """An interpreter of a captured graph on other tensors, in float64, with dropout off.

    Random nodes are seeded by their names. With `masks`, the graph is that of a dense model, `small` is the graph that
    was cut by them, and `absent` are the nodes whose values count as zeros in additions.
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
        super().__init__(torch.nn.Module(), graph=capture.graph)
        self._tensors = tensors
        self._mode = capture.mode
        self._small = {node.name: node for node in small.nodes} if small else {}
        self._masks = {site: mask for site, mask in (masks or {}).items() if not mask.all()}
        self._cut_names = {site[:2] for site in self._masks}
        self._canonical = canonical or {}
        self._absent = absent

    def outputs(self, *inputs: torch.Tensor) -> Any:
        """Return the outputs for copies of the inputs."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return self.run(*(x.clone() for x in inputs))
        finally:
            torch.set_default_dtype(before)

    def fetch_attr(self, target: str) -> torch.Tensor:
        """Return a parameter, buffer or constant by name."""
        return self._tensors[target]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator; a cast to a shorter type gives float64."""
        if target is aten._assert_tensor_metadata.default:
            return None
        args, kwargs = pytree.tree_map(_widened, (args, kwargs))
        return target(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node as its kind needs it; a removed entry that is not a number (0 / 0) becomes 0."""
        value = self._value_of(n)
        computed = n.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point()
        if computed and not value.sum().isfinite():  # much faster than testing every entry
            self.env[n] = value
            return self._zeroed(n)
        return value

    def _value_of(self, n: fx.Node) -> Any:
        """Choose how to run a node, so that removed entries count as they do in the shrunk model."""
        if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()):
            torch.manual_seed(zlib.crc32(n.name.encode()))
        if n.target in _DROPOUTS:
            return self.env[n.args[0]]  # type: ignore[index]
        absent = [m for m in n.all_input_nodes if m.name in self._absent] if n.target in ADDITIONS else []
        if absent and len(absent) < len(n.all_input_nodes):
            return self._call(n, {m: torch.zeros_like(self.env[m]) for m in absent})
        if n.target is aten.scaled_dot_product_attention.default and len(n.args) > 4:
            return self._attention(n)
        if n.target in _RANDOM and n.name in self._small:
            return self._drawn(n)
        if not self._is_cut(n) or n.name not in self._small:  # values of a removed branch do not matter
            return super().run_node(n)
        if n.target is aten.batch_norm.default and n.args[5] and set(self._living(n.args[0])) - {1}:  # type: ignore[arg-type]
            return self._gathered(n)
        if n.target in _NORMS:
            return self._norm(n)
        if n.target in _AVERAGES or self._averages_neighbours(n):
            return self._gathered(n)
        if n.target in _SUMS:
            return self._call(n, {m: self._zeroed(m) for m in n.all_input_nodes})
        if n.target is aten.einsum.default:
            return self._call(n, {m: self._zeroed(m) for m in n.all_input_nodes[1:]})
        if n.target in _PRODUCTS or is_grouped_product(n.target):
            operand = n.args[_PRODUCTS.get(n.target, 1)]
            assert isinstance(operand, fx.Node)
            return self._call(n, {} if operand.op == "get_attr" else {operand: self._zeroed(operand)})
        return super().run_node(n)

    def _call(self, node: fx.Node, other: Mapping[fx.Node, torch.Tensor]) -> Any:
        """Run a node with other values for some of its inputs."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda m: other.get(m, self.env[m]))
        return self.call_function(node.target, args, kwargs)  # type: ignore[arg-type]

    def _attention(self, node: fx.Node) -> torch.Tensor:
        """Run attention without its own dropout."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda m: self.env[m])
        if self._is_cut(node):
            args = (args[0], self._zeroed(node.args[1]), *args[2:])  # type: ignore[arg-type]
        return self.call_function(node.target, (*args[:4], 0.0, *args[5:]), kwargs)  # type: ignore[arg-type]

    def _is_cut(self, node: fx.Node) -> bool:
        """Return whether any input of an operator was cut."""
        return node.op == "call_function" and any(self._living(m) for m in node.all_input_nodes)

    def _place(self, node: fx.Node) -> tuple[str, str]:
        """Return what the masks of a node's dimensions are listed under."""
        if node.op == "get_attr":
            return "parameter", self._canonical.get(str(node.target), "")
        return self._mode, node.name

    def _living(self, node: fx.Node) -> dict[int, torch.Tensor]:
        """Return the living indices of every dimension of a node that was cut, except dimensions with the batch."""
        value = self.env.get(node)
        kind, name = self._place(node)
        if not isinstance(value, torch.Tensor) or (kind, name) not in self._cut_names:
            return {}
        masks = {d: self._masks.get((kind, name, d)) for d in range(value.dim()) if d not in symbolic_dims(node)}
        return {d: torch.from_numpy(np.flatnonzero(mask)) for d, mask in masks.items() if mask is not None}

    def _zeroed(self, node: fx.Node) -> torch.Tensor:
        """Return a node's value with removed entries set to zero."""
        value = self.env[node]
        for dim, living in self._living(node).items():
            value = torch.zeros_like(value).index_copy(dim, living, value.index_select(dim, living))
        return value

    def _taken(self, node: fx.Node) -> Any:
        """Return the living entries of a node's value."""
        value = self.env[node]
        if isinstance(value, torch.Tensor):
            for dim, living in self._living(node).items():
                value = value.index_select(dim, living)
        return value

    def _gathered(self, node: fx.Node) -> Any:
        """Run the operator of the shrunk graph on living entries; behind a removed branch it reads another node."""
        small = self._small[node.name]
        taken = {s: self._taken(m) for s, m in zip(small.all_input_nodes, node.all_input_nodes, strict=True)}
        args, kwargs = map_arg((small.args, small.kwargs), lambda m: taken[m])
        outputs = self.call_function(small.target, args, kwargs)  # type: ignore[arg-type]
        if isinstance(outputs, torch.Tensor):
            return self._scattered(outputs, node, node.meta["val"].dim())
        return tuple(self._scattered(x, part, x.dim()) for x, part in zip(outputs, self._parts(node), strict=True))

    def _drawn(self, node: fx.Node) -> torch.Tensor:
        """Draw the numbers that the shrunk graph draws; one that works in place writes them into its operand."""
        drawn = self._gathered(node)
        return self.env[node.args[0]].copy_(drawn) if is_in_place(node) else drawn  # type: ignore[index]

    def _averages_neighbours(self, node: fx.Node) -> bool:
        """Return whether an average is taken over windows of a dimension that was cut."""
        rank = {aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}.get(cast(Any, node.target))
        source = node.all_input_nodes[0]
        return rank is not None and any(dim >= self.env[source].dim() - rank for dim in self._living(source))

    def _parts(self, node: fx.Node) -> list[fx.Node | None]:
        """Return the nodes that take the single outputs of a node with several (`None`: nothing reads it)."""
        by_index = {user.args[1]: user for user in node.users}
        return [by_index.get(k) for k in range(len(node.meta["val"]))]

    def _scattered(self, value: torch.Tensor, node: fx.Node | None, rank: int) -> torch.Tensor:
        """Put living entries back to their dense places, with zeros elsewhere."""
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
        """Run a norm with statistics over living entries, and with the dense model's weight and bias."""
        small = self._small[node.name]
        names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
        given = dict(zip(names, small.args, strict=False)) | dict(small.kwargs)
        given |= {"weight": None, "bias": None} if "bias" in names else {"weight": None}
        source = node.args[0]
        assert isinstance(source, fx.Node)
        given[names[0]] = self._taken(source)
        if "normalized_shape" in given:  # it may be computed in the graph
            given["normalized_shape"] = given[names[0]].shape[-len(given["normalized_shape"]) :]
        value = self._scattered(node.target(**given), node, self.env[source].dim())  # type: ignore[operator]
        weights = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        weight, bias = (
            self.env[n] if isinstance(n, fx.Node) else None for n in (weights.get("weight"), weights.get("bias"))
        )
        channels = [1, -1] + [1] * (value.dim() - 2) if node.target is aten.group_norm.default else None
        scale, shift = (w.reshape(channels) if w is not None and channels else w for w in (weight, bias))
        value = value if scale is None else value * scale
        return value if shift is None else value + shift
