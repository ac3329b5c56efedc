"""`sparsify`: a sparse copy of a model by one call: what goes, when it goes, and how the rest recovers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprune.errors import UsageError
from autoprune.model.acceptance import unwrap
from autoprune.model.copying import copy_of
from autoprune.pruning.calibration import Calibration
from autoprune.recovery.sparse_job import SparseJob
from autoprune.recovery.sparsify_arguments import read_terms, require_data, require_types, require_valid
from autoprune.recovery.sparsify_data import calibration_of, task_of
from autoprune.sparsity.patterns import Pattern
from autoprune.sparsity.thresholds import Threshold
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.task.recipe import Recipe
from autoprune.training.channel_plan import ChannelPlan, channel_share
from autoprune.training.checkpoint import Checkpoint, digest_of
from autoprune.training.finetune import OnProgress
from autoprune.training.plans import NO_PATTERN, NoPlan, WeightPlan, parse_pattern

_BRIEF_EPOCHS = 1.0


def sparsify(
    model: nn.Module,
    data: Any = None,
    *,
    pattern: str = "sparse:80%",
    schedule: str = "one-shot",
    finetune: str | None = None,
    scores: str | None = None,
    ranking: str | None = None,
    epochs: float = 4.0,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    validation: Any = None,
    allowed_drop: float = 0.01,
    recipe: Recipe | None = None,
    terms: str | Sequence[str] = (),
    choose: Callable[[str], bool] | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """Return a copy of a model with zeros among its weights, or without some of its channels.

    Args:
        model: the trained model in floating point; it is not changed.
        data: a `Task`, or training data of `(inputs..., target)`: a data set or a loader. Without data the weights are
            set to zero and nothing else.
        pattern: `sparse:80%` (80 % of the weights are zero), `2:4` (2 of 4 consecutive inputs are left), with blocks
            `sparse:80%@8x1`, `threshold:0.01` (scores up to it), `mean:1.5` (scores up to 1.5 times their mean in a
            layer), or `channels:50%`, after which the channels are cut. Layers that blocks or groups do not divide
            stay dense. With `none` zeros are those that `terms` make.
        schedule: when they become zero, one of `SCHEDULES`.
        finetune: how the rest recovers, one of `MODES`; `full` with data and `none` without by default.
        scores: what stays: `magnitude`, `taylor`, `fisher`, `hvp`, `wanda`, `gradient`, `random`, or an expression such
            as `0.5*magnitude+0.5*taylor`; for channels a key of `autoprune.pruning.SCORES`.
        ranking: how the share is divided among layers: `lamp` (the default of shares of weights), `global`, `zscore`,
            `erk`, or the same share in each, `local` (the default of all other patterns). `global` with
            `mean:1.5` takes the mean over all layers.
        epochs: of the training, over the training data.
        loss: `loss(outputs, target)` where `data` is not a task. Without one, the copy learns the model's outputs.
        validation: data of the same form that `iterative` and `adaptive` watch; a task has its own.
        allowed_drop: fall of the score on validation data that these schedules allow.
        recipe: of the training; the task's by default.
        terms: penalties and bounds of the training beside those of the recipe, such as `l1:0.001` (see `Recipe.terms`).
        choose: which weights (or, for channels, units) take part, by name.
        seed: of everything.
        on_progress: called as `on_progress(samples_done, samples, loss)`.
        checkpoint: file that keeps the state of the training now and then, and is deleted at the end. The same call
            goes on from it after a kill, and ends in the same weights, bit for bit, as one that was never interrupted.

    Returns:
        A model of the same class, in evaluation mode; `sparse_to` is a `SparseTo`. `autoprune.zeros` lists its zeros.

    Raises:
        UsageError: an argument is not as described, or lacks the data that it needs.
        PolicyError: the pattern cannot be read, or fits no weight.
        StructureError: the model is quantized, or has no channels that can go.

    Example:
        >>> import autoprune, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> sparse = autoprune.sparsify(model, pattern="sparse:75%", ranking="local")
        >>> autoprune.zeros(sparse)["share"].tolist()
        [0.75, 0.75]
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
        >>> loss = torch.nn.functional.cross_entropy
        >>> trained = autoprune.sparsify(model, data, loss=loss, pattern="2:4", schedule="gradual", epochs=1)
        >>> trained.sparse_to.share_of_zeros
        0.5
    """
    mode = ("none" if data is None else "full") if finetune is None else finetune
    require_types(
        model, pattern=pattern, schedule=schedule, finetune=mode, scores=scores, ranking=ranking, epochs=epochs,
        allowed_drop=allowed_drop, recipe=recipe, terms=terms, choose=choose, seed=seed, on_progress=on_progress,
        checkpoint=checkpoint,
    )  # fmt: skip
    require_valid(schedule, mode, data, validation, epochs, allowed_drop)
    require_data(model, data, scores, pattern)
    read = read_terms(terms, pattern, schedule, mode, scores, ranking)
    task = task_of(unwrap(model), data, loss, validation)
    job = SparseJob(
        dense=copy_of(unwrap(model)).eval(),
        task=task,
        schedule=schedule,
        mode=mode,
        samples=max(1, round((_BRIEF_EPOCHS if mode == "brief" else epochs) * length(task.train_set))) if task else 0,
        recipe=recipe,
        terms=read,
        seed=seed,
        allowed_drop=allowed_drop,
        watched=isinstance(data, Task) or validation is not None,
        on_progress=on_progress,
    )
    said = {"pattern": pattern, "scores": scores, "ranking": ranking, "epochs": epochs, "terms": list(read)}
    job.checkpoint = None if checkpoint is None else _opened(Path(checkpoint), job, said, choose)
    made = job.run(
        plan_of(pattern, schedule, scores, ranking, choose, calibration_of(task, scores or "", seed)), pattern
    )
    if job.checkpoint is not None:
        job.checkpoint.remove()
    return made


def _opened(path: Path, job: SparseJob, said: Mapping[str, Any], choose: Callable[[str], bool] | None) -> Checkpoint:
    """Return the file that keeps the state of a job, checked against all that its result depends on."""
    call = {
        "schedule": job.schedule,
        "finetune": job.mode,
        "samples": job.samples,
        "recipe": str(job.recipe),
        "seed": job.seed,
        "allowed_drop": job.allowed_drop,
        "weights": digest_of(job.dense),
        "examples": length(job.task.train_set) if job.task is not None else 0,
        "chosen": [name for name, _ in job.dense.named_parameters() if choose is None or choose(name)],
        **said,
    }
    return Checkpoint(path, call)


def plan_of(
    pattern: str,
    schedule: str,
    scores: str | None,
    ranking: str | None,
    choose: Callable[[str], bool] | None = None,
    calibration: Calibration | None = None,
) -> WeightPlan | ChannelPlan | NoPlan:
    """Return what goes in the end; `PolicyError` or `UsageError` for texts that cannot be read or contradict."""
    if pattern == NO_PATTERN:
        return NoPlan()
    share = channel_share(pattern)
    given: Mapping[str, Any] = {"choose": choose, "calibration": calibration or Calibration()}
    if share is not None:
        return ChannelPlan(share=share, scores=_or(scores, "l2"), ranking=_or(ranking, "local"), **given)
    parsed = parse_pattern(pattern)
    if schedule in ("set", "rigl") and isinstance(parsed, Threshold):
        raise UsageError(f"{schedule} keeps the number of zeros, which {pattern} does not say; take sparse:80% or N:M")
    usual = "lamp" if isinstance(parsed, Pattern) and parsed.share else "local"
    return WeightPlan(pattern=parsed, scores=_or(scores, "magnitude"), ranking=_or(ranking, usual), **given)


def _or(text: str | None, usual: str) -> str:
    return usual if text is None else text
