"""What can change: units found on the exported graph, the exact sizes of every policy, and really smaller models."""

from autoprune.structure.build import analyze
from autoprune.structure.capture import module_tensors
from autoprune.structure.geometry import Dim, Operator
from autoprune.structure.module import GraphModel, Input, PrunedTo
from autoprune.structure.native import native
from autoprune.structure.structure import Fixed, Structure

__all__ = [
    "Dim", "Fixed", "GraphModel", "Input", "Operator", "PrunedTo", "Structure", "analyze", "module_tensors", "native",
]  # fmt: skip
