"""Outputs and gradients of two forms of one model on the same random parameters and inputs, in float64.

A form is the user's own module, or the graph module that was captured from it. Random factors (dropout, stochastic
depth) take their expected value and other random numbers start from one seed, so that both forms draw the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.model.copying import copy_of
from autoprune.model.outputs import plain
from autoprune.structure.capture import module_tensors, quiet
from autoprune.structure.proof import output_difference, randomize
from autoprune.structure.references import InFloat64

aten = torch.ops.aten
GRADIENT_TOLERANCE = 1e-5
"""Largest allowed difference of a parameter's gradient, relative to its largest entry."""
_SMALLEST_GRADIENT = 1e-7
"""Gradients below this share of the model's largest one are rounding, as those of biases before batch norms are."""


@dataclass(frozen=True)
class Pass:
    """One pass of a model: floating and other output tensors, and gradients by parameter (zeros: none arrived)."""

    outputs: Sequence[Tensor]
    gradients: Mapping[str, Tensor]


class Form:
    """A float64 copy of a model that runs on given parameters; the model is left as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy_of(model).double()

    def run(
        self, state: Mapping[str, Tensor], inputs: Sequence[Tensor], *, training: bool, gradients: bool = True
    ) -> Pass:
        """Run the model, and its backward pass from random numbers at its outputs.

        Args:
            state: all parameters and buffers by name.
            inputs: in the order of `forward`.
            training: the mode.
            gradients: whether the backward pass is wanted.
        """
        fill(self.module, state)
        self.module.zero_grad(set_to_none=True)
        with in_float64(), torch.set_grad_enabled(gradients):
            outputs = plain(self.module.train(training)(*(x.clone() for x in inputs)))
            tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
            if gradients:
                _backward([t for t in tensors if t.requires_grad])
        parameters = self.module.named_parameters(remove_duplicate=False) if gradients else ()
        arrived = {n: torch.zeros_like(p) if p.grad is None else p.grad.detach() for n, p in parameters}
        return Pass([t.detach() for t in tensors], arrived)


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64, and without chance (see `ExpectedNoise`)."""
    with quiet(), _Float64Default(), torch.random.fork_rng(devices=[]), ExpectedNoise():
        yield


def random_state(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random numbers for the floating-point tensors of a model's state dict, and its other tensors as they are.

    Tied tensors get equal numbers; buffers that are not saved hold constants of `forward` and stay.
    """
    saved = set(model.state_dict())
    drawn: dict[int, Tensor] = {}
    for name, tensor in module_tensors(model).items():
        if id(tensor) not in drawn:
            random = tensor.is_floating_point() and name in saved
            new = randomize(torch.empty(tensor.shape), generator) if random else tensor.detach().clone()
            drawn[id(tensor)] = new.double() if new.is_floating_point() else new
    return {name: drawn[id(tensor)] for name, tensor in module_tensors(model).items()}


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrite the tensors of a model that `state` names; hooks of `load_state_dict` do not run."""
    with torch.no_grad():
        for name, tensor in module_tensors(model).items():
            if name in state:
                tensor.copy_(state[name])


def same_outputs(expected: Pass, other: Pass) -> float:
    """Return the largest relative difference of outputs; infinite where numbers of tensors or shapes differ."""
    a, b = ([t.double() for t in one.outputs] for one in (expected, other))
    if not a or [t.shape for t in a] != [t.shape for t in b]:
        return float("inf")
    return output_difference(a, b)


def differing_gradients(expected: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the parameters whose gradients differ; those that one side lacks are left out."""
    largest = max((float(g.abs().max()) for g in (*expected.values(), *gradients.values()) if g.numel()), default=0.0)
    return [name for name, g in gradients.items() if name in expected and _differ(expected[name], g, largest)]


def _differ(a: Tensor, b: Tensor, largest: float) -> bool:
    if a.shape != b.shape:
        return True
    if not a.numel() or ((a.isnan() == b.isnan()).all() and a.isnan().any()):
        return False
    scale = max(float(a.abs().max()), float(b.abs().max()), _SMALLEST_GRADIENT * largest)
    return not float((a - b).abs().max()) <= GRADIENT_TOLERANCE * scale


def custom_functions(model: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    """Return the names of the `torch.autograd.Function`s that a pass of a model runs, and of its backward hooks."""
    with quiet(), torch.random.fork_rng(devices=[]):
        outputs = plain(copy_of(model).train()(*inputs))
    leaves = (leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))
    pending, seen, names = [leaf.grad_fn for leaf in leaves], set[int](), dict[str, None]()
    nodes: list[Any] = []
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        nodes.append(node)  # held, because the identity of a freed node is taken again
        seen.add(id(node))
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
        pending += [following for following, _ in node.next_functions]
    hooks = [f"a backward hook of {name or 'the model'}" for name, m in model.named_modules() if m._backward_hooks]
    tensor_hooks = [f"a hook of {name}" for name, p in model.named_parameters() if p._backward_hooks]
    return [
        *(f"the autograd function {name}" for name in names if name != "BackwardHookFunction"),
        *hooks,
        *tensor_hooks,
    ]


class ExpectedNoise(InFloat64):
    """Float64, in which a random factor is its expected value and other random operators start from a seed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator without chance."""
        if func is aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        if func is aten.bernoulli.p:
            return torch.full_like(args[0], args[1])
        if func is aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _backward(outputs: Sequence[Tensor]) -> None:
    """Run the backward pass from the same random numbers for outputs of the same shapes."""
    generator = torch.Generator().manual_seed(1)
    floating = [t for t in outputs if t.is_floating_point()]
    starts = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in floating]
    if floating:
        torch.autograd.backward(floating, starts)


class _Float64Default:
    """Tensors that `forward` makes are in float64."""

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self._before)
