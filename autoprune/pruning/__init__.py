"""Which channels go: scores of channels, rankings, `prune` (scores, then shrink), and the table of units."""

from autoprune.pruning.calibration import Calibration
from autoprune.pruning.cut import Cut
from autoprune.pruning.listing import shares, units
from autoprune.pruning.prune import prune
from autoprune.pruning.ranking import channel_order, global_shares, keep_best, widths_of_shares
from autoprune.pruning.rates import WEIGHT_RANKINGS, zero_shares
from autoprune.pruning.scores import SCORES, score_units
from autoprune.pruning.weight_scores import WEIGHT_SCORES, score_weights
from autoprune.pruning.weights import prunable_weights, zeros

__all__ = [
    "SCORES",
    "WEIGHT_RANKINGS",
    "WEIGHT_SCORES",
    "Calibration",
    "Cut",
    "channel_order",
    "global_shares",
    "keep_best",
    "prunable_weights",
    "prune",
    "score_units",
    "score_weights",
    "shares",
    "units",
    "widths_of_shares",
    "zero_shares",
    "zeros",
]
