"""Whether the metric of a task seems to fall for better models, said before a search keeps the worst of all."""

from __future__ import annotations

import warnings

from autoprune.errors import AutopruneError
from autoprune.evaluation import DenseModel
from autoprune.pipeline.events import Events, Silent
from autoprune.records import SearchSpace
from autoprune.task.metric_direction import doubt
from autoprune.training.scoring import evaluate

_EXAMPLES = 500


def doubt_metric(dense_model: DenseModel, dense_score: float, space: SearchSpace, events: Events) -> None:
    """Note that a task's own metric is higher for the smallest model, not repaired, than for the trained dense one."""
    task = dense_model.task
    if task.metric is None:
        return
    try:
        cut = dense_model.cut(space.smallest()).shrink(prove=False)
        cut_score = evaluate(cut, task, task.val_set, limit=_EXAMPLES).score
    except AutopruneError:  # such a model may give no finite numbers
        return
    text = doubt(task.metric_name, dense_score, cut_score, trained=True)
    if text is not None:
        events.note(f"beware: {text}")
        if isinstance(events, Silent):
            warnings.warn(text, stacklevel=2)
