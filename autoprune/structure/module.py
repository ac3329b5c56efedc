"""`GraphModel`: a module that runs captured graphs on its own parameters, under the original state-dict names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from autoprune.structure.capture import Capture
from autoprune.structure.input_sizes import InputSizes, Shapes
from autoprune.structure.whole_layers import with_stand_ins

_KNOWN_SHAPES = 10_000
"""Shapes of inputs that a model remembers as accepted."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input of a model: its keyword (`None`: by position), its type such as "float32", the examples' shape."""

    keyword: str | None
    dtype: str
    shape: tuple[int, ...]
    free: tuple[str, ...] = ()
    """For each dimension the formula of its size, "" where it is fixed (see `InputSizes.formulas`)."""


@dataclass(frozen=True, kw_only=True)
class PrunedTo:
    """The cut that made a model, and the form that the model has.

    - `widths` and `kept`: width and kept channels of every unit (none listed: the first ones).
    - `inputs`: of the model.
    - `outputs`: names of the outputs that counted (`None`: all).
    - `form`: "native" for the user's own classes, "graph" for a `GraphModel`; `reason` says why it is a graph.
    - `notes`: what a user of this form should know.
    - `ranks`: of the layers that are two factors, by the names of their weights (see `low_rank`).
    - `treatments`: as they are written, of weights with zeros or in int8, by their names.
    """

    widths: Mapping[str, int]
    kept: Mapping[str, Sequence[int]]
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] | None = None
    form: str = field(default="graph", compare=False)
    reason: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    ranks: Mapping[str, int] = field(default_factory=dict)
    treatments: Mapping[str, str] = field(default_factory=dict)


