"""`analyze`: from a model to its structure, stage by stage as the package lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import fx, nn

from autoprune.errors import StructureError
from autoprune.model.acceptance import ExampleInputs, accepted, as_inputs
from autoprune.model.adapters import adapted, keywords_of
from autoprune.model.outputs import Selector, with_plain_outputs
from autoprune.structure.analysis import Analysis
from autoprune.structure.branches import find_branches
from autoprune.structure.capture import Capture, module_tensors
from autoprune.structure.geometry import Dim
from autoprune.structure.hidden_units import name_hidden
from autoprune.structure.labels import Labels, Value
from autoprune.structure.modes import capture_both
from autoprune.structure.module import GraphModel
from autoprune.structure.nodes import FREE
from autoprune.structure.operators import find_operators
from autoprune.structure.orders import Lookups, stepped_lookups
from autoprune.structure.outputs import fixed_outputs, with_narrow_outputs
from autoprune.structure.reasons import described, fixed_heads, useless_units, why_nothing, with_advice
from autoprune.structure.recurrent_layers import GATES
from autoprune.structure.rules import pass_labels
from autoprune.structure.structure import Fixed, Structure
from autoprune.structure.units import Channels, Site, find_units

Array = np.ndarray


def analyze(model: nn.Module, example_inputs: ExampleInputs, outputs: Selector = None) -> Structure:
    """Find what can be pruned in a model, which is left as it was.

    Args:
        model: any module that `torch.export` can trace, on the CPU.
        example_inputs: one tensor, tensors in the order of `forward`, or tensors by its keywords; batch first.
        outputs: the part of the model's outputs that counts (default: all of them): a function of the outputs, or the
            name of an attribute or a key. Outputs that it is computed from may then lose channels.

    Returns:
        The units of the model, the sizes of every policy, and `shrink`.

    Raises:
        StructureError: the model is not accepted, cannot be traced, or has nothing to prune.

    Example:
        >>> import numpy as np, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> structure = analyze(model, torch.randn(2, 4))
        >>> [(unit.name, unit.width) for unit in structure.units]
        [('0', 8)]
        >>> structure.params(np.array([[8], [4]]))
        array([58, 30])
    """
    model, inputs = adapted(accepted(model), keywords_of(example_inputs)), as_inputs(example_inputs)
    _require_free_names(model)
    captures = capture_both(with_plain_outputs(model, outputs), inputs)
    captures = {training: with_narrow_outputs(capture, outputs) for training, capture in captures.items()}
    tensors = module_tensors(model)
    for capture in captures.values():
        tensors |= capture.constants
    return _structure_of(model, inputs, captures, tensors)


def _require_free_names(model: nn.Module) -> None:
    """Raise `StructureError` for a part of a model that is called like an attribute of the modules that run graphs."""
    own = {"meta", "captures", "pruned_to", *dir(fx.GraphModule), *dir(GraphModel)}
    taken = sorted(own & {name.partition(".")[0] for name in module_tensors(model)})
    if taken:
        raise StructureError(
            f"the model has a part called `{taken[0]}`, a name that modules of captured graphs (`torch.fx`) use "
            f"themselves. Call it otherwise, such as `{taken[0]}_net`, and rename its keys in old weights"
        )


def _structure_of(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    captures: Mapping[bool, Capture],
    tensors: Mapping[str, torch.Tensor],
) -> Structure:
    """Build the structure of a captured model; `tensors` are its parameters, buffers and constants by name."""
    canonical = _canonical(tensors)
    labels = Labels()
    values = {n: _initial(labels, t) for n, t in tensors.items() if canonical[n] == n and t.is_floating_point()}
    states = _label_graphs(labels, values, captures, tensors, canonical)
    sites = _sites(values, states)
    useless = partial(useless_units, captures, canonical, sites)
    units, channels = find_units(labels, sites, _roles(states), partial(described, captures), useless)
    if not units:
        raise StructureError(
            "nothing in this model can be pruned: " + why_nothing(states, _fixed(labels, values, channels), captures)
        )
    looked_up = _with_steps_looked_up(captures, channels)
    if looked_up is not None:
        constants = {name: tensor for capture in looked_up.values() for name, tensor in capture.constants.items()}
        return _structure_of(model, inputs, looked_up, {**tensors} | constants)
    units = name_hidden(units, captures, canonical)
    full = np.array([unit.width for unit in units], dtype=np.int64)
    branches = find_branches(captures, channels, canonical, len(units))
    units = tuple(replace(unit, removable=number in branches.units) for number, unit in enumerate(units))
    return Structure(
        model=model,
        example_inputs=inputs,
        units=units,
        operators=find_operators(captures[False].graph, channels, full, branches),
        fixed=(
            *_fixed(labels, values, channels),
            *fixed_heads(states[False], channels, [n for n, u in enumerate(units) if u.kind == "head"], canonical),
        ),
        unsupported={op: tuple(nodes) for op, nodes in states[False].unsupported.items()},
        channels=channels,
        canonical=canonical,
        captures=_with_cut_sizes_fixed(captures, channels),
        dims={name: _dims(canonical[name], tensor, channels, full) for name, tensor in tensors.items()},
        branches=branches,
    )


def _with_cut_sizes_fixed(captures: Mapping[bool, Capture], channels: Mapping[Site, Channels]) -> dict[bool, Capture]:
    """Fix the free sizes that share a dimension with channels of a unit: masks of it have the example's length."""
    cut = {site for site, of_site in channels.items() if of_site.of_unit}
    symbols = {
        symbol
        for capture in captures.values()
        for node in capture.graph.nodes
        for dim, names in node.meta.get(FREE, {}).items()
        if (capture.mode, node.name, dim) in cut
        for symbol in names
    }
    why = "forward merges it with channels that can be cut"
    return {mode: replace(c, sizes=c.sizes.with_fixed(symbols, why)) for mode, c in captures.items()}


