"""`autoprune sparsify`: a sparse copy of a task's model in a file, with its scores and its zeros."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from autoprune.config import RunConfig
from autoprune.export.weights import save
from autoprune.pipeline.events import Events
from autoprune.pipeline.run import open_task
from autoprune.pruning import zeros
from autoprune.recovery.sparse_job import SparseTo
from autoprune.recovery.sparsify import plan_of, sparsify
from autoprune.recovery.sparsify_arguments import read_terms, require_valid
from autoprune.task.base import Task
from autoprune.training.dense import load_dense, train_dense
from autoprune.training.scoring import evaluate, predict_outputs


def write_sparse_copy(config: RunConfig, out: Path, events: Events, **options: Any) -> dict[str, Any]:
    """Make a task's model sparse, write it to a safetensors file, and return what came out.

    Args:
        config: names the task, its model and data, trained weights and the seed.
        out: file of `autoprune.save` to write; `OUT.part` beside it keeps the state of the training until it ends.
        events: receives progress.
        **options: of `autoprune.sparsify`.

    Returns:
        The file, the task's metric, scores of both models, and the zeros of each weight.
    """
    task = open_task(config)
    _require_valid(task, **options)  # before a dense model is trained
    dense = _dense(task, config, events)
    events.stage(f"Sparse training ({options.get('schedule', 'one-shot')})")
    model = sparsify(
        dense,
        task,
        seed=config.seed,
        on_progress=lambda done, total, loss: events.advance(done, total, f"loss {loss:.3f}"),
        checkpoint=out.with_name(f"{out.name}.part"),
        **options,
    )
    save(model, out)
    return _document(task, dense, model, out)


def _require_valid(
    task: Task, *, pattern: str, schedule: str, finetune: str | None, scores: str | None, ranking: str | None,
    terms: Sequence[str], epochs: float, allowed_drop: float,
) -> None:  # fmt: skip
    """Raise the errors of `sparsify` that need no model."""
    mode = finetune or "full"
    require_valid(schedule, mode, task, None, epochs, allowed_drop)
    read_terms(terms, pattern, schedule, mode, scores, ranking)
    plan_of(pattern, schedule, scores, ranking)


def _dense(task: Task, config: RunConfig, events: Events) -> nn.Module:
    """Return the trained model: from the file that was given, or trained by the task's recipe."""
    if config.dense:
        return load_dense(task, Path(config.dense))
    events.stage("Dense model")
    return train_dense(
        task,
        seed=config.seed,
        on_progress=lambda done, total, loss: events.advance(done, total, f"loss {loss:.3f}"),
    )


def _document(task: Task, dense: nn.Module, model: nn.Module, out: Path) -> dict[str, Any]:
    about: SparseTo = vars(model)["sparse_to"]
    dense_outputs = predict_outputs(dense, task, task.test_set)
    test, dense_test = (
        evaluate(each, task, task.test_set, dense_outputs=dense_outputs).score for each in (model, dense)
    )
    table: pd.DataFrame = zeros(model)
    return {
        "file": str(out),
        "file_bytes": out.stat().st_size,
        "metric": task.metric_name,
        "pattern": about.pattern,
        "schedule": about.schedule,
        "finetune": about.finetune,
        "terms": list(about.terms),
        "share_of_zeros": about.share_of_zeros,
        "score": about.score,
        "dense_score": about.dense_score,
        "test_score": test,
        "dense_test_score": dense_test,
        "sample_passes": about.sample_passes,
        "weights": table.to_dict(orient="records"),
    }
