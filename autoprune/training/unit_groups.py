"""Groups of weights that go together: single weights, or everything that writes one channel of a unit.

Where all that writes a channel is zero (filters, biases, scale and shift of norms), the channel is zero, and cutting it
changes nothing.
Every parameter belongs to the groups of one dimension alone, so that groups do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoprune.pruning.calibration import Calibration
from autoprune.pruning.scorer import Scorer
from autoprune.structure import Structure, analyze
from autoprune.task.base import Task


@dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter, the dimension along which groups lie, and the group of each index, int64 (-1: of none)."""

    parameter: nn.Parameter
    dim: int
    channels: Tensor

    def per_group(self, values: Tensor, groups: int) -> Tensor:
        """Sum values in the shape of the parameter over each group: `[groups]`."""
        per_index = values.movedim(self.dim, 0).flatten(1).sum(1) if values.dim() > 1 else values
        channels = self.channels.to(values.device)
        inside = channels >= 0
        return torch.zeros(groups, device=values.device).index_add_(0, channels[inside], per_index[inside].float())

    def spread(self, values: Tensor, outside: float = 1.0) -> Tensor:
        """Return a value `[groups]` for each group in a shape that multiplies the parameter; `outside` elsewhere."""
        channels = self.channels.to(values.device)
        of_index = torch.where(channels >= 0, values[channels.clamp(min=0)], outside)
        shape = [1] * self.parameter.dim()
        shape[self.dim] = -1
        return of_index.view(shape).to(self.parameter.dtype)


@dataclass(frozen=True, kw_only=True)
class Elements:
    """A parameter each of whose entries is a group."""

    parameter: nn.Parameter

    def per_group(self, values: Tensor, groups: int) -> Tensor:
        """Return the values as they are, `[groups]`."""
        return values.reshape(groups).float()

    def spread(self, values: Tensor, outside: float = 1.0) -> Tensor:
        """Return values `[groups]` in the shape of the parameter."""
        del outside
        return values.view(self.parameter.shape).to(self.parameter.dtype)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of the same parameters: the `width` channels of a unit, or the entries of one weight."""

    name: str
    width: int
    parts: tuple[Part | Elements, ...]

    @property
    def single(self) -> bool:
        """Whether the groups are the entries of a weight."""
        return isinstance(self.parts[0], Elements)

    def squares(self) -> Tensor:
        """Return the sum of squares of each group, `[width]`."""
        return torch.stack([part.per_group(part.parameter.detach() ** 2, self.width) for part in self.parts]).sum(0)

    def sizes(self) -> Tensor:
        """Return the number of weights of each group, `[width]`."""
        return torch.stack([p.per_group(torch.ones_like(p.parameter), self.width) for p in self.parts]).sum(0)

    def slopes(self) -> Tensor:
        """Return the sum of squared gradients of each group, `[width]`; zeros where there are none."""
        given = [(part, part.parameter.grad) for part in self.parts if part.parameter.grad is not None]
        sums = [part.per_group(grad**2, self.width) for part, grad in given]
        return torch.stack(sums).sum(0) if sums else torch.zeros_like(self.squares())

    @torch.no_grad()
    def keep_only(self, kept: Tensor) -> None:
        """Set the weights of the groups to zero that are not kept, bool `[width]`, in place."""
        self.scale(kept.to(self.parts[0].parameter.device, torch.float32))

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply each group by its factor `[width]`, in place."""
        for part in self.parts:
            part.parameter.mul_(part.spread(factors))


def unit_groups(model: nn.Module, task: Task) -> list[Groups]:
    """Return the groups of every unit of a model that some parameter writes."""
    return groups_in(analyze(model, task.example_inputs, task.outputs), model)


def groups_in(structure: Structure, model: nn.Module) -> list[Groups]:
    """Return the groups of every unit of a structure that some parameter of its model writes."""
    scorer = Scorer(structure, Calibration())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    groups = []
    for number, unit in enumerate(structure.units):
        parts = tuple(
            Part(parameter=parameters[name], dim=dim, channels=torch.as_tensor(channels))
            for name, dim, channels in scorer.writers(number)
            if name in parameters
        )
        if parts:
            groups.append(Groups(name=unit.name, width=unit.width, parts=parts))
    return groups


def weight_groups(weights: Mapping[str, nn.Parameter]) -> list[Groups]:
    """Return a group for every single number of some weights, by name."""
    return [
        Groups(name=name, width=weight.numel(), parts=(Elements(parameter=weight),)) for name, weight in weights.items()
    ]
