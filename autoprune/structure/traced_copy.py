"""Which modules of a copy of the user's model must compute a part of the pruned graph, and these parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from autoprune.errors import StructureError
from autoprune.structure.boundaries import Boundaries, Mark, boundaries, values_of_nodes
from autoprune.structure.capture import module_tensors
from autoprune.structure.deadline import Deadline, OutOfTimeError
from autoprune.structure.input_sizes import resized
from autoprune.structure.module import GraphModel
from autoprune.structure.native_proof import Form, fill, in_float64
from autoprune.structure.structure import Structure
from autoprune.structure.traced_parts import Nodes, Part, has_own_forward, part_of
from autoprune.structure.wrong_modules import wrong_modules

_LARGEST_SHARE = 0.5
"""Share of the modules of a model that one graph may hold: with more, the graph module is the plainer form."""
_MOST_NAMED = 3
"""Modules that a note names."""


def parts_of_wrong(
    structure: Structure,
    own: Form,
    graph: Form,
    state_of_dense: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    inputs: Sequence[Sequence[Tensor]],
    deadline: Deadline,
) -> dict[str, dict[bool, Part]]:
    """Return for every module whose own forward is wrong at pruned sizes the parts of both modes, by path.

    Four passes of the dense model and of its graph tell where modules lie in it, once for a structure; two passes of
    the copy and of the pruned graph tell which modules are wrong.

    Args:
        structure: of the dense model.
        own: a copy of the dense model with pruned tensors.
        graph: the pruned graph module.
        state_of_dense: random tensors of the dense model by name.
        state: the same tensors, cut.
        inputs: of two sizes.
        deadline: of the whole work on own classes.

    Raises:
        StructureError: a wrong module has no part, most of the model would be one, or the deadline has passed.
    """
    pruned: Any = graph.module
    assert isinstance(pruned, GraphModel)
    tensors = module_tensors(pruned)
    parts: dict[bool, dict[str, Part]] = {}
    wrong = dict[str, None]()
    for training in (False, True):
        known = _known(structure, state_of_dense, inputs, training, deadline)
        parts[training] = dict(_parts(own.module, pruned.captures[training].graph, tensors, known, deadline))
        values = _Values(graph, state, inputs[0], training, parts[training].values())
        wrong |= dict.fromkeys(_wrong_in_mode(own, state, inputs[0], training, parts[training], values, known))
        outermost = [path for path in wrong if not any(path.startswith(f"{other}.") for other in wrong)]
        _require_small_parts(own.module, outermost)
    if any(path not in parts[mode] for path in outermost for mode in parts):
        raise StructureError("no module alone is wrong")
    return {path: {mode: parts[mode][path] for mode in parts} for path in outermost}


def _wrong_in_mode(
    own: Form,
    state: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    training: bool,
    parts: Mapping[str, Part],
    values: _Values,
    known: Boundaries,
) -> list[str]:
    def run() -> None:
        fill(own.module, state)
        with in_float64(), torch.no_grad():
            own.module.train(training)(*(x.clone() for x in inputs))

    of_inputs = {path: values.of_inputs(known, path) for path in parts}
    try:
        return wrong_modules(own.module, parts, of_inputs, values.outputs, run)
    except StructureError:
        raise
    except Exception as error:  # the forward of the model itself may raise anything
        raise StructureError(f"the model's own forward fails outside of its modules ({error})") from error


def _require_small_parts(model: nn.Module, paths: Sequence[str]) -> None:
    if not paths:
        raise StructureError("no module alone is wrong")
    modules = sum(1 for _ in model.modules())
    if max(sum(1 for _ in model.get_submodule(path).modules()) for path in paths) > _LARGEST_SHARE * modules:
        raise StructureError("most of the model would be one graph")


def _known(
    structure: Structure,
    state: Mapping[str, Tensor],
    inputs: Sequence[Sequence[Tensor]],
    training: bool,
    deadline: Deadline,
) -> Boundaries:
    """Return the boundaries of a structure's modules, which are computed once; so is the reason why there are none."""
    if training not in structure.boundaries:
        model, graph, others = Form(structure.model), Form(structure.cut({})), _at_other_sizes(structure)
        try:
            structure.boundaries[training] = boundaries(model, graph, state, inputs, others, training, deadline)
        except OutOfTimeError:  # another policy may leave more time for it
            raise
        except StructureError as error:
            structure.boundaries[training] = str(error)
    known = structure.boundaries[training]
    if isinstance(known, str):
        raise StructureError(known)
    return cast("Boundaries", known)


def _at_other_sizes(structure: Structure) -> Iterator[list[Tensor]]:
    """Yield inputs whose free sizes are fractions and multiples of the examples', different ones for each size.

    The second size differs by a few entries, which features at a lower resolution do not show.
    """
    sizes = structure.captures[False].sizes
    symbols = sizes.symbols()
    numbered = [(s, size, k) for k, (s, size) in enumerate(symbols.items())]
    choices = [
        {s: size * (k + 2) // (k + 1) for s, size, k in numbered},
        {s: size * (k + 3) // (k + 2) + 8 * k + 12 for s, size, k in numbered},
        {s: 2 * size + 20 * k + 4 for s, size, k in numbered},
        {s: max(2, size * (k + 1) // (k + 2)) for s, size, k in numbered},
        {s: size * (k + 2) for s, size, k in numbered},
    ]
    for values in choices if symbols else ():
        if all(condition.holds(symbols | values) for condition in sizes.conditions):
            shapes = sizes.shapes_at(values)
            yield [resized(x, shape) for x, shape in zip(structure.example_inputs, shapes, strict=True)]


def _parts(
    model: nn.Module, graph: fx.Graph, tensors: Mapping[str, Tensor], known: Boundaries, deadline: Deadline
) -> Iterator[tuple[str, Part]]:
    nodes = Nodes(graph)
    for path in known.calls:
        deadline.check()
        try:
            if has_own_forward(model.get_submodule(path)):
                yield path, part_of(path, nodes, tensors, known)
        except (AttributeError, StructureError):  # in a removed module, or without a part of its own
            continue


class _Values:
    """Values of a pruned graph: marks of all nodes, and the outputs of modules."""

    def __init__(
        self, graph: Form, state: Mapping[str, Tensor], inputs: Sequence[Tensor], training: bool, parts: Iterable[Part]
    ) -> None:
        names = {name for part in parts for name in part.output_names}
        self._marks, self.outputs = values_of_nodes(graph, state, inputs, training, names)

    def of_inputs(self, known: Boundaries, path: str) -> list[Mark | None]:
        """Return the marks that the inputs of a module should have; `None` for other leaves and unknown ones."""
        marks: list[Mark | None] = []
        for values in zip(*(call.inputs for call in known.calls[path]), strict=True):
            names = known.holding(values) if isinstance(values[0], Mark) else []
            marks.append(next((self._marks[name] for name in names if name in self._marks), None))
        return marks


def note_of(model: nn.Module, paths: Mapping[str, object]) -> str:
    """Return the sentence for users about modules that compute a part of the graph."""
    classes = Counter(type(model.get_submodule(path)).__name__ for path in paths)
    counted = ", ".join(f"{count} {name}" for name, count in classes.items())
    some = ", ".join(list(paths)[:_MOST_NAMED]) + (", ..." if len(paths) > _MOST_NAMED else "")
    return f"the forward of modules that hold dense sizes is their part of the traced graph: {counted} ({some})"
