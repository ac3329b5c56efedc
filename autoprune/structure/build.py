"""From a model to its structure: capture both modes, pass labels through both graphs, close, and count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from autoprune.errors import StructureError
from autoprune.model.acceptance import ExampleInputs, accepted, as_inputs
from autoprune.model.adapters import adapted, keywords_of
from autoprune.structure.analysis import Analysis
from autoprune.structure.branches import find_branches
from autoprune.structure.capture import Capture, module_tensors
from autoprune.structure.geometry import Dim
from autoprune.structure.labels import Labels, Value
from autoprune.structure.modes import capture_both
from autoprune.structure.operators import find_operators
from autoprune.structure.recurrent import name_hidden
from autoprune.structure.recurrent_layers import GATES
from autoprune.structure.rules import analyse
from autoprune.structure.structure import Fixed, Structure
from autoprune.structure.units import Channels, Site, find_units

Array = np.ndarray


def analyze(model: nn.Module, example_inputs: ExampleInputs) -> Structure:
    """Find the units of a model: capture both modes, pass labels through both graphs, close, and count.

    Raises `StructureError` when the model is not accepted, cannot be traced, or nothing in it can be pruned.
    """
    model, inputs = adapted(accepted(model), keywords_of(example_inputs)), as_inputs(example_inputs)
    captures = capture_both(model, inputs)
    tensors = module_tensors(model)
    for found in captures.values():
        tensors |= found.constants
    canonical = _canonical(tensors)
    labels = Labels()
    values = {n: _initial(labels, t) for n, t in tensors.items() if canonical[n] == n and t.is_floating_point()}
    shared = {name: values[canonical[name]] for name in tensors if canonical[name] in values}
    whole_numbers = {name: t.detach() for name, t in tensors.items() if not t.is_floating_point()}
    states = {training: analyse(found.graph, labels, shared, whole_numbers) for training, found in captures.items()}
    _fix_unused(labels, values, captures, canonical)
    roles = {
        "head": [array for state in states.values() for array in state.heads],
        "head_dim": [array for state in states.values() for array in state.head_dims],
    }
    units, channels = find_units(labels, _sites(values, states), roles)
    if not units:
        raise StructureError("nothing in this model can be pruned: " + _why(labels, values, states))
    units = name_hidden(units, captures, canonical)
    full = np.array([unit.width for unit in units], dtype=np.int64)
    branches = find_branches(captures, channels, canonical, len(units))
    units = tuple(replace(unit, removable=number in branches.units) for number, unit in enumerate(units))
    return Structure(
        model=model,
        example_inputs=inputs,
        units=units,
        operators=find_operators(captures[False].graph, channels, full, branches),
        fixed=_fixed(labels, values, channels),
        unsupported={op: tuple(nodes) for op, nodes in states[False].unsupported.items()},
        channels=channels,
        canonical=canonical,
        captures=captures,
        dims={name: _dims(canonical[name], tensor, channels, full) for name, tensor in tensors.items()},
        branches=branches,
    )


def _canonical(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """First name of every tensor: tied parameters share one."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def _initial(labels: Labels, tensor: torch.Tensor) -> Value:
    shape = tuple(tensor.shape)
    return Value.of_dims(shape, {d: [labels.fresh(size)] for d, size in enumerate(shape) if size > 1})


def _fix_unused(
    labels: Labels, values: Mapping[str, Value], captures: Mapping[bool, Capture], canonical: Mapping[str, str]
) -> None:
    """Parameters that no graph reads would look like free units."""
    used = {
        canonical.get(str(n.target)) for c in captures.values() for n in c.graph.nodes if n.op == "get_attr" and n.users
    }
    for name in set(values) - used:
        labels.fix_value(values[name], "is not used in forward")


def _sites(values: Mapping[str, Value], states: Mapping[bool, Analysis]) -> dict[Site, list[Array]]:
    """Every labelled dimension of parameters and of node outputs in both graphs, and the groups of convolutions.

    A recurrent layer has those of its first output, the sequence.
    """
    sites: dict[Site, list[Array]] = {}
    for name, value in values.items():
        for dim in range(len(value.shape)):
            if value.along(dim):
                sites["parameter", name, dim] = value.along(dim)
    for training, state in states.items():
        mode = "train" if training else "eval"
        for node, found in state.values.items():
            value = found[0] if isinstance(found, list) and node.target in GATES else found
            if isinstance(value, Value) and node.op == "call_function":
                for component in value.components:
                    dim = int(np.argmax(component.shape))
                    sites.setdefault((mode, node.name, dim), []).append(component.reshape(-1))
        for node, group in state.groups.items():
            sites[mode, node.name, -1] = [group]
    return sites


def _fixed(labels: Labels, values: Mapping[str, Value], channels: Mapping[Site, Channels]) -> tuple[Fixed, ...]:
    """Channel dimensions (0 and 1) of weights that no unit touches, with the reason."""
    found = []
    for name, value in values.items():
        for dim in (0, 1) if len(value.shape) > 1 else ():
            if value.shape[dim] > 1 and not channels["parameter", name, dim].of_unit:
                reasons = (labels.reason(int(x)) for x in value.along(dim)[0])
                reason = next((r for r in reasons if r), "no consistent set of its indices can go")
                found.append(Fixed(parameter=name, dim=dim, size=value.shape[dim], reason=reason))
    return tuple(found)


def _dims(name: str, tensor: torch.Tensor, channels: Mapping[Site, Channels], full: Array) -> tuple[Dim, ...]:
    sites = [channels.get(("parameter", name, dim)) for dim in range(tensor.dim())]
    return tuple(Dim.of(c, full) if c else Dim(size) for c, size in zip(sites, tensor.shape, strict=True))


def _why(labels: Labels, values: Mapping[str, Value], states: Mapping[bool, Analysis]) -> str:
    unsupported = sorted(states[False].unsupported)
    if unsupported:
        return f"these operators have no rule and fix what they touch: {', '.join(unsupported)}."
    return "every channel reaches an input or an output of the model. A prunable model has at least two layers."
