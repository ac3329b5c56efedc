"""Capture one mode of a model as a plain ATen graph.

`torch.export` (non-strict, dynamic batch) lifts parameters to graph inputs; here they become attributes again, under
their state-dict names, so that a graph can be rewritten and run on parameters of any size.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import cast

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from autoprune.errors import StructureError
from autoprune.model.acceptance import users_line
from autoprune.structure.folding import fold_shuffles, inline_blocks, is_mode_block
from autoprune.structure.recurrent_layers import unstack
from autoprune.structure.whole_layers import STAND_INS, whole_layers

_TENSOR_KINDS = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One mode of a model: a graph whose `get_attr` nodes carry state-dict names, and the nesting of its outputs."""

    graph: fx.Graph
    out_spec: pytree.TreeSpec
    training: bool
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Tensors that `forward` makes or holds outside the state dict, by name."""
    lookups: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Constants that hold positions in a dimension: the node and the dimension, by name."""

    @property
    def mode(self) -> str:
        """First entry of this graph's sites: "train" or "eval"."""
        return "train" if self.training else "eval"


def export(model: nn.Module, example_inputs: Sequence[torch.Tensor], *, training: bool) -> Capture:
    """Export a model in one mode with a dynamic batch dimension; the model is left as it was.

    Returns:
        The graph as exported; `simplified` gives it the form that all other stages read.

    Raises:
        StructureError: the model cannot be traced; the message has the exporter's reason.
    """
    model = copy.deepcopy(model).train(training)
    inputs = tuple(with_batch(x, 3) for x in example_inputs)
    shapes = tuple({0: Dim.AUTO} if x.dim() else {} for x in inputs)
    try:
        with quiet(), whole_layers():
            program = torch.export.export(
                model, inputs, dynamic_shapes=(shapes,) if _takes_varargs(model) else shapes, strict=False
            )
    except Exception as error:
        raise StructureError(_why_untraceable(error)) from error
    _require_any_batch(program)
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    graph, constants = _unlift(program, "train" if training else "eval")
    inline_blocks(graph, program.graph_module)
    for node in graph.nodes:
        node.target = STAND_INS.get(node.target, node.target)
    return Capture(graph=graph, out_spec=out_spec, training=training, constants=constants)


def _why_untraceable(error: Exception) -> str:
    """Return the message for a model that the exporter refuses."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    unknown = re.match(r"Found <class '(?:.*\.)?(\w+)'> in output, which is not a known type", reason)
    if unknown:
        return (
            f"torch.export does not know the class {unknown[1]} that the model returns. Return tensors, tuples or "
            f"plain dicts; for a dataclass, call torch.export.register_dataclass({unknown[1]}) first"
        )
    return (
        f"the model cannot be traced by torch.export: {reason.rstrip('.')}{users_line(error, 'forward')}. Its forward "
        "must run on the example inputs and must not branch on tensor values."
    )


def _require_any_batch(program: ExportedProgram) -> None:
    """Raise `StructureError` for a forward that only runs on the batch size of the capture."""
    names = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    batches = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.dim()]
    # The exporter keeps a size that `forward` fixed as a symbol with a known number.
    if batches and not any(isinstance(b, torch.SymInt) and b.node.maybe_as_int() is None for b in batches):
        raise StructureError(
            "the model must run on any number of examples; its forward fixes the batch size when it is traced. Write "
            "`x.shape[0]` instead of `len(x)`, and do not loop over examples in Python."
        )


def simplified(capture: Capture) -> Capture:
    """Unstack recurrent layers and fold shuffles of an exported graph, which is changed in place."""
    unstack(capture.graph)
    shuffles = fold_shuffles(capture.graph, capture.mode)
    return replace(
        capture,
        constants={**capture.constants} | {name: index for name, (index, _, _) in shuffles.items()},
        lookups={name: (node, dim) for name, (_, node, dim) in shuffles.items()},
    )


def with_batch(x: torch.Tensor, batch: int) -> torch.Tensor:
    """Repeat the first example `batch` times, because the exporter takes a batch of 1 for a constant."""
    return x[:1].expand(batch, *x.shape[1:]).clone() if x.dim() else x


def _takes_varargs(model: nn.Module) -> bool:
    """Return whether `forward` takes all its inputs as `*inputs`."""
    code = getattr(type(model).forward, "__code__", None)
    return code is not None and bool(code.co_flags & 0x04) and code.co_argcount == 1


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and logs of the exporter and of the model it runs; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch has dozens of loggers, each with its own level
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # a failing export prints its graph
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _unlift(program: ExportedProgram, mode: str) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """Copy the exported graph with parameters, buffers and constants as `get_attr` nodes; return it and the constants.

    The exporter "lifts" tensors: it makes them inputs of the graph.
    """
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        raise StructureError(
            "the forward must leave buffers to in-place operators; this one changes buffers in a way that "
            "torch.export turns into outputs. Write `self.buffer.copy_(value)` or `add_`"
        )
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    constants: dict[str, torch.Tensor] = {}
    for node in program.graph.nodes:
        # Tensors are placeholders here, so `get_attr` reads a graph within the graph.
        if node.op == "get_attr" and not all(is_mode_block(user) for user in node.users):
            raise StructureError(
                f"a part of forward in {mode} mode is a separate graph ({', '.join(map(str, node.users))}): take "
                "torch.cond and similar operators out of forward"
            )
        if node.op == "placeholder" and specs[node.name].kind in _TENSOR_KINDS:
            target = str(specs[node.name].target)
            if specs[node.name].kind is InputKind.CONSTANT_TENSOR:
                # The mode is in the name, because both modes number their constants from 0.
                name, target = target, f"constant_{mode}_{target.replace('.', '_')}"
                constants[target] = cast(torch.Tensor, program.constants[name])
            new[node] = graph.create_node("get_attr", target, name=node.name)
        elif node.op == "placeholder" and specs[node.name].kind is not InputKind.USER_INPUT:
            raise StructureError(
                f"inputs of a traced model are tensors; {node.name} is of kind {specs[node.name].kind}, which is not "
                "supported"
            )
        else:
            new[node] = graph.node_copy(node, lambda n: new[n])
        new[node].meta = dict(node.meta)
    return graph, constants


def module_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers by state-dict name, tied and non-persistent tensors included."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))
