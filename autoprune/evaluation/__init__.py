"""(policy, fidelity, seed) -> measurement: prune, repair, briefly fine-tune, score."""

from autoprune.evaluation.bench import Bench
from autoprune.evaluation.costs import cost_matrix, sizes
from autoprune.evaluation.evaluator import Evaluator, EvaluatorFactory

__all__ = ["Bench", "Evaluator", "EvaluatorFactory", "cost_matrix", "sizes"]
