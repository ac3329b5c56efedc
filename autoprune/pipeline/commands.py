"""The smaller commands: list units, fine-tune a model further, verify again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from autoprune.config import load_config
from autoprune.errors import RunFolderError, UsageError
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.events import Events, Silent
from autoprune.pipeline.prepare import Setup, place_of, prepare
from autoprune.pipeline.profiles import structure_of
from autoprune.pipeline.run import Candidate, Run
from autoprune.pipeline.tables import space_of
from autoprune.pipeline.verification import from_json, front_document, load_model, verify_model
from autoprune.profiling.report import latency_shares
from autoprune.runfolder import RunFolder, read_json, write_atomic, write_json
from autoprune.structure import Structure
from autoprune.study.copying import copy_studies
from autoprune.study.location import OWN_FILE, SharedStorage, StudyLocation, absolute
from autoprune.study.storage import sole_controller
from autoprune.task.batches import length
from autoprune.training.dense import weights_to_bytes
from autoprune.training.finetune import finetune


def described_units(**options: Any) -> tuple[Structure, dict[str, tuple[int, ...]], dict[str, float]]:
    """Structure of a model, the levels of its units in a search space, and with a table their shares of the latency."""
    config = load_config(None, options)
    structure = structure_of(config)
    table = LatencyTable.load(Path(config.table)) if config.table else None
    latency = latency_shares(table, structure) if table else {}
    return structure, dict(space_of(config, structure, table).levels), latency


def studies_of(run_dir: Path) -> StudyLocation:
    """Where the studies of a run are kept; `RunFolderError` when it has none."""
    run = Run(RunFolder(run_dir))
    if not run.folder.has_study:
        raise RunFolderError(f"the search of {run_dir} has not begun: there are no studies yet")
    return place_of(run.config, run.folder)


def move_studies(run_dir: Path, url: str) -> list[str]:
    """Copy the studies of a run to another storage and let the run go on with them; returns their names.

    The old ones stay where they are. Raises `RunFolderError` when a study is there that holds more.
    """
    run, source = Run(RunFolder(run_dir)), studies_of(run_dir)
    shared = None if url == OWN_FILE else absolute(url)
    target = SharedStorage(shared, run.config.run_id) if shared else run.folder.study
    if source == target:
        raise UsageError(f"the studies of {run_dir} are in {target} already")
    with run.folder.locked(), sole_controller(source), sole_controller(target):
        names = copy_studies(source, target)
        if shared:
            run.folder.write_shared_study(shared, run.config.run_id)
        run.folder.write_config(run.config.model_copy(update={"storage": shared}).model_dump(mode="json"))
        if not shared:
            run.folder.shared_study.unlink(missing_ok=True)
    return names


def verify_again(run_dir: Path, digest: str) -> dict[str, Any]:
    """Export, compare and measure a model anew; returns and stores its metrics."""
    run = Run.open(run_dir)
    with run.folder.locked():
        setup = prepare(run.config, run.folder, Silent(), run.open_task())
        _reverify(run, setup, run.candidate(digest))
    return read_json(run.folder.model(run.candidate(digest).digest).metrics)


def finetune_model(run_dir: Path, digest: str, epochs: float, events: Events) -> Candidate:
    """Train a model of the run for further epochs with distillation, then export and verify it again.

    Raises `UsageError` when the number of epochs is not above 0. The old weights stay until the new ones are done.
    """
    if not epochs > 0:
        raise UsageError(f"fine-tuning takes more than 0 epochs; got {epochs}")
    run = Run.open(run_dir)
    with run.folder.locked():
        return _finetune(run, run.candidate(digest), epochs, events)


def _finetune(run: Run, candidate: Candidate, epochs: float, events: Events) -> Candidate:
    setup = prepare(run.config, run.folder, events, run.open_task())
    task, policy = setup.dense_model.task, candidate.record.policy
    model = load_model(setup.dense_model, run.folder, policy)
    events.stage(f"Fine-tuning {candidate.digest}")
    finetune(
        model,
        task,
        samples=max(1, round(epochs * length(task.train_set))),
        seed=setup.config.seed,
        teacher=setup.dense_model.module,
        relative_cost=setup.dense_model.relative_cost(policy),
        on_progress=lambda done, total, loss: events.advance(done, total, f"loss {loss:.3f}"),
    )
    write_atomic(run.folder.model(candidate.digest).weights, weights_to_bytes(model))
    return _reverify(run, setup, candidate)


def _reverify(run: Run, setup: Setup, candidate: Candidate) -> Candidate:
    """Verify a model anew and put the result in its place in `front.json`."""
    run.folder.model(candidate.digest).metrics.unlink(missing_ok=True)
    old = candidate.record
    new = verify_model(setup, old.policy, old.budget, old.strategy)
    document = read_json(run.folder.front)
    entries = [*document["models"], *document["others"], *document["baselines"]]
    records = [from_json(entry, document["space_id"]) for entry in entries]
    renewed = {r.budget: verify_model(setup, r.policy, r.budget, r.strategy) for r in records if r.digest == new.digest}
    updated = [renewed[r.budget] if r.digest == new.digest else r for r in records]
    updated = list({(r.digest, r.budget, r.strategy): r for r in updated}.values())
    write_json(run.folder.front, document | front_document(setup, updated, document["dense"]["test_score"]))
    return dataclasses.replace(candidate, run=Run(run.folder, run.task), record=new)
