"""The structure of a model: which channels go together, what every width costs, and really smaller models.

`analyze(model, example_inputs)` returns a `Structure`. Its stages, each in the file that is named:

1. `modes`, `capture`: export the model to two ATen graphs, one for training and one for evaluation.
2. `labels`, `rules`: give every index of every parameter dimension a label, and let operators tie labels.
3. `closures`, `units`: group the labels that go together into channels, and interchangeable channels into units.
4. `gates`, `branches`: find the units that may have width 0, because a residual branch goes with them.
5. `geometry`, `operators`, `memory`: write sizes as polynomials in the widths of the units.
6. `shrink`, `rewrites`: cut parameters and graphs to the kept channels.
7. `references`, `proof`: compare the small model with the dense model whose removed entries are zero.

A rule for a further operator goes to `rules`, whose first lines say how to add one.
"""

from autoprune.structure.build import analyze
from autoprune.structure.capture import module_tensors
from autoprune.structure.geometry import Dim, Operator
from autoprune.structure.module import EvaluationGraph, GraphModel, Input, PrunedTo
from autoprune.structure.native import ModelForm, form_at_half, in_form, native, trained_form
from autoprune.structure.structure import Fixed, Structure

__all__ = [
    "Dim", "EvaluationGraph", "Fixed", "GraphModel", "Input", "ModelForm", "Operator", "PrunedTo", "Structure",
    "analyze", "form_at_half", "in_form", "module_tensors", "native", "trained_form",
]  # fmt: skip
