"""`recover`: prune and reconstruct any model from a few batches of its inputs, without a task."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import PolicyError, UsageError
from autoprune.model.acceptance import as_inputs
from autoprune.model.outputs import Selector
from autoprune.pruning import channel_order, keep_best, score_units
from autoprune.records import Policy
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.moments import collect_moments
from autoprune.recovery.surgeon import surgeon_order
from autoprune.structure import analyze, in_form

Batch = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""Inputs of a model, as its `forward` takes them."""


def recover(
    model: nn.Module,
    policy: Policy | Mapping[str, int],
    batches: Iterable[Batch],
    *,
    scores: str = "l2",
    native: bool | None = None,
    outputs: Selector = None,
) -> nn.Module:
    """Shrink a trained model to a policy and repair it without labels or gradients: least squares and batch norms.

    All batches together pass through the model at once; 256 examples are usually enough.

    Args:
        model: the dense model, which is not changed.
        policy: widths by unit name; units that are left out keep their full width.
        batches: inputs of a few hundred training examples, batch dimension first and without targets: tensors, or
            tuples or dicts of tensors, as `forward` takes them.
        scores: how channels are ranked (`l2`, ...) in units that cannot be reconstructed, because a layer that reads
            them cannot.
        native: the form of the result, as in `prune`.
        outputs: the part of the model's outputs that counts, as in `prune`.

    Returns:
        A new, smaller module in evaluation mode, whose parameters have the same names.

    Raises:
        UsageError: there are no batches, or they do not fit each other or the model.
        PolicyError: the model has no such unit, or the unit no such width.
        StructureError: the model cannot be traced.
        TaskError: activations of the dense model are not finite.
        TrialError: activations of the pruned model are not finite.

    Source:
        Channel pruning by regression, He et al. 2017 (https://arxiv.org/abs/1707.06168); the order of channels is that
        of the optimal brain surgeon, Hassibi and Stork 1993.

    Example:
        >>> import torch, autoprune
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        >>> smaller = autoprune.recover(model, {"0": 8}, [torch.randn(256, 8)])
        >>> [tuple(weight.shape) for name, weight in smaller.named_parameters() if name.endswith("weight")]
        [(8, 8), (4, 8)]
    """
    joined = _joined(batches)
    inputs = as_inputs(joined)
    _check(model, inputs)
    structure = analyze(model, _first(joined), outputs)
    given = policy.widths if isinstance(policy, Policy) else policy
    unknown = given.keys() - structure.full_widths.keys()
    if unknown:
        names = ", ".join(structure.full_widths)
        raise PolicyError(f"the model has no unit {', '.join(sorted(unknown))}; it has {names}")
    wanted = Policy(space_id=structure.digest(), widths=structure.full_widths | dict(given))
    plain = channel_order(score_units(structure, scores))
    keep = keep_best(surgeon_order(structure, collect_moments(structure, [inputs]), plain), wanted)
    shrunk = structure.shrink(wanted, keep).eval()
    Reconstruction(structure=structure, inputs=inputs).apply(shrunk, structure.masks(wanted, keep))
    return in_form(structure, shrunk, native, given=model)


def _check(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise `UsageError` for a model in float16 or bfloat16, and for more inputs than the model takes."""
    short = {p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    if short:
        raise UsageError(
            f"least squares needs more digits than {', '.join(map(str, short))} has: recover model.float() with inputs "
            "in float32, and convert the result"
        )
    taken = inspect.signature(model.forward).parameters.values()
    if len(inputs) > len(taken) and not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in taken):
        raise UsageError(
            f"a batch holds what the model's forward takes ({len(taken)}), without targets; got {len(inputs)} tensors"
        )


def _joined(batches: Iterable[Batch]) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Join all batches to one; `UsageError` without batches, and for tensors of other names or unequal lengths."""
    if isinstance(batches, Tensor | Mapping):
        raise UsageError(f"batches are a list of batches; got one {type(batches).__name__}, so pass [batch]")
    named = [_tensors(batch) for batch in batches]
    if not named:
        raise UsageError("a reconstruction needs at least one batch of inputs; got none")
    if any(batch.keys() != named[0].keys() for batch in named):
        raise UsageError(f"all batches hold the same inputs; got {sorted({', '.join(map(str, b)) for b in named})}")
    joined = {key: torch.cat([batch[key] for batch in named]) for key in named[0]}
    return joined if all(isinstance(key, str) for key in joined) else tuple(joined.values())


def _tensors(batch: Batch) -> dict[Any, Tensor]:
    """The tensors of a batch by name, or by position."""
    tensors: dict[Any, Tensor] = {}
    if isinstance(batch, Tensor):
        tensors = {0: batch}
    elif isinstance(batch, Mapping | tuple | list):
        tensors = dict(batch if isinstance(batch, Mapping) else enumerate(batch))
    if not tensors or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise UsageError(f"a batch is a tensor, or a tuple or dict of input tensors; got {type(batch).__name__}")
    if len({len(x) if x.dim() else 0 for x in tensors.values()}) != 1:
        raise UsageError(f"the inputs of a batch are equally long; got {[tuple(x.shape) for x in tensors.values()]}")
    return tensors


def _first(inputs: tuple[Tensor, ...] | dict[str, Tensor]) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """One example of each input."""
    return {k: x[:1] for k, x in inputs.items()} if isinstance(inputs, dict) else tuple(x[:1] for x in inputs)
