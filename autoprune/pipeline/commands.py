"""The smaller commands: list units, fine-tune a model further or train it from scratch, verify again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.config import load_config
from autoprune.errors import UsageError
from autoprune.evaluation.zeros import TrainedZeros, patterns_of
from autoprune.latency.table import LatencyTable
from autoprune.manifest import Manifest
from autoprune.pipeline.document import from_json, front_document, write_front
from autoprune.pipeline.events import Events, Silent
from autoprune.pipeline.main import dense_entry
from autoprune.pipeline.measurer import Measurer
from autoprune.pipeline.preparation import Prepared, prepare
from autoprune.pipeline.profiles import structure_of
from autoprune.pipeline.run import Candidate, Run
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.verification import load_model, verify_model
from autoprune.profiling.report import latency_shares
from autoprune.run_documents import read_front, read_metrics
from autoprune.structure import Structure
from autoprune.task.batches import length
from autoprune.training.dense import draw_weights, weights_to_bytes
from autoprune.training.finetune import finetune
from autoprune.treatments import Level
from autoprune.trials import FrontModel

_MOST_EPOCHS = 10_000


def described_units(**options: Any) -> tuple[Structure, dict[str, tuple[Level, ...]], dict[str, float]]:
    """Return the structure of a model, the levels of its decisions, and with a table shares of the latency by unit."""
    config = load_config(None, options)
    structure = structure_of(config)
    space_file = SpaceFile.read(config, structure)
    if not config.table:
        return structure, dict(space_file.scanned().levels), {}
    table = LatencyTable.load(Path(config.table))
    return structure, dict(space_file.of_table(table).levels), latency_shares(table, structure)


def verify_again(run_dir: Path, digest: str, measurer: Measurer | None = None) -> dict[str, Any]:
    """Export, compare and measure a model again.

    Args:
        run_dir: folder of the run.
        digest: of the model, or its beginning.
        measurer: measures it (default: the device that the run's target names).

    Returns:
        Its metrics, which are also stored.
    """
    run = Run.open(run_dir)
    with run.folder.locked():
        prepared = prepare(run.config, run.folder, run.open_task(), Silent(), measurer)
        _reverify(run, prepared, run.candidate(digest))
    return read_metrics(run.folder, run.candidate(digest).digest)


def finetune_model(
    run_dir: Path, digest: str, epochs: float, events: Events, measurer: Measurer | None = None
) -> Candidate:
    """Train a model of the run for further epochs with distillation, then export and verify it again.

    The old weights stay until the new ones are done.

    Args:
        run_dir: folder of the run.
        digest: of the model, or its beginning.
        epochs: above 0, over the training data.
        events: receives progress.
        measurer: measures it (default: the device that the run's target names).

    Raises:
        UsageError: when the number of epochs is not above 0, or absurd.
    """
    _check_epochs(epochs)
    run = Run.open(run_dir)
    with run.folder.locked():
        candidate = run.candidate(digest)
        prepared = prepare(run.config, run.folder, run.open_task(), events, measurer)
        _finetune(run, prepared, candidate, epochs, events)
        return _reverify(run, prepared, candidate)


@dataclass(frozen=True, kw_only=True)
class ScratchControl:
    """Scores on validation data: of an architecture that was trained from new weights, and of the run's model."""

    digest: str
    epochs: float
    score: float
    score_of_run: float


def train_from_scratch(run_dir: Path, digest: str, epochs: float, events: Events) -> ScratchControl:
    """Train the architecture of a model of the run from new weights, by the recipe of the dense model.

    A control of what its weights are worth: the same widths, factors, zeros and precisions, no teacher. The run stays
    as it is.

    Args:
        run_dir: folder of the run.
        digest: of the model, or its beginning.
        epochs: above 0, over the training data.
        events: receives progress.

    Raises:
        UsageError: when the number of epochs is not above 0, or absurd; when the task has no recipe for a dense model,
            or no module of the model can draw new weights.

    Source:
        Liu et al. 2019, https://arxiv.org/abs/1810.05270
    """
    _check_epochs(epochs)
    run = Run.open(run_dir)
    candidate, task = run.candidate(digest), run.open_task()
    if task.recipe is None:
        raise UsageError(
            "training from scratch takes the recipe of the dense model; the task has none, because its model comes "
            "with trained weights. Give the task a recipe"
        )
    with run.folder.locked():
        prepared = prepare(run.config, run.folder, task, Silent())
    dense_model, policy, seed = prepared.dense_model, candidate.record.policy, run.config.seed
    model = load_model(dense_model, run.folder, policy)
    score_of_run = dense_model.score(dense_model.as_deployed(model, policy))
    form = dense_model.trained_form(model)
    zeros = TrainedZeros(model, form, patterns_of(policy, dense_model.structure.layers, model), "one-shot")
    if not draw_weights(form, seed):
        raise UsageError(
            f"no module of the model {candidate.digest} can draw new weights: one does it by a method reset_parameters"
        )
    events.stage(f"Training {candidate.digest} from new weights")
    finetune(
        form,
        task,
        samples=max(1, round(epochs * length(task.train_set))),
        seed=seed,
        recipe=task.recipe,
        terms=zeros.terms,
        on_progress=lambda done, total, loss: events.advance(done, total, f"loss {loss:.3f}"),
        from_scratch=True,
    )
    zeros.take_trained()
    score = dense_model.score(dense_model.as_deployed(model, policy))
    events.note(
        f"{task.metric_name} {score:.4f} on validation data from new weights; the model of the run has "
        f"{score_of_run:.4f}. The run stays as it is"
    )
    return ScratchControl(digest=candidate.digest, epochs=epochs, score=score, score_of_run=score_of_run)


def _check_epochs(epochs: float) -> None:
    if not 0 < epochs <= _MOST_EPOCHS:
        raise UsageError(f"fine-tuning takes more than 0 epochs and at most {_MOST_EPOCHS:,}; got {epochs}")


def _finetune(run: Run, prepared: Prepared, candidate: Candidate, epochs: float, events: Events) -> None:
    dense_model, policy = prepared.dense_model, candidate.record.policy
    model = load_model(dense_model, run.folder, policy)
    events.stage(f"Fine-tuning {candidate.digest}")
    score = dense_model.score(dense_model.as_deployed(model, policy))
    result = dense_model.finetune(
        model,
        policy,
        samples=max(1, round(epochs * length(dense_model.task.train_set))),
        seed=run.config.seed,
        schedule=run.config.schedule,
        on_progress=lambda done, total, loss: events.advance(done, total, f"loss {loss:.3f}"),
    )
    if result.undone:
        events.note("no state was better on held-out data than the one before, so the weights stay as they were")
        return
    tuned = dense_model.score(dense_model.as_deployed(model, policy))
    if tuned < score:
        metric = dense_model.task.metric_name
        events.note(
            f"{metric} fell from {score:.4f} to {tuned:.4f} on validation data, so the weights stay as they were"
        )
        return
    folder = run.folder
    weights = folder.model(candidate.digest).weights
    Manifest(folder).write(weights, weights_to_bytes(model), sources=[folder.dense, folder.order])


def _reverify(run: Run, prepared: Prepared, candidate: Candidate) -> Candidate:
    """Verify a model again and put the result in its place in `front.json`."""
    costs, deployment = prepared.costs, prepared.deployment

    def verified(record: FrontModel) -> FrontModel:
        return verify_model(record.policy, record.budget, record.strategy, costs, deployment)

    run.folder.model(candidate.digest).metrics.unlink(missing_ok=True)
    renewed = verified(candidate.record)
    document = read_front(run.folder)
    entries = [*document["models"], *document["others"], *document["baselines"]]
    records = [from_json(entry, document["space_id"]) for entry in entries]
    records = [verified(record) if record.digest == renewed.digest else record for record in records]
    models = list({(r.digest, r.budget, r.strategy): r for r in records}.values())
    dense = dense_entry(prepared.dense_score, document["dense"]["test_score"], prepared.dense_model, costs)
    metric = prepared.dense_model.task.metric_name
    front = front_document(
        models, dense, metric=metric, table=costs.table, cost=costs.compared, foreign=deployment.foreign
    )
    write_front(run.folder, document | front)
    return dataclasses.replace(candidate, run=Run(run.folder, run.task), record=renewed)