class GraphModel(nn.Module):
    """A captured model: `train()` and `eval()` choose the graph, and both graphs share the parameters.

    It trains, moves between devices and types, deep-copies, exports, and has the state-dict names of the captured
    model. It has none of the original's Python attributes or methods. Inputs are tensors, by position or by name.
    Tensors that `forward` makes or casts follow the parameters when these go to another type or device.

    `pruned_to` says how the model was cut; `None` for a model that was not.
    """

    def __init__(
        self, captures: Mapping[bool, Capture], tensors: Mapping[str, torch.Tensor], persistent: set[str]
    ) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            _register(self, name, tensor, name in persistent)
        self.captures = dict(captures)
        self.pruned_to: PrunedTo | None = None
        self._forwards: dict[bool, Any] = {}
        self._known_shapes: set[Shapes] = set()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs in the captured model's `forward`."""
        return tuple(str(node.target) for node in self.captures[False].graph.nodes if node.op == "placeholder")

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        """Run the graph of the current mode; outputs nest as those of the captured model.

        Raises:
            TypeError: an input given by name is not one of `input_names`, or one is missing.
            UsageError: an input has another size than its example in a dimension that the capture fixed.
        """
        if named:
            inputs = (*inputs, *self._in_order(named, self.input_names[len(inputs) :]))
        self._require_sizes(inputs)
        outputs = self._compiled()(self, *inputs)
        return pytree.tree_unflatten(outputs, self.captures[self.training].out_spec)

    def train(self, mode: bool = True) -> GraphModel:
        """Choose the training or the evaluation graph; it is compiled now, since `torch.compile` could not do so."""
        super().train(mode)
        self._compiled()
        return self

    def _compiled(self) -> Any:
        """Return the function of the current mode's graph; many models are cut for a proof and never run."""
        if self.training not in self._forwards:
            self._forwards[self.training] = compiled(self.captures[self.training].graph)
        return self._forwards[self.training]

    @property
    def sizes(self) -> InputSizes:
        """Free and fixed sizes of the inputs."""
        return self.captures[False].sizes

    def fix_sizes(self, sizes: InputSizes) -> None:
        """Take over sizes of the inputs, of which fewer are free."""
        self.captures = {mode: replace(capture, sizes=sizes) for mode, capture in self.captures.items()}
        self._known_shapes = set()

    def _require_sizes(self, inputs: Sequence[Any]) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return  # sizes are symbols or tensors
        shapes = tuple(tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor))
        if any(isinstance(size, torch.SymInt) for shape in shapes for size in shape):
            return
        if shapes not in self._known_shapes:
            self.sizes.require(shapes)
            if len(self._known_shapes) < _KNOWN_SHAPES:
                self._known_shapes.add(shapes)

    def _in_order(self, named: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
        if named.keys() != set(names):
            raise TypeError(f"the model takes the inputs {', '.join(self.input_names)}; got {', '.join(named)}")
        return [named[name] for name in names]

    def nested(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the output tensors of evaluation, in order, nested as the captured model's outputs."""
        capture, left = self.captures[False], iter(tensors)
        (leaves,) = next(node for node in reversed(capture.graph.nodes) if node.op == "output").args
        filled = [next(left) if isinstance(leaf, fx.Node) else leaf for leaf in leaves]  # type: ignore[union-attr]
        return pytree.tree_unflatten(filled, capture.out_spec)

    def evaluation_graph(self) -> EvaluationGraph:
        """Return the evaluation graph over the same parameters, for an `fx.Interpreter`; nodes keep their names."""
        return EvaluationGraph(self)

    def evaluate_from(self, known: dict[fx.Node, Any]) -> Any:
        """Return the outputs in evaluation mode, given the values of some nodes; these nodes are not run."""
        outputs = fx.Interpreter(self.evaluation_graph()).run(initial_env=known)
        return pytree.tree_unflatten(outputs, self.captures[False].out_spec)

    def with_stand_ins(self) -> GraphModel:
        """Return an evaluation model on the same tensors that an exporter traces fast (see `whole_layers`)."""
        new = copy.copy(self)
        new.training = False
        new._forwards = {False: compiled(with_stand_ins(self.captures[False].graph))}
        return new

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GraphModel:
        before = {name: kinds(tensor) for name, tensor in self.state_dict(keep_vars=True).items()}
        super()._apply(fn, recurse)
        after = self.state_dict(keep_vars=True)
        pairs = (zip(old, kinds(after[name]), strict=True) for name, old in before.items())
        converted = {old: new for pair in pairs for old, new in pair if old != new}
        if converted:
            self.captures = {m: replace(c, graph=converted_graph(c.graph, converted)) for m, c in self.captures.items()}
            self._forwards = {mode: compiled(self.captures[mode].graph) for mode in self._forwards}
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        new = GraphModel.__new__(GraphModel)
        nn.Module.__init__(new)
        memo[id(self)] = new
        shared = {"captures", "_forwards", "_known_shapes"}
        for key, value in self.__dict__.items():
            new.__dict__[key] = value if key in shared else copy.deepcopy(value, memo)
        return new


class EvaluationGraph(nn.Module):
    """The evaluation graph of a model on its tensors, to be interpreted: it has no code, which takes time to make."""

    def __init__(self, model: GraphModel) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self.graph = model.captures[False].graph


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in evaluation mode; at the end each of its modules is put back to the mode it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


def _register(root: nn.Module, name: str, tensor: torch.Tensor, persistent: bool) -> None:
    """Register a tensor under a dotted name, with plain modules on the way."""
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor, persistent=persistent)


def kinds(tensor: torch.Tensor) -> tuple[torch.dtype, torch.device]:
    """Return the type and the device of a tensor."""
    return tensor.dtype, tensor.device


def converted_graph(graph: fx.Graph, converted: Mapping[Any, Any]) -> fx.Graph:
    """Return a copy of a graph in which the types and devices that nodes name are converted."""

    def follow(value: Any) -> Any:
        return converted.get(value, value) if isinstance(value, torch.dtype | torch.device) else value

    copied, new = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        new[node] = copied.node_copy(node, lambda n: new[n])
        new[node].meta = dict(node.meta)
        new[node].args = map_aggregate(new[node].args, follow)
        new[node].kwargs = map_aggregate(new[node].kwargs, follow)
    return copied


def compiled(graph: fx.Graph) -> Any:
    """Return the Python function `forward(self, *inputs)` of a graph, which reads parameters from `self`."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<autoprune graph>", "exec"), scope)
    return scope["forward"]
