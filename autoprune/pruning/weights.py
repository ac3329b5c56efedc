"""The weights that masks, penalties and schedules act on, and a table of those that are zero."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import fx, nn

from autoprune.errors import StructureError, UsageError
from autoprune.pruning.vocabulary import MappedEmbedding
from autoprune.structure import GraphModel

COLUMNS = ("name", "shape", "weights", "zeros", "share", "zero_filters", "zero_inputs")

_TABLES = (nn.Embedding, nn.EmbeddingBag, MappedEmbedding)
_LOOKS_UP = (
    torch.ops.aten.embedding.default, torch.ops.aten.embedding_bag.default, torch.ops.aten.embedding_bag.padding_idx,
)  # fmt: skip


def prunable_weights(model: nn.Module, choose: Callable[[str], bool] | None = None) -> dict[str, nn.Parameter]:
    """Return the weights of layers by name: matrices and filters, once each where several layers share one.

    Args:
        model: in floating point.
        choose: says by name which parameters of two or more dimensions take part. The default takes those that are
            called `weight` (also `weight_hh_l0`, `in_proj_weight`), and leaves out embeddings, positions and norms.

    Raises:
        StructureError: the model is quantized.
        UsageError: nothing is left to prune.
    """
    require_floating(model)
    tables = lookup_tables(model)
    wide = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    chosen = choose or (lambda name: "weight" in name.rpartition(".")[2] and name not in tables)
    weights = {name: p for name, p in wide.items() if chosen(name)}
    if not weights:
        raise UsageError(
            "sparse weights are parameters of two or more dimensions; none was chosen. This model has "
            + (", ".join(list(wide)[:5]) or "none")
        )
    return weights


def lookup_tables(model: nn.Module) -> set[str]:
    """Return the names of the parameters whose rows a model looks up: they multiply nothing."""
    tables = {
        f"{name}.weight".removeprefix(".") for name, module in model.named_modules() if isinstance(module, _TABLES)
    }
    if isinstance(model, GraphModel):
        looked_up = [node.args[0] for node in model.captures[False].graph.nodes if node.target in _LOOKS_UP]
        tables |= {str(read.target) for read in looked_up if isinstance(read, fx.Node) and read.op == "get_attr"}
    return tables


def require_floating(model: nn.Module) -> None:
    """Raise `StructureError` for a model whose weights are integers, packed or not, or have no numbers yet."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
            raise StructureError(
                f"masks are for weights that have numbers; {name!r} is lazy or on the meta device. Call the model "
                "once, or load its weights"
            )
    for name, module in model.named_modules():
        packed = "quantized" in type(module).__module__ or hasattr(module, "_packed_params")
        weight = getattr(module, "weight", None)
        if packed or (isinstance(weight, torch.Tensor) and not weight.is_floating_point()):
            raise StructureError(
                f"masks are for weights in floating point; {name or 'the model'} is quantized ({type(module).__name__})"
                ". Make the model sparse first, and quantize it afterwards"
            )


def zeros(model: nn.Module) -> pd.DataFrame:
    """List the zeros of every weight of a model: what a training or a mask removed.

    Args:
        model: in floating point; it is not changed.

    Returns:
        One row for each weight of a layer: its number of `weights` and of `zeros`, the `share` of zeros (0 to 1), and
        how many of its filters (along the first dimension) and of its inputs (along the second) are zero as a whole.

    Raises:
        StructureError: the model is quantized.
        UsageError: the model has no weights of two or more dimensions.

    Example:
        >>> import autoprune, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), model[2].weight.data.fill_(1)
        >>> autoprune.zeros(model)[["name", "zeros", "share", "zero_filters", "zero_inputs"]].values.tolist()
        [['0.weight', 3, 0.75, 1, 1], ['2.weight', 0, 0.0, 0, 0]]
    """
    rows = []
    for name, weight in prunable_weights(model).items():
        zero = weight.detach() == 0
        count = int(zero.sum())
        filters, inputs = (int(zero.movedim(dim, 0).flatten(1).all(1).sum()) for dim in (0, 1))
        shape = "x".join(map(str, weight.shape))
        rows.append((name, shape, zero.numel(), count, count / max(zero.numel(), 1), filters, inputs))
    return pd.DataFrame(rows, columns=list(COLUMNS))
