"""Judge a cut by any tool: does it compute what the dense model computes with the removed weights at zero?

No tool is asked what it removed. Every weight gets a value of its own before the cut, so the values that are left tell
which indices were kept. The dense model with all other entries at zero is the reference; normalisations that compute
statistics over channels are given those of the kept channels alone.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

TOLERANCE = 1e-4
"""Largest relative difference of outputs in float32 that counts as equal."""
Inputs = tuple[Tensor, ...]


class Unjudged(Exception):
    """The kept weights cannot be told from the values, or the reference is not defined."""


def with_distinct_weights(model: nn.Module) -> nn.Module:
    """Add seeded noise to every weight and statistic in place, so that no two channels are equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim and tensor.numel() > 1:
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                if name.endswith("running_var"):
                    tensor.add_(0.1 * noise.abs())
                elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
                    tensor.add_(0.02 * noise)
    return model.eval()


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all floating-point tensors among the outputs."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def largest_difference(expected: list[np.ndarray], got: list[np.ndarray]) -> float:
    """Return the largest difference relative to the largest output."""
    scales = [max(1e-12, float(np.abs(a).max())) for a in expected]
    return max(float(np.abs(a - b).max()) / s for a, b, s in zip(expected, got, scales, strict=True))


def kept_indices(dense: np.ndarray, cut: np.ndarray) -> list[np.ndarray]:
    """Return for each dimension the indices of `dense` that are left in `cut`, in rising order.

    Args:
        dense: values before the cut, no two neighbours equal.
        cut: what is left of them.

    Returns:
        An array of indices for each dimension, so that `dense[numpy.ix_(*indices)]` equals `cut`.

    Raises:
        Unjudged: when `cut` is no part of `dense`.
    """
    if dense.ndim != cut.ndim or any(c > d for c, d in zip(cut.shape, dense.shape, strict=True)):
        raise Unjudged(f"a weight of {dense.shape} became {cut.shape}")
    for start in np.argwhere(dense == cut[(0,) * cut.ndim])[:8]:
        indices = [
            _positions(_fibre(dense, start, dim), _fibre(cut, np.zeros_like(start), dim)) for dim in range(cut.ndim)
        ]
        if all(i is not None for i in indices) and np.array_equal(dense[np.ix_(*indices)], cut):  # pyright: ignore
            return indices  # pyright: ignore[reportReturnType]
    raise Unjudged(f"the values of a weight of {cut.shape} are not those of the dense one")


def _fibre(values: np.ndarray, start: np.ndarray, dim: int) -> np.ndarray:
    """Return the values along one dimension through `start`."""
    return values[tuple(slice(None) if d == dim else int(i) for d, i in enumerate(start))]


