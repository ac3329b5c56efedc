"""Layers of a pruned model that write what layers of the dense model write, in the channels that are left."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.pruning import Cut
from autoprune.structure import Structure
from autoprune.training.layer_outputs import LayerOutputs


def paired_layers(structure: Structure, cut: Cut, dense: nn.Module, form: nn.Module) -> LayerOutputs | None:
    """Return the convolutions and linear layers that a pruned model shares with the dense one.

    Left out are layers that run several times, those that write an output of the model, and those that a cut removed.

    Args:
        structure: of the dense model.
        cut: of the pruned model.
        dense: the dense model in the user's own classes.
        form: the pruned model as it is trained.

    Returns:
        The layers; `None` where the model shares none, such as one that is trained as a graph.
    """
    whole, trained = dict(dense.named_modules()), dict(form.named_modules())
    nodes = {node.name: node for node in structure.captures[False].graph.nodes}
    masks = cut.masks
    channels: dict[str, int] = {}
    kept: dict[str, dict[int, torch.Tensor]] = {}
    for layer in structure.layers:
        name = layer.name.rpartition(".")[0]
        module = whole.get(name)
        runs = isinstance(trained.get(name), nn.Linear | _ConvNd | nn.Sequential)  # the last: two factors of a weight
        if len(layer.nodes) != 1 or not runs or not isinstance(module, nn.Linear | _ConvNd):
            continue
        node = nodes[layer.nodes[0]]
        sides = {dim: masks.get(("eval", node.name, dim)) for dim in range(1, node.meta["val"].dim())}
        if any(user.op == "output" for user in node.users) or any(
            s is not None and not s.any() for s in sides.values()
        ):
            continue
        channels[name] = 1 if isinstance(module, _ConvNd) else -1
        kept[name] = {d: torch.from_numpy(np.flatnonzero(s)) for d, s in sides.items() if s is not None and not s.all()}
    return LayerOutputs(channels=channels, kept=kept) if channels else None