def _with_steps_looked_up(
    captures: Mapping[bool, Capture], channels: Mapping[Site, Channels]
) -> dict[bool, Capture] | None:
    """Turn slices with a step along channels that can be cut into lookups; `None` where there are none."""
    cut = {site for site, of_site in channels.items() if of_site.of_unit}
    new = {}
    for training, capture in captures.items():
        lookups = Lookups(capture.mode, dict(capture.lookups))
        stepped_lookups(capture.graph, lookups, lambda node, dim, mode=capture.mode: (mode, node, dim) in cut)
        constants = {**capture.constants} | lookups.constants
        new[training] = replace(capture, constants=constants, lookups=lookups.places)
    is_new = any(new[mode].constants.keys() != captures[mode].constants.keys() for mode in new)
    return new if is_new else None


def _label_graphs(
    labels: Labels,
    values: Mapping[str, Value],
    captures: Mapping[bool, Capture],
    tensors: Mapping[str, torch.Tensor],
    canonical: Mapping[str, str],
) -> dict[bool, Analysis]:
    """Pass the labels of parameters through both graphs; `values` are by canonical name."""
    by_name = {name: values[canonical[name]] for name in tensors if canonical[name] in values}
    integers = {name: t.detach() for name, t in tensors.items() if not t.is_floating_point()}
    states = {
        mode: pass_labels(capture.graph, labels, by_name, integers, fixed_outputs(capture))
        for mode, capture in captures.items()
    }
    _fix_unused(labels, values, captures, canonical)
    return states


def _roles(states: Mapping[bool, Analysis]) -> dict[str, list[Array]]:
    """Labels that make a unit one of heads, or of channels inside heads."""
    return {
        "head": [array for state in states.values() for array in state.heads],
        "head_dim": [array for state in states.values() for array in state.head_dims],
    }


def _canonical(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the first name of every tensor: the names of a tied parameter share one."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def _initial(labels: Labels, tensor: torch.Tensor) -> Value:
    """Return a value with a new label for every index of every dimension of a tensor."""
    shape = tuple(tensor.shape)
    return Value.of_dims(shape, {d: [labels.fresh(size)] for d, size in enumerate(shape) if size > 1})


def _fix_unused(
    labels: Labels, values: Mapping[str, Value], captures: Mapping[bool, Capture], canonical: Mapping[str, str]
) -> None:
    """Fix the parameters that no graph reads, because they would look like free units."""
    used = {
        canonical.get(str(n.target)) for c in captures.values() for n in c.graph.nodes if n.op == "get_attr" and n.users
    }
    for name in set(values) - used:
        labels.fix_value(values[name], "is not used in forward")


def _sites(values: Mapping[str, Value], states: Mapping[bool, Analysis]) -> dict[Site, list[Array]]:
    """Return the components of every labelled dimension: of parameters, of nodes in both graphs, and of groups.

    Of a recurrent layer, the first output (the sequence) is taken.
    """
    sites: dict[Site, list[Array]] = {}
    for name, value in values.items():
        for dim in range(len(value.shape)):
            if value.along(dim):
                sites["parameter", name, dim] = value.along(dim)
    for training, state in states.items():
        mode = "train" if training else "eval"
        for node, outputs in state.values.items():
            value = outputs[0] if isinstance(outputs, list) and node.target in GATES else outputs
            if isinstance(value, Value) and node.op == "call_function":
                for component in value.components:
                    dim = int(np.argmax(component.shape))
                    sites.setdefault((mode, node.name, dim), []).append(component.reshape(-1))
        for node, group in state.groups.items():
            sites[mode, node.name, -1] = [group]
    return sites


def _fixed(labels: Labels, values: Mapping[str, Value], channels: Mapping[Site, Channels]) -> tuple[Fixed, ...]:
    """Return the channel dimensions (0 and 1) of weights that no unit touches, with the reason."""
    fixed = []
    for name, value in values.items():
        for dim in (0, 1) if len(value.shape) > 1 else ():
            if value.shape[dim] > 1 and not channels["parameter", name, dim].of_unit:
                reasons = (labels.reason(int(x)) for x in value.along(dim)[0])
                reason = next((r for r in reasons if r), "no consistent set of its indices can go")
                fixed.append(Fixed(parameter=name, dim=dim, size=value.shape[dim], reason=with_advice(name, reason)))
    return tuple(fixed)


def _dims(name: str, tensor: torch.Tensor, channels: Mapping[Site, Channels], full: Array) -> tuple[Dim, ...]:
    sites = [channels.get(("parameter", name, dim)) for dim in range(tensor.dim())]
    return tuple(Dim.of(c, full) if c else Dim(size) for c, size in zip(sites, tensor.shape, strict=True))
