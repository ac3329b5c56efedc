"""Nested data: tensors inside tuples, lists and dicts."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def tensors_in(parts: Any) -> list[Tensor]:
    """Return all tensors in nested data."""
    return [leaf for leaf in pytree.tree_leaves(parts) if isinstance(leaf, Tensor)]
