"""(policy, fidelity, seed) -> measurement: prune, repair, briefly fine-tune, score."""

from autoprune.evaluation.calibration_examples import RECONSTRUCTION_EXAMPLES
from autoprune.evaluation.costs import additive_costs, cost_matrix, sizes
from autoprune.evaluation.dense_model import DenseModel
from autoprune.evaluation.evaluator import Evaluator, EvaluatorFactory

__all__ = [
    "RECONSTRUCTION_EXAMPLES",
    "DenseModel",
    "Evaluator",
    "EvaluatorFactory",
    "additive_costs",
    "cost_matrix",
    "sizes",
]
