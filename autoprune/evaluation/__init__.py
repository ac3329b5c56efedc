"""(policy, fidelity, seed) -> measurement: prune, repair, briefly fine-tune, score."""

from autoprune.evaluation.costs import additive_costs, cost_matrix, sizes
from autoprune.evaluation.evaluator import Evaluator, EvaluatorFactory
from autoprune.evaluation.workbench import RECONSTRUCTION_EXAMPLES, Bench

__all__ = [
    "RECONSTRUCTION_EXAMPLES",
    "Bench",
    "Evaluator",
    "EvaluatorFactory",
    "additive_costs",
    "cost_matrix",
    "sizes",
]
