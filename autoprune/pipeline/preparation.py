"""The stages before a search: units, latency table, dense model, order of channels."""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.config import RunConfig
from autoprune.device.target import differences
from autoprune.evaluation import DenseModel, Evaluator
from autoprune.latencies import TimeUnit
from autoprune.pipeline.channel_order import make_dense_model
from autoprune.pipeline.cost_model import CostModel, reachable_costs
from autoprune.pipeline.dense import trained_dense, untrained
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.events import ORDER, Events
from autoprune.pipeline.expected_work import derived_effort
from autoprune.pipeline.measurer import DeviceMeasurer, Measurer
from autoprune.pipeline.metric import doubt_metric
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.tables import latency_table, stand_in_table
from autoprune.pipeline.time_limit import planned_effort
from autoprune.pipeline.time_watch import watch_time, watch_trials
from autoprune.pipeline.units import check_units, decide_form, note_short_sums, note_space
from autoprune.pipeline.warm_start import take_files
from autoprune.pruning.vocabulary import maps_of
from autoprune.records import SearchSpace
from autoprune.runfolder import RunFolder
from autoprune.search.effort import Effort
from autoprune.search.strategies import JOINT
from autoprune.task.base import Task


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Results of the stages before the search. Later stages take those that they need."""

    space: SearchSpace
    costs: CostModel
    dense_model: DenseModel
    dense_score: float
    effort: Effort
    deployment: Deployment
    schedule: str = "one-shot"

    def evaluator(self) -> Evaluator:
        """Return the evaluator of trials in this process."""
        return Evaluator(
            dense_model=self.dense_model,
            predict_ms=self.costs.predict_ms,
            latency_source="predicted" if self.costs.knows_latency else "none",
            schedule=self.schedule,
        )


def prepare(
    config: RunConfig, folder: RunFolder, task: Task, events: Events, measurer: Measurer | None = None
) -> Prepared:
    """Run every stage before the search; each takes its result from the folder when an earlier call finished it.

    Latency does not depend on weights, so budgets are checked before anything is trained.
    """
    module, structure = untrained(config, folder, task, events)
    space_file = SpaceFile.read(config, structure)
    check_units(structure, space_file, events)
    decide_form(structure, folder, events)
    measurer = measurer or DeviceMeasurer.of(config)
    space_file.require_target(measurer.target)
    space_file.require_zeros(config.schedule)
    space_file.require_widths(config.scores)
    take_files(config, folder, task, structure, space_file, measurer.target, events)
    table_s = watch_time(events, config, task, structure, space_file.scanned(), module, folder)
    if config.needs_latency or folder.table.exists():
        table = latency_table(config, folder, structure, space_file, measurer, events, max_seconds=table_s)
        space = space_file.of_table(table)
    else:
        space = space_file.without_table(treated=measurer.target.treats_layers)
        table = stand_in_table(folder, structure, space, measurer, config.seed, events)
    if config.strategy not in JOINT:
        space = space.with_dense_layers()
    note_space(space, space_file.name, events)
    note_short_sums(space, table.target, events)
    costs = reachable_costs(structure, table, space, config.parsed_budgets())
    watch_trials(events, config, task, structure, costs, space, module, folder)
    maps = maps_of(module.state_dict())
    module.load_state_dict(trained_dense(config, folder, task, events, maps).state_dict())
    events.stage(ORDER)
    dense_model = make_dense_model(config, folder, task, module, structure, events)
    score = dense_model.score(module)
    latency = TimeUnit.of([costs.dense_ms]).shown(costs.dense_ms)
    events.note(f"dense: {task.metric_name} {score:.4f} on validation data, {latency} measured")
    doubt_metric(dense_model, score, space, events)
    effort = planned_effort(events, derived_effort(config, task), folder)
    foreign = tuple(differences(measurer.target.fingerprint(), table.target))
    deployment = Deployment(
        folder=folder, dense_model=dense_model, measurer=measurer, seed=config.seed, foreign=foreign
    )
    return Prepared(
        space=space, costs=costs, dense_model=dense_model, dense_score=score, effort=effort, deployment=deployment,
        schedule=config.schedule,
    )  # fmt: skip
