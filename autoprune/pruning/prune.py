"""`prune`: score the channels of every unit and return a new, really smaller module."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

from torch import nn

from autoprune.errors import UsageError, unknown_name
from autoprune.model.acceptance import ExampleInputs
from autoprune.model.outputs import Selector
from autoprune.pruning.calibration import Calibration
from autoprune.pruning.ranking import RANKINGS, channel_order, global_shares, keep_best, widths_of_shares
from autoprune.pruning.scores import score_units
from autoprune.records import Policy
from autoprune.structure import analyze, in_form


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    keep: float = 0.5,
    multiple_of: int = 8,
    scores: str = "l2",
    ranking: str = "local",
    calibration: Calibration | None = None,
    choose: Callable[[str], bool] | None = None,
    native: bool | None = None,
    outputs: Selector = None,
) -> nn.Module:
    """Keep a share of the channels of every unit and return a new module that trains, evaluates and exports.

    Args:
        model: any module that `torch.export` can trace; it is not changed.
        example_inputs: tensors with the batch dimension first, in the order of `forward` or by its keywords.
        keep: share of channels kept, above 0 and at most 1; units of groups and within groups together keep it.
        multiple_of: widths are rounded to the nearest multiple.
        scores: how channels are ranked, a key of `autoprune.pruning.SCORES` or an expression such as
            `0.5*l2+0.5*taylor`, a weighted mean of ranks.
        ranking: `local` keeps the share in every unit; `global` ranks all channels together by scores over their mean
            in the unit, `zscore` and `lamp` by other scales (see `autoprune.pruning.ranking.RANKINGS`), and units of
            groups and within groups keep the mean of their shares.
        calibration: data for the scores that need it (`taylor`, `activation`, ...).
        choose: which units take part, by name (default: all).
        native: `None` returns the model's own classes where outputs and gradients are proven equal, and the traced
            graphs otherwise; `True` asks for own classes, `False` for the graphs.
        outputs: the part of the model's outputs that counts (default: all of them): a function of the outputs, or the
            name of an attribute or a key. The pruned model has all outputs; hidden states that others are computed from
            keep their channels only where they count.

    Returns:
        A module of the model's own class, or a `GraphModel`: the traced graphs of both modes. Both have the model's
        parameter names, and `pruned_to.form` ("native" or "graph"), `pruned_to.reason` and `pruned_to.notes`.

    Raises:
        StructureError: the model cannot be traced, has nothing to prune, has no native form that was asked for, or no
            form that computes its gradients.
        ProofError: the result would not compute what the model computes without the removed channels.
        UsageError: an argument is not as described.

    Example:
        >>> import autoprune, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> small = autoprune.prune(model, torch.randn(1, 4), keep=0.5)
        >>> [tuple(parameter.shape) for parameter in small.parameters()]
        [(8, 4), (8,), (2, 8), (2,)]
    """
    _require_valid(keep, ranking, choose)
    structure = analyze(model, example_inputs, outputs)
    values = score_units(structure, scores, calibration)
    chosen = {name: of_unit for name, of_unit in values.items() if choose is None or choose(name)}
    shares = dict.fromkeys(chosen, keep) if ranking == "local" else global_shares(chosen, keep, ranking)
    widths = widths_of_shares(structure, shares, multiple_of)
    policy = Policy(space_id=structure.digest(), widths=structure.full_widths | widths)
    pruned = structure.shrink(policy, keep_best(channel_order(values), policy))
    return in_form(structure, pruned, native, given=model)


def _require_valid(keep: float, ranking: str, choose: object) -> None:
    if not isinstance(keep, Real) or not 0 < keep <= 1:
        raise UsageError(f"the share of kept channels is above 0 and at most 1; got {keep!r}")
    if ranking not in RANKINGS:
        raise unknown_name("ranking", ranking, RANKINGS)
    if choose is not None and not callable(choose):
        raise UsageError(f"`choose` is a function of a unit's name; got {choose!r}. For a list, `names.__contains__`")