def _positions(values: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """Return where the wanted values are, each behind the one before."""
    positions: list[int] = []
    for value in wanted:
        first = positions[-1] + 1 if positions else 0
        later = np.flatnonzero(values[first:] == value)
        if not len(later):
            return None
        positions.append(first + int(later[0]))
    return np.array(positions)


def zeroed(dense: Mapping[str, np.ndarray], cut: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the dense weights with every entry at zero that the cut model has no longer; only those that changed."""
    result = {}
    for name, values in cut.items():
        if name not in dense:
            raise Unjudged(f"{name} is not among the dense weights")
        if values.shape != dense[name].shape:
            result[name] = _only_kept(dense[name], values)
    return result


def _only_kept(dense: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Return the dense values with zeros where the cut model has none; groups may keep indices of their own."""
    kept = np.zeros_like(dense)
    try:
        kept[np.ix_(*kept_indices(dense, cut))] = 1
    except Unjudged:
        if dense.ndim < 3:  # weights of grouped convolutions: [out, in of a group, ...]
            raise
        for row in cut:
            at, indices = _row_of(dense, row)
            kept[at][np.ix_(*indices)] = 1
    return dense * kept


def _row_of(dense: np.ndarray, row: np.ndarray) -> tuple[int, list[np.ndarray]]:
    """Return which row of the dense values a row is a part of, and its indices there."""
    for at in dict.fromkeys(np.argwhere(dense == row[(0,) * row.ndim])[:8, 0].tolist()):
        with contextlib.suppress(Unjudged):
            return at, kept_indices(dense[at], row)
    raise Unjudged(f"a row of {row.shape} is not among those of the dense weight")


def exactness(dense: nn.Module, cut: nn.Module, inputs: Inputs) -> str:
    """Return `exact`, `different` or `unjudged: WHY`."""
    before = {name: parameter.detach().numpy() for name, parameter in dense.named_parameters()}
    after = {name: parameter.detach().numpy() for name, parameter in cut.named_parameters()}
    try:
        changed = zeroed(before, after)
        reference = copy.deepcopy(dense)
        parameters = dict(reference.named_parameters())
        with torch.no_grad():
            for name, values in changed.items():
                parameters[name].copy_(torch.from_numpy(values))
        _over_kept_channels(reference, changed)
        with statistics_of_kept_channels():
            expected = [x.numpy() for x in outputs_of(reference, inputs)]
    except Unjudged as error:
        return f"unjudged: {error}"
    got = [x.numpy() for x in outputs_of(cut, inputs)]
    if not all(np.isfinite(x).all() for x in expected):
        return "unjudged: outputs of the reference are not finite"
    return "exact" if largest_difference(expected, got) < TOLERANCE else "different"


def _over_kept_channels(model: nn.Module, changed: Mapping[str, np.ndarray]) -> None:
    """Let modules that compute a root mean square by hand do it over the channels whose weight is not zero."""
    for name, module in list(model.named_modules()):
        by_hand = type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")) and not isinstance(module, nn.RMSNorm)
        if not by_hand or f"{name}.weight" not in changed:
            continue
        small, weight = copy.deepcopy(module), module.get_parameter("weight")
        kept = weight != 0
        small.weight = nn.Parameter(weight[kept].detach())

        def forward(x: Tensor, small: nn.Module = small, kept: Tensor = kept) -> Tensor:
            result = torch.zeros_like(x)
            result[..., kept] = small(x[..., kept])
            return result

        module.forward = forward


@contextlib.contextmanager
def statistics_of_kept_channels() -> Iterator[None]:
    """Let normalisations over channels leave out those whose weight is zero."""
    layer_norm, group_norm, rms_norm = F.layer_norm, F.group_norm, F.rms_norm

    def over_kept(norm: Any, x: Tensor, shape: Any, weight: Tensor | None, bias: Any, *rest: Any) -> Tensor:
        if weight is None or weight.ndim != 1 or bool((weight != 0).all()):
            return norm(x, shape, weight, *bias, *rest)
        kept, result = weight != 0, torch.zeros_like(x)
        biases = [b if b is None else b[kept] for b in bias]
        result[..., kept] = norm(x[..., kept], (int(kept.sum()),), weight[kept], *biases, *rest)
        return result

    def of_layer(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        return over_kept(layer_norm, x, shape, weight, [bias], eps)

    def of_squares(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
        return over_kept(rms_norm, x, shape, weight, [], eps)

    def of_groups(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        if weight is None or bool((weight != 0).all()):
            return group_norm(x, groups, weight, bias, eps)
        kept, result = weight != 0, torch.zeros_like(x)
        if len(set(kept.view(groups, -1).sum(1).tolist())) > 1:
            return group_norm(x, groups, weight, bias, eps)  # other groups than those of the dense model
        result[:, kept] = group_norm(x[:, kept], groups, weight[kept], None if bias is None else bias[kept], eps)
        return result

    F.layer_norm, F.group_norm, F.rms_norm = of_layer, of_groups, of_squares
    try:
        yield
    finally:
        F.layer_norm, F.group_norm, F.rms_norm = layer_norm, group_norm, rms_norm


def trains(model: nn.Module, dense: nn.Module, inputs: Inputs) -> bool:
    """Whether a step of training works, with a finite gradient for every parameter that has one in the dense model."""
    wanted = _gradients(dense, inputs)
    gradients = _gradients(model, inputs)
    return bool(gradients) and all(gradients.get(name, False) for name, finite in wanted.items() if finite)


def _gradients(model: nn.Module, inputs: Inputs) -> dict[str, bool]:
    """Take one step; return for each parameter whether it has a finite gradient."""
    model.train()
    try:
        leaves = [x for x in pytree.tree_leaves(model(*inputs)) if isinstance(x, Tensor) and x.is_floating_point()]
        torch.stack([leaf.float().square().mean() for leaf in leaves]).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(1e-4 * parameter.grad)
        model(*inputs)
    except Exception:  # whatever a tool left behind
        return {}
    finally:
        model.eval()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {name: g is not None and bool(torch.isfinite(g).all()) for name, g in gradients.items()}
