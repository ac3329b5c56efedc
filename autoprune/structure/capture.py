"""Capture one mode of a model as a plain ATen graph.

`torch.export` (non-strict; every size of an input is free that `forward` leaves free) lifts parameters to graph inputs;
here they become attributes again, under their state-dict names, so that a graph can be rewritten and run on parameters
of any size.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from autoprune.errors import StructureError
from autoprune.model.acceptance import users_line
from autoprune.model.copying import copy_of
from autoprune.structure.cells import is_cell, take_cells_apart
from autoprune.structure.folding import fold_shuffles, inline_blocks, is_mode_block
from autoprune.structure.input_sizes import InputSizes
from autoprune.structure.movements import VIEWS_IN_PLACE
from autoprune.structure.orders import constant_lookups
from autoprune.structure.recurrent_layers import unstack
from autoprune.structure.rules import rule_for
from autoprune.structure.symbols import OutOfTimeError, fixing_line, input_sizes, keep_batch, limited
from autoprune.structure.traceable import composites_taken_apart, traceable
from autoprune.structure.unread import erase_assertions, erase_unread
from autoprune.structure.whole_layers import STAND_INS
from autoprune.structure.whole_windows import WholeWindows

_SECONDS = 30.0
"""Processor time for an export with free sizes: nearly all models take as long as with fixed ones, a few take hours."""
_PACKED = (
    "packed sequences cannot be exported, because their sizes are values. Run the recurrent layer on the padded "
    "tensor, without pack_padded_sequence, and mask the outputs or gather the last step of each sequence"
)
_ADVICE = {
    "pack_padded_sequence": _PACKED,
    "pad_packed_sequence": _PACKED,
    "pack_sequence": _PACKED,
    "_detect_is_causal_mask": (
        "nn.Transformer and its encoder and decoder compare the values of a mask to learn whether it is causal. Say "
        "it: tgt_is_causal=True for nn.Transformer and nn.TransformerDecoder, src_is_causal=True or is_causal=True for "
        "a mask of an encoder (False for one that is not causal)"
    ),
}
"""What to do where a function of torch that the exporter cannot follow is on the way to an error."""
_TENSOR_KINDS = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One mode of a model: a graph whose `get_attr` nodes carry state-dict names, and the nesting of its outputs."""

    graph: fx.Graph
    out_spec: pytree.TreeSpec
    training: bool
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Tensors that `forward` makes or holds outside the state dict, by name."""
    narrow: frozenset[int] = frozenset()
    """Numbers of the outputs that may lose channels: they do not count, and other outputs are computed from them."""
    counted: tuple[str, ...] | None = None
    """Names of the outputs that count (`None`: all)."""
    sizes: InputSizes = field(default_factory=InputSizes)
    """Free and fixed sizes of the inputs."""
    lookups: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Constants and buffers that hold positions in a dimension: the node and the dimension, by name."""

    @property
    def mode(self) -> str:
        """First entry of this graph's sites: "train" or "eval"."""
        return "train" if self.training else "eval"


def export(model: nn.Module, example_inputs: Sequence[torch.Tensor], *, training: bool) -> Capture:
    """Export a model in one mode with free sizes of its inputs; the model is left as it was.

    Returns:
        The graph as exported; `simplified` gives it the form that all other stages read.

    Raises:
        StructureError: the model cannot be traced; the message has the exporter's reason.
    """
    model = copy_of(model).train(training)
    inputs = tuple(with_batch(x, 3) for x in example_inputs)
    program, sizes = _exported(model, inputs)
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    graph, constants = _unlift(program, "train" if training else "eval")
    inline_blocks(graph, program.graph_module)
    erase_assertions(graph)
    for node in graph.nodes:
        node.target = STAND_INS.get(node.target) or VIEWS_IN_PLACE.get(node.target, node.target)
    keep_batch(graph, sizes)
    return Capture(graph=graph, out_spec=out_spec, training=training, constants=constants, sizes=sizes)


