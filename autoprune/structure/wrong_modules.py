"""Which modules of a copy of the user's model compute something else than the pruned graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.errors import StructureError
from autoprune.structure.boundaries import Mark
from autoprune.structure.traced_parts import Part


class _OtherInputsError(Exception):
    """A module was called with other inputs than those that the pruned graph has for it."""


def wrong_modules(
    model: nn.Module,
    parts: Mapping[str, Part],
    inputs_of: Mapping[str, Sequence[Any]],
    outputs_of: Mapping[str, Any],
    run: Callable[[], Any],
) -> list[str]:
    """Return the modules whose own forward fails or computes something else, though the modules within do not.

    Each module of `parts` is judged by its own work: what it returns is replaced by what it should return.

    Args:
        model: a float64 copy of the dense model with pruned tensors; its forwards are replaced for this pass.
        parts: by path, of the modules that are judged.
        inputs_of: for the leaves of a module's arguments the marks that they should have, `None` where it is unknown.
        outputs_of: values of the nodes that hold outputs, by name.
        run: runs the model.

    Raises:
        StructureError: what remains wrong is not in a module that is judged.
    """
    wrong: list[str] = []
    guarded = {path: model.get_submodule(path) for path in parts}

    def guard(path: str, own: Callable[..., Any]) -> Callable[..., Any]:
        part = parts[path]
        expected = [outputs_of[name] if name else None for name in part.output_names]

        def forward(*args: Any, **named: Any) -> Any:
            leaves = pytree.tree_leaves((args, named))
            for leaf, mark in zip(leaves, inputs_of[path], strict=False):
                if mark is not None and not (isinstance(leaf, Tensor) and Mark.of(leaf).equals(mark)):
                    raise _OtherInputsError(path)
            try:
                outputs = pytree.tree_leaves(own(*args, **named))
                equal = len(outputs) == len(expected) and all(map(_equal, outputs, expected))
            except Exception:  # a user's forward may raise anything
                equal = False
            if not equal:
                wrong.append(path)
            return pytree.tree_unflatten([_cloned(value) for value in expected], part.result)

        return forward

    for path, module in guarded.items():
        module.__dict__["forward"] = guard(path, module.forward)
    try:
        run()
    except _OtherInputsError as error:
        raise StructureError(f"the model's own forward calls {error} with something else") from error
    finally:
        for module in guarded.values():
            module.__dict__.pop("forward", None)
    return wrong


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return Mark.of(a).equals(Mark.of(b))
    return a is b
