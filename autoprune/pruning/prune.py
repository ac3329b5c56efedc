"""`prune` = scores + shrink: a new, really smaller module; the dense model is untouched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from autoprune.errors import UsageError
from autoprune.pruning.ranking import channel_order, global_widths, keep_best, round_width
from autoprune.pruning.scores import Calibration, score_units
from autoprune.records import Policy
from autoprune.structure import GraphModel, analyze


def prune(
    model: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    keep: float = 0.5,
    multiple_of: int = 8,
    scores: str = "l2",
    ranking: str = "local",
    calibration: Calibration | None = None,
    choose: Callable[[str], bool] | None = None,
) -> GraphModel:
    """Keep a share of the channels of every unit and return a new module that trains, evaluates and exports.

    Args:
        model: any module that `torch.export` can trace; it is not changed.
        example_inputs: tensors with the batch dimension first.
        keep: share of channels kept, above 0 and at most 1.
        multiple_of: widths are rounded to the nearest multiple.
        scores: how channels are ranked, a key of `autoprune.pruning.SCORES`.
        ranking: `local` keeps the share in every unit; `global` ranks all channels together.
        calibration: data for the scores that need it (`taylor`, `activation`).
        choose: which units take part, by name (default: all).

    Raises `StructureError` for a model that cannot be traced or has nothing to prune, `ProofError` when the result
    would not compute the same, `UsageError` for a bad argument.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"the share of kept channels is above 0 and at most 1; got {keep}")
    if ranking not in ("local", "global"):
        raise UsageError(f"the ranking is `local` or `global`; got {ranking!r}")
    structure = analyze(model, example_inputs)
    values = score_units(structure, scores, calibration)
    chosen = {name: found for name, found in values.items() if choose is None or choose(name)}
    if ranking == "global":
        widths = global_widths(chosen, keep, multiple_of)
    else:
        widths = {name: round_width(keep * len(found), len(found), multiple_of) for name, found in chosen.items()}
    policy = Policy(space_id=structure.digest(), widths=structure.full_widths | widths)
    return structure.shrink(policy, keep_best(channel_order(values), policy))