def _exported(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[ExportedProgram, InputSizes]:
    """Export with all sizes free, or with the batch alone where that takes too long or fails."""
    every = tuple(dict.fromkeys(range(x.dim()), Dim.AUTO) for x in inputs)
    batch = tuple({0: Dim.AUTO} if x.dim() else {} for x in inputs)
    beyond = [(number, dim) for number, x in enumerate(inputs) for dim in range(1, x.dim())]
    lines: dict[str, str] = {}
    reason = ""
    if beyond:
        try:
            with limited(_SECONDS, lines):
                program = _export(model, inputs, every)
        except OutOfTimeError:
            reason = f"deciding about free sizes takes more than {_SECONDS:g} seconds"
        except Exception as error:
            reason = f"not traced with a free size: {_first_line(error)}{users_line(error, 'forward')}"
        else:
            _require_any_batch(program, lines)
            return program, input_sizes(program, lines, {})
    try:
        with limited(math.inf, lines := {}):
            program = _export(model, inputs, batch)
    except Exception as error:
        raise StructureError(_why_untraceable(error, model, inputs)) from error
    _require_any_batch(program, lines)
    return program, input_sizes(program, {}, dict.fromkeys(beyond, reason))


def _export(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], shapes: tuple[Mapping[int, Any], ...]
) -> ExportedProgram:
    def whole(target: Any) -> bool:
        return rule_for(target) is not None or is_cell(target)

    with quiet(), traceable(model), WholeWindows(), composites_taken_apart(whole):
        return torch.export.export(
            model, inputs, dynamic_shapes=(shapes,) if _takes_varargs(model) else shapes, strict=False
        )


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _why_untraceable(error: Exception, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str:
    """Return the message for a model that the exporter refuses."""
    reason = _first_line(error)
    unknown = re.match(r"Found <class '(?:.*\.)?(\w+)'> in output, which is not a known type", reason)
    if unknown:
        return (
            f"torch.export does not know the class {unknown[1]} that the model returns. Return tensors, tuples, dicts "
            "or dataclasses, or name the part that counts: outputs=, a function or the name of an attribute or key"
        )
    line = users_line(error, "forward")
    advice = _advice(error)
    if advice is not None:
        return f"the model cannot be traced by torch.export{line}: {advice}"
    if _runs(model, [x[:1] if x.dim() else x for x in inputs]) and not _runs(model, inputs):
        return (
            f"the model must run on any number of examples; its forward fixes the batch size{line}: it runs on one "
            f"example, and not on three ({reason}). Write `x.shape[0]` in the place of the number."
        )
    return (
        f"the model cannot be traced by torch.export: {reason}{line}. Its forward "
        "must run on the example inputs and must not branch on tensor values."
    )


def _advice(error: Exception) -> str | None:
    """Return what to do about a function of torch on the way to an error that the exporter cannot follow."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(isinstance(value, PackedSequence) for frame in frames for value in frame.f_locals.values()):
        return _PACKED
    functions = {frame.f_code.co_name for frame in frames}
    return next((text for name, text in _ADVICE.items() if name in functions), None)


def _runs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> bool:
    """Return whether a model runs on inputs, in evaluation mode."""
    try:
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy_of(model).eval()(*inputs)
    except Exception:  # a user's forward may raise anything
        return False
    return True


def _require_any_batch(program: ExportedProgram, lines: Mapping[str, str]) -> None:
    """Raise `StructureError` for a forward that only runs on the batch size of the capture."""
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    batches = [x.shape[0] for x in (node.meta.get("val") for node in nodes) if isinstance(x, torch.Tensor) and x.dim()]
    # The exporter keeps a size that `forward` fixed as a symbol with a known number.
    if batches and not any(isinstance(b, torch.SymInt) and b.node.maybe_as_int() is None for b in batches):
        line = next(filter(None, (fixing_line(program, lines, node.name, 0) for node in nodes)), "")
        raise StructureError(
            "the model must run on any number of examples; its forward fixes the batch size when it is traced"
            f"{f' ({line})' if line else ''}. Use `x.shape[0]` without int(), do not loop over examples in Python, and "
            "leave out operators that need a plain number in its place."
        )


def simplified(capture: Capture, buffers: Mapping[str, torch.Tensor]) -> Capture:
    """Leave out what nothing reads, unstack recurrent layers, take cells apart and fold shuffles, in place.

    `buffers` are those of the model, by name: integer ones may hold positions in a dimension.
    """
    erase_unread(capture.graph)
    unstack(capture.graph)
    take_cells_apart(capture.graph)
    integers = {name: tensor.detach() for name, tensor in buffers.items()} | dict(capture.constants)
    lookups = constant_lookups(capture.graph, capture.mode, integers)
    fold_shuffles(capture.graph, lookups)
    return replace(capture, constants={**capture.constants} | lookups.constants, lookups=lookups.places)


def with_batch(x: torch.Tensor, batch: int) -> torch.Tensor:
    """Repeat the first example `batch` times, because the exporter takes a batch of 1 for a constant."""
    return x[:1].expand(batch, *x.shape[1:]).clone() if x.dim() else x


def _takes_varargs(model: nn.Module) -> bool:
    """Return whether `forward` takes all its inputs as `*inputs`; the exporter, too, looks through decorators."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return bool(kinds) and kinds[0] is inspect.Parameter.VAR_POSITIONAL


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
    # The exporter takes a parameter that forward reads from a plain list for a constant.
    named = {(t.data_ptr(), t.shape, t.stride()): name for name, t in program.state_dict.items()}
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
                constant = cast(torch.Tensor, program.constants[target])
                held = named.get((constant.data_ptr(), constant.shape, constant.stride())) if constant.numel() else None
                # The mode is in the name, because both modes number their constants from 0.
                target = held or f"constant_{mode}_{target.replace('.', '_')}"
                if held is None:
                    constants[target] = constant
            new[node] = graph.create_node("get_attr", target, name=node.name)
        elif node.op == "placeholder" and specs[node.name].kind is not InputKind.USER_INPUT:
            raise StructureError(
                f"inputs of a traced model are tensors; {node.name} is of kind {specs[node.name].kind}. Make objects "
                "that are no tensors, such as a torch.Generator, outside of forward"
            )
        else:
            new[node] = graph.node_copy(node, lambda n: new[n])
        new[node].meta = dict(node.meta)
    return graph, constants


def module_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers by state-dict name, tied and non-persistent tensors included."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))
