"""The only wiring: stage after stage, each resumable; and the run that comes out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.pipeline.main import search
    from autoprune.pipeline.run import Candidate, Run

__all__ = ["Candidate", "Run", "search"]

# Imported when first used: to look at a finished run takes no torch.
_HOMES = {"Candidate": "autoprune.pipeline.run", "Run": "autoprune.pipeline.run", "search": "autoprune.pipeline.main"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoprune.pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
