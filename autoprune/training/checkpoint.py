"""The state of a sparse training in a file, from which the same call goes on after it was killed."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import UsageError
from autoprune.files import write_atomic

EVERY_SECONDS = 20.0
"""Least time between two states that are written."""

_SCHEMA = 2


class Checkpoint:
    """A file with the state of each part of one call.

    Args:
        path: of the file; where it is absent, the call begins.
        call: all that the result depends on, JSON.

    Raises:
        UsageError: the file cannot be read, or belongs to another call.
    """

    def __init__(self, path: Path, call: Mapping[str, Any]) -> None:
        self._path = path
        self._call = json.dumps(call, sort_keys=True)
        self._parts = self._read()
        self._written = time.monotonic()

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            held = torch.load(self._path, map_location="cpu", weights_only=True)
            schema, call, parts = held["schema"], held["call"], held["parts"]
        except Exception as error:  # a damaged archive raises any type
            raise UsageError(
                f"{self._path} is no state of a training that can be read; delete it to begin again"
            ) from error
        if schema != _SCHEMA or call != self._call:
            raise UsageError(
                f"{self._path} is the state of a training with other settings, weights or data: repeat that call to go "
                "on with it, delete the file to begin again, or name another one"
            )
        return parts

    def part(self, name: str) -> Any:
        """Return the state of a part that was written last; `None` before the first time."""
        return self._parts.get(name)

    def keep(self, name: str, state: Callable[[], Any], *, now: bool = False) -> None:
        """Write the state of a part, if it is `now` or time for that."""
        if not now and time.monotonic() - self._written < EVERY_SECONDS:
            return
        self._parts[name] = state()
        stream = io.BytesIO()
        torch.save({"schema": _SCHEMA, "call": self._call, "parts": self._parts}, stream)
        write_atomic(self._path, stream.getvalue())
        self._written = time.monotonic()

    def forget(self, name: str) -> None:
        """Leave a part out of what is written next."""
        self._parts.pop(name, None)

    def remove(self) -> None:
        """Delete the file, because the call has ended."""
        self._path.unlink(missing_ok=True)


def digest_of(model: nn.Module) -> str:
    """Return a hash of the names and numbers of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
