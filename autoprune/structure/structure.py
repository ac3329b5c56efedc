"""The structure of a model: its units, its operators, its sizes under any policy, and `shrink`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import fx, nn

from autoprune.errors import PolicyError, ProofError
from autoprune.model.adapters import view_keywords
from autoprune.records import Policy, Unit, digest_of
from autoprune.structure.branches import Branches
from autoprune.structure.capture import Capture, module_tensors
from autoprune.structure.cut_proof import culprits, proven_difference
from autoprune.structure.geometry import Dim, Operator
from autoprune.structure.input_sizes import FixedSize, InputSizes
from autoprune.structure.layer_decisions import layers_of, steps_of, treated_weights, treatment_codes
from autoprune.structure.memory import Memory
from autoprune.structure.module import EvaluationGraph, GraphModel, Input, PrunedTo
from autoprune.structure.placement import Placement
from autoprune.structure.proof import TOLERANCE
from autoprune.structure.shrink import channel_masks, living_masks, renumbered, rewrite, slice_tensors
from autoprune.structure.tensor_costs import TensorCost, mac_costs, tensor_costs
from autoprune.structure.units import Channels, Site
from autoprune.treatments import Layer

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A parameter dimension that keeps its full width, and why."""

    parameter: str
    dim: int
    size: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Everything that pruning needs to know about one model. Build it with `analyze`; nothing in it changes.

    `widths` arguments are int64 arrays `[P, U]`: one row for each of P policies, one column for each of U units, in
    order. Only a `removable` unit may have width 0, which removes the residual branch that it is in.

    `fixed` are the weight dimensions that no unit cuts, `unsupported` the nodes of operators without a rule, by
    operator. `channels` maps every labelled dimension to its channels, `canonical` every state-dict name to the first
    name of its tensor, `captures` training (True) and evaluation (False) to their graphs, and `dims` every tensor to
    the sizes of its dimensions.
    """

    model: nn.Module
    example_inputs: tuple[torch.Tensor, ...]
    units: tuple[Unit, ...]
    operators: tuple[Operator, ...]
    fixed: tuple[Fixed, ...]
    unsupported: Mapping[str, tuple[str, ...]]
    channels: Mapping[Site, Channels]
    canonical: Mapping[str, str]
    captures: Mapping[bool, Capture]
    dims: Mapping[str, tuple[Dim, ...]]
    branches: Branches
    _memories: dict[frozenset[int], Memory] = field(default_factory=dict, init=False, repr=False, compare=False)
    boundaries: dict[bool, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, buffers and captured constants by name."""
        constants = {name: tensor for capture in self.captures.values() for name, tensor in capture.constants.items()}
        return module_tensors(self.model) | constants

    @property
    def lookup_sites(self) -> dict[str, Site]:
        """Dimensions in which constants and buffers hold positions, by their names."""
        return {name: (c.mode, *place) for c in self.captures.values() for name, place in c.lookups.items()}

    @property
    def full_widths(self) -> dict[str, int]:
        """Dense width of every unit."""
        return {unit.name: unit.width for unit in self.units}

    def dense_policy(self, space_id: str = "") -> Policy:
        """Return the policy that keeps everything."""
        return Policy(space_id=space_id, widths=self.full_widths)

    def digest(self) -> str:
        """Return the structure's name: equal units, parameter shapes and operators give equal digests."""
        shapes = {name: list(t.shape) for name, t in module_tensors(self.model).items()}
        members = [[u.name, u.width, [[m.parameter, m.dim, m.per_channel] for m in u.members]] for u in self.units]
        return digest_of([shapes, members, [operator.costs for operator in self.operators]])

    def widths(self, policies: Sequence[Policy]) -> Array:
        """Return the widths of policies, int64 `[P, U]`.

        Raises:
            PolicyError: a policy has other units, or a width that its unit cannot have.
        """
        names = [unit.name for unit in self.units]
        rows = np.empty((len(policies), len(names)), dtype=np.int64)
        for row, policy in zip(rows, policies, strict=True):
            if len(policy.widths) != len(names):
                raise PolicyError(f"a policy has one width for each of the units {names}; got {list(policy.widths)}")
            try:
                row[:] = [policy.widths[name] for name in names]
            except KeyError as error:
                raise PolicyError(f"the policy has no width for unit {error}; it has {list(policy.widths)}") from error
        full = np.array([unit.width for unit in self.units], dtype=np.int64)
        least = np.array([0 if unit.removable else 1 for unit in self.units], dtype=np.int64)
        if ((rows < least) | (rows > full)).any():
            row, column = np.argwhere((rows < least) | (rows > full))[0]
            why = "" if rows[row, column] else ", which would remove more than a residual branch"
            raise PolicyError(
                f"the width of {names[column]!r} is {least[column]} to {full[column]}; got {rows[row, column]}{why}"
            )
        return rows

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that may be treated, in the order of the evaluation graph."""
        return layers_of(self.operators, self.tensors, self.canonical, tuple(self.captures.values()))

    @cached_property
    def placement(self) -> Placement:
        """How the treatments of layers decide which tensors of the evaluation graph are int8."""
        return self.placement_in(self.captures[False].graph)

    def placement_in(self, graph: fx.Graph) -> Placement:
        """Return how treatments decide which tensors of a shrunk evaluation graph are int8; branches may be gone."""
        return Placement(steps_of(graph, self.operators, self.layers))

    def rows(self, policies: Sequence[Policy], layers: Sequence[str]) -> Array:
        """Return widths and treatments of policies, int64 `[P, U + L]`: widths first, then codes of treatments.

        Args:
            policies: the policies.
            layers: names of `L` layers; a policy may treat no other.

        Raises:
            PolicyError: a policy has other units or treats another layer.
        """
        return np.concatenate([self.widths(policies), treatment_codes(policies, layers)], axis=1)

    def params(self, rows: Array, layers: Sequence[str] = ()) -> Array:
        """Return the number of parameters, int64 `[P]`, of `rows`; a tied one counts once. Rows end as in `bytes`."""
        return self._total(rows, "params", layers)

    def bytes(self, rows: Array, layers: Sequence[str] = ()) -> Array:
        """Return the bytes of parameters and floating-point buffers, int64 `[P]`; rows end in codes of `layers`."""
        return self._total(rows, "bytes", layers)

    def _total(self, rows: Array, cost: str, layers: Sequence[str] = ()) -> Array:
        sizes = (size(rows) for name, _, size in self.tensor_costs(layers) if name == cost)
        return sum(sizes, np.zeros(len(rows), dtype=np.int64))

    def tensor_costs(self, layers: Sequence[str] = ()) -> Iterator[TensorCost]:
        """Yield the terms that `params`, `bytes` and `macs` sum (see `tensor_costs`)."""
        treated = treated_weights(self.layers, layers, len(self.units))
        yield from tensor_costs(self.tensors, self.canonical, self.dims, self.branches.tensors, treated, self.operators)
        yield from mac_costs(self.operators, self.canonical, self.dims, treated)

    def macs(self, rows: Array, layers: Sequence[str] = ()) -> Array:
        """Return the multiply-accumulates for one example, int64 `[P]` (see `Operator.macs`); rows as in `bytes`."""
        return self._total(rows, "macs", layers)

    def peak_activation_bytes(self, widths: Array) -> Array:
        """Return the peak bytes of living activations for one example in evaluation, int64 `[P]` (see `memory`)."""
        patterns, of_row = np.unique(widths == 0, axis=0, return_inverse=True)
        peak = np.empty(len(widths), dtype=np.int64)
        for number, pattern in enumerate(patterns):
            rows = of_row.ravel() == number
            peak[rows] = self._memory(frozenset(np.flatnonzero(pattern).tolist())).peak_bytes(widths[rows])
        return peak

    def _memory(self, removed: frozenset[int]) -> Memory:
        if removed not in self._memories:
            full = np.array([unit.width for unit in self.units], dtype=np.int64)
            remaining = rewrite(self.captures[False], {}, self.canonical, self.branches.idle("eval", removed))
            self._memories[removed] = Memory.of(remaining.graph, self.channels, full)
        return self._memories[removed]

    def removed(self, policy: Policy) -> frozenset[int]:
        """Return the indices of the units that a policy gives width 0."""
        return frozenset(np.flatnonzero(self.widths([policy])[0] == 0).tolist())

    def masks(self, policy: Policy, keep: Mapping[str, Array] | None = None) -> dict[Site, Array]:
        """Return which indices live, bool `[size]` for every labelled dimension.

        Args:
            policy: the width of every unit.
            keep: distinct channel indices `[width]` by unit (default: the first `width` channels).

        Raises:
            PolicyError: the policy or the indices do not fit.
        """
        kept = channel_masks(self.units, self.widths([policy])[0], keep)
        return living_masks(self.channels, kept)

    def kept(self, policy: Policy, keep: Mapping[str, Array] | None = None) -> dict[str, tuple[Array | None, ...]]:
        """Return the kept indices of every dimension of parameters and buffers, by state-dict name (`None`: all).

        Tensors of removed branches are left out. `policy` and `keep` are those of `masks`.
        """
        masks = self.masks(policy, keep)
        dead = self.branches.dead_tensors(self.removed(policy))
        kept_indices = {}
        for name, tensor in module_tensors(self.model).items():
            if self.canonical[name] in dead:
                continue
            of_dims = [masks.get(("parameter", self.canonical[name], dim)) for dim in range(tensor.dim())]
            kept_indices[name] = tuple(None if mask is None else np.flatnonzero(mask) for mask in of_dims)
        return kept_indices

    def lookups(self, policy: Policy) -> dict[str, Array]:
        """Return the constants that hold positions in a dimension, at a policy's widths.

        They are int64 arrays by name, in the order of the evaluation graph.
        """
        capture, masks, tensors = self.captures[False], self.masks(policy), self.tensors
        positions = {}
        for name, place in capture.lookups.items():
            index, mask = tensors[name], masks.get((capture.mode, *place))
            positions[name] = (index if mask is None else renumbered(index, mask)).numpy()
        return positions

    def shrink(self, policy: Policy, keep: Mapping[str, Array] | None = None, *, prove: bool = True) -> GraphModel:
        """Build the really smaller model of a policy; the dense model is left as it was.

        Args:
            policy: the width of every unit.
            keep: distinct channel indices `[width]` by unit (default: the first `width` channels).
            prove: compare the result with the dense model whose removed entries are zero (see `proof`).

        Raises:
            PolicyError: the policy or the indices do not fit.
            ProofError: the result computes something else; the message names the units that break it.

        Example:
            >>> from autoprune.structure import analyze
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> small = analyze(model, torch.randn(2, 4)).shrink(Policy(space_id="", widths={"0": 3}))
            >>> small.get_parameter("0.weight").shape
            torch.Size([3, 4])
        """
        masks, removed = self.masks(policy, keep), self.removed(policy)
        shrunk = self.cut(masks, removed)
        if prove:
            difference = proven_difference(self, masks, removed, shrunk)
            if difference > TOLERANCE:
                raise ProofError(
                    f"the shrunk model does not compute what the dense model computes (relative difference "
                    f"{difference:.2g}, allowed {TOLERANCE:g}); broken by {', '.join(culprits(self, policy, keep))}. "
                    "Exclude these units in the search space, and please report the model."
                )
        shrunk.pruned_to = PrunedTo(
            widths=dict(policy.widths),
            kept=_as_lists(keep),
            inputs=self._inputs(shrunk.sizes),
            outputs=self.captures[False].counted,
        )
        return shrunk.train(self.model.training)

    @property
    def sizes(self) -> InputSizes:
        """Free and fixed sizes of the inputs."""
        return self.captures[False].sizes

    @property
    def fixed_sizes(self) -> tuple[FixedSize, ...]:
        """Dimensions of inputs, besides the batch, that must have the example's size, with the reason."""
        return self.sizes.fixed

    def _inputs(self, sizes: InputSizes) -> tuple[Input, ...]:
        keywords = view_keywords(self.model) or (None,) * len(self.example_inputs)
        return tuple(
            Input(keyword=keyword, dtype=str(x.dtype).removeprefix("torch."), shape=tuple(x.shape), free=free)
            for keyword, x, free in zip(keywords, self.example_inputs, sizes.formulas, strict=True)
        )

    def evaluation_graph(self) -> EvaluationGraph:
        """Return the dense model's evaluation graph as a module; its nodes have the names of `channels`."""
        return self.cut({}).eval().evaluation_graph()

    def cut(self, masks: Mapping[Site, Array], removed: AbstractSet[int] = frozenset()) -> GraphModel:
        """Return the model with the channels of `masks` and without the branches of the `removed` units; not proven."""
        dead = self.branches.dead_tensors(removed)
        captures = {
            m: rewrite(c, masks, self.canonical, self.branches.idle(c.mode, removed)) for m, c in self.captures.items()
        }
        tensors = slice_tensors(self.tensors, masks, self.canonical, dead, self.lookup_sites)
        return GraphModel(captures, tensors, set(self.model.state_dict()))


def _as_lists(keep: Mapping[str, Array] | None) -> dict[str, list[int]]:
    return {name: np.asarray(indices).astype(int).tolist() for name, indices in (keep or {}).items()}
