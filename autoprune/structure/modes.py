"""Both modes of a model: the training graph is exported, the evaluation graph is switched from it and checked.

A model has two graphs: `dropout(x, 0.5, train=True)` in training is `dropout(x, 0.5, train=False)` in evaluation, and
batch norms take statistics of the batch or their running ones. Exporting is most of the time of an analysis, and the
two graphs of most models differ in such flags alone. So the training graph is exported, and a copy is *switched*: its
flags are turned off, and the noise of stochastic depth is taken out.

The switched graph must pass a check on random parameters: it runs the same operators with the same sizes and numbers
as the model in evaluation mode, and its outputs are equal bit for bit. A model that does something else in evaluation
mode (it drops auxiliary outputs, for example) fails the check and is exported twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.errors import StructureError
from autoprune.model.copying import copy_of
from autoprune.structure.capture import Capture, export, quiet, simplified, with_batch
from autoprune.structure.input_sizes import InputSizes
from autoprune.structure.module import compiled
from autoprune.structure.proof import randomize
from autoprune.structure.second_size import checked_sizes

aten = torch.ops.aten

_CHECK_BATCH = 2
_FLAGS = ("train", "training", "use_input_stats")
"""ATen's names of the argument that lets an operator drop values, or take statistics of the batch."""

_DRAWS = {aten.bernoulli_.float, aten.bernoulli.p}
_SCALES = {aten.div_.Tensor, aten.div.Tensor}
_EMPTY = {aten.empty.memory_format, aten.new_empty.default, aten.sym_size.int}
"""Operators that make the tensor which stochastic depth fills with noise."""

_BOOKKEEPING = {aten.lift_fresh.default, aten.lift_fresh_copy.default, aten._assert_tensor_metadata.default}
"""Operators that the exporter adds around tensors made of Python numbers, and beside conversions."""


def capture_both(model: nn.Module, example_inputs: Sequence[torch.Tensor]) -> dict[bool, Capture]:
    """Capture the evaluation graph (False) and the training graph (True) of a model, which is left as it was.

    Raises:
        StructureError: the model cannot be traced; the message has the exporter's reason.
    """
    training = export(model, example_inputs, training=True)
    evaluation = switched(training)
    if not computes_the_same(evaluation, copy_of(model).eval(), example_inputs):
        evaluation = export(model, example_inputs, training=False)
    sizes = evaluation.sizes.also(training.sizes)
    captures = {capture.training: replace(capture, sizes=sizes) for capture in (evaluation, training)}
    sizes = checked_sizes(model, captures, example_inputs)
    buffers = dict(model.named_buffers())
    return {mode: simplified(replace(capture, sizes=sizes), buffers) for mode, capture in captures.items()}


def free_sizes(model: nn.Module, example_inputs: Sequence[torch.Tensor]) -> InputSizes:
    """Return the free and fixed sizes of a model's inputs in evaluation; none is free in a model that is not traced."""
    try:
        capture = export(model, example_inputs, training=False)
    except StructureError:
        return InputSizes()
    return checked_sizes(model, {False: capture}, example_inputs)


def switched(training: Capture) -> Capture:
    """Return a copy of a training graph that drops nothing, uses running statistics and counts no batches."""
    graph, new = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in training.graph.nodes:
        if not _counts_batches(node):
            new[node] = graph.node_copy(node, lambda n: new[n])
            new[node].meta = dict(node.meta)
            _switch(new[node])
    for node in list(graph.nodes):
        if node.target in _DRAWS:
            _drop_noise(node)
    return Capture(
        graph=graph, out_spec=training.out_spec, training=False, constants=training.constants, sizes=training.sizes
    )


def _counts_batches(node: fx.Node) -> bool:
    """Return whether a node adds 1 to a batch norm's number of batches."""
    if node.target is not aten.add_.Tensor or node.users:
        return False
    return str(node.all_input_nodes[0].target).endswith("num_batches_tracked")


def _drop_noise(node: fx.Node) -> None:
    """Take out a random factor of a residual branch (stochastic depth), and its division by the share that stays."""
    for user in list(node.users):
        if user.target in _SCALES and user.args[0] is node:
            _drop_noise(user)
        elif user.target is aten.mul.Tensor and user.args[1] is node:
            user.replace_all_uses_with(cast(fx.Node, user.args[0]))
            node.graph.erase_node(user)
    if not node.users:
        _erase_with_sources(node)


def _erase_with_sources(node: fx.Node) -> None:
    """Erase a node that nothing reads, and the empty tensor and the sizes that only this node read."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        if not source.users and source.target in _EMPTY:
            _erase_with_sources(source)


def _switch(node: fx.Node) -> None:
    """Turn the flags of an operator to evaluation mode."""
    if not isinstance(node.target, OpOverload):
        return
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if "running_mean" in names and given["running_mean"] is None:
        return  # without running statistics, both modes take the statistics of the batch
    off: dict[str, Any] = {name: False for name in _FLAGS if name in given}
    if node.target is aten.scaled_dot_product_attention.default and "dropout_p" in given:
        off["dropout_p"] = 0.0
    node.args = tuple(off.get(name, value) for name, value in zip(names, node.args, strict=False))
    node.kwargs = {name: off.get(name, value) for name, value in node.kwargs.items()}


def computes_the_same(capture: Capture, model: nn.Module, example_inputs: Sequence[torch.Tensor]) -> bool:
    """Return whether a graph computes what `model` computes in its current mode.

    The parameters of `model` are overwritten by random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [with_batch(x, _CHECK_BATCH) for x in example_inputs]
    try:
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]), _as_exported():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    randomize(tensor, generator)
            expected, calls = _recorded(model, inputs)
            for name, tensor in capture.constants.items():
                model.register_buffer(name, tensor)
            outputs, graph_calls = _recorded(lambda *x: compiled(capture.graph)(model, *x), inputs)
    except Exception:  # a user's forward may raise anything on random parameters
        return False
    leaves, spec = pytree.tree_flatten(expected)
    return spec == capture.out_spec and calls == graph_calls and _equal(leaves, pytree.tree_leaves(outputs))


@contextmanager
def _as_exported() -> Iterator[None]:
    """Let a model behave as in an export: no fused attention, and `torch.compiler.is_exporting()` is true."""
    flags = {name: getattr(torch.compiler, name) for name in ("_is_exporting_flag", "_is_compiling_flag")}
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for name in flags:
            setattr(torch.compiler, name, True)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for name, value in flags.items():
            setattr(torch.compiler, name, value)


def _recorded(call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> tuple[Any, list[Any]]:
    """Return the outputs of a call, and the operators that it ran (see `_Recorder`)."""
    with _Recorder() as recorder:
        return call(*inputs), recorder.calls


class _Recorder(TorchDispatchMode):
    """Record of every operator that computes something, with the sizes of its tensors and its other arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func.is_view and func not in _BOOKKEEPING:
            arguments = pytree.tree_leaves((args, kwargs))
            self.calls.append((func, [x.shape if isinstance(x, torch.Tensor) else x for x in arguments]))
        return func(*args, **kwargs)


def _equal(expected: Sequence[Any], outputs: Sequence[Any]) -> bool:
    return len(expected) == len(outputs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        for a, b in zip(expected, outputs, strict=True)
    )
