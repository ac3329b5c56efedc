"""States of the objects of a training as plain values, so that a training that was killed can go on.

A plain value is a number, a text, `None`, a tensor, or a list or dict of plain values: all that `torch.load` reads
with `weights_only=True`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import torch


class Resumable:
    """An object whose state during a training is that of some attributes: plain values, generators, or `Resumable`s."""

    STATE: ClassVar[tuple[str, ...]] = ()
    """Names of these attributes."""

    def state(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {name: _plain(getattr(self, name)) for name in self.STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Take on a state that `state` returned."""
        for name in self.STATE:
            setattr(self, name, _restored(getattr(self, name), state[name]))


def _plain(value: Any) -> Any:
    if isinstance(value, Resumable):
        return value.state()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, list | tuple | deque):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value.detach() if isinstance(value, torch.Tensor) else value


def _restored(present: Any, value: Any) -> Any:
    """Return a plain value in the type of the present one."""
    if isinstance(present, torch.Generator):
        present.set_state(value.cpu())
        return present
    if isinstance(present, Resumable):
        present.restore(value)
        return present
    if isinstance(present, list) and present and isinstance(present[0], Resumable):
        return [_restored(one, each) for one, each in zip(present, value, strict=True)]
    return deque(value, maxlen=present.maxlen) if isinstance(present, deque) else value
