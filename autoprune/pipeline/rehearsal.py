"""A few short trials before the search, to know how long trials take: weights do not matter to that."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from autoprune.config import RunConfig
from autoprune.errors import AutopruneError
from autoprune.evaluation import DenseModel, Evaluator
from autoprune.evaluation.calibration_examples import reconstruction_of
from autoprune.pipeline.executors import trial_threads
from autoprune.records import Policy, SearchSpace
from autoprune.search.trial_times import TrialTimes
from autoprune.structure import ModelForm, Structure
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.trials import FORWARD_SHARE, Fidelity, TrialSpec

_MOST_SECONDS = 3.0
"""Where the dense model takes longer than this to answer the validation data, its passes are most of every trial."""

_FEW_STEPS, _LEAST_STEPS, _MOST_STEPS = 2, 8, 64
_TRAINING_SECONDS = 0.25
"""Steps of the two fine-tunings whose difference tells the time of a pass: the longer one trains about so long."""

_EXAMPLES = 64
"""Examples that are scored."""


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """Times of trials, and the sample passes of a model of half the widths as a share of the dense model's."""

    times: TrialTimes
    half_cost: float = 0.5


def rehearsed_times(
    config: RunConfig,
    task: Task,
    structure: Structure,
    space: SearchSpace,
    dense: nn.Module,
    form: ModelForm | None,
    usual: TrialTimes,
) -> Rehearsed:
    """Return the times of trials by short ones of half the widths, or `usual` where these take long or fail.

    The processor time of this process is compared, and multiplied by how busy the machine is: differences of a few
    milliseconds would drown in the work of others.

    Args:
        config: how many threads trials have, and whether layers are reconstructed.
        task: its data and recipe.
        structure: of the dense model.
        space: whose treatments the trials have, too.
        dense: the dense model, trained or not.
        form: of pruned models.
        usual: the times without a rehearsal.
    """
    if task.finetune is not None or task.train_step is not None:  # code of the user's may keep what it is called with
        return Rehearsed(times=usual)
    if FORWARD_SHARE * usual.pass_s * length(task.val_set) > _MOST_SECONDS:
        return Rehearsed(times=usual)
    batch = task.tuning_recipe.batch_size
    if usual.pass_s * batch * (_FEW_STEPS + _LEAST_STEPS) > _MOST_SECONDS:
        return Rehearsed(times=usual)
    steps = math.ceil(_TRAINING_SECONDS / max(usual.pass_s * batch, 1e-9))
    samples = batch * min(max(steps, _LEAST_STEPS), _MOST_STEPS)
    few_samples = _FEW_STEPS * batch
    try:
        with trial_threads(config.worker_threads):
            trials = _Rehearsal.of(config, task, structure, space, dense, form)
            trials(few_samples)  # fills caches and is not timed
            runs = [trials(0), trials(samples), trials(samples), trials(few_samples)]
    except AutopruneError:  # an untrained model may well have outputs that are not finite
        return Rehearsed(times=usual)
    load = max(1.0, sum(run.wall_s for run in runs) / max(sum(run.cpu_s for run in runs), 1e-9))
    return Rehearsed(times=_times(runs, samples, few_samples, load, usual.pass_s), half_cost=trials.cost)


def _times(runs: Sequence[_Run], samples: int, few_samples: int, load: float, usual_s: float) -> TrialTimes:
    """Return the times that explain a trial without fine-tuning, two of `samples` and one of `few_samples`.

    The teacher answers once for both of `samples`, and anew for the other.
    """
    cheap, first, again, few = runs
    teach_s = min(max(first.cpu_s - again.cpu_s, 0.0) / samples, 2 * usual_s)
    few_s = few.cpu_s - teach_s * few_samples
    pass_s = max(again.cpu_s - few_s, 0.0) / max(again.passes - few.passes, 1.0) or usual_s
    return TrialTimes(
        fixed_s=load * max(cheap.cpu_s - pass_s * cheap.passes, 0.0),
        tuned_fixed_s=load * max(few_s - pass_s * few.passes, 0.0),
        pass_s=load * pass_s,
        teach_s=load * teach_s,
        rehearsed=True,
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Costs of a trial: seconds, seconds of the processor (no more than those that passed), and sample passes."""

    wall_s: float
    cpu_s: float
    passes: float


class _Rehearsal:
    """Trials of one policy, by the number of samples that they are fine-tuned on."""

    def __init__(self, evaluator: Evaluator, policy: Policy, seed: int) -> None:
        self._evaluator, self._policy, self._seed = evaluator, policy, seed
        self.cost = evaluator.dense_model.relative_cost(policy)

    @classmethod
    def of(
        cls,
        config: RunConfig,
        task: Task,
        structure: Structure,
        space: SearchSpace,
        dense: nn.Module,
        form: ModelForm | None,
    ) -> _Rehearsal:
        order = {unit.name: list(range(unit.width)) for unit in structure.units}
        reconstruction = reconstruction_of(task, structure, config.seed) if config.reconstruct else None
        dense_model = DenseModel(
            task=task, module=dense, structure=structure, order=order, reconstruction=reconstruction, form=form
        )
        policy = space.at([len(levels) // 2 if name not in space.layer_names else 0 for name, levels in _levels(space)])
        return cls(Evaluator(dense_model=dense_model, predict_ms=lambda _: 0.0), policy, config.seed)

    def __call__(self, samples: int) -> _Run:
        fidelity = Fidelity(name="rehearsal", rung=0, finetune_samples=samples, val_samples=_EXAMPLES)
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        spec = TrialSpec(number=0, policy=self._policy, fidelity=fidelity, seed=self._seed)
        passes = self._evaluator(spec).sample_passes
        wall_s = time.perf_counter() - begun_s
        return _Run(wall_s=wall_s, cpu_s=min(time.process_time() - begun_cpu_s, wall_s), passes=passes)


def _levels(space: SearchSpace) -> list[tuple[str, tuple]]:
    return [(name, tuple(space.levels[name])) for name in space.searched]
