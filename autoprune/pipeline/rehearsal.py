"""A few short trials before the search, to know how long trials take: weights do not matter to that."""

from __future__ import annotations

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
from autoprune.trials import FORWARD_SHARE, Fidelity, TrialResult, TrialSpec

_MOST_SECONDS = 3.0
"""Where the dense model takes longer than this to answer the validation data, its passes are most of every trial."""

_FEW_STEPS, _MORE_STEPS, _EXAMPLES = 2, 8, 64
"""Steps of the two fine-tunings whose difference tells the time of a pass, and examples that are scored."""


def rehearsed_times(
    config: RunConfig,
    task: Task,
    structure: Structure,
    space: SearchSpace,
    dense: nn.Module,
    form: ModelForm | None,
    usual: TrialTimes,
) -> TrialTimes:
    """Return the times of trials by short ones of half the widths, or `usual` where these take long or fail.

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
        return usual
    if FORWARD_SHARE * usual.pass_s * length(task.val_set) > _MOST_SECONDS:
        return usual
    batch = task.tuning_recipe.batch_size
    if usual.pass_s * batch * (_FEW_STEPS + _MORE_STEPS) > _MOST_SECONDS:
        return usual
    try:
        with trial_threads(config.worker_threads):
            trials = _Rehearsal.of(config, task, structure, space, dense, form)
            trials(0)  # the first of four fills caches and is not timed
            cheap, few, more = trials(0), trials(_FEW_STEPS * batch), trials(_MORE_STEPS * batch)
    except AutopruneError:  # an untrained model may well have outputs that are not finite
        return usual
    pass_s = max(more.seconds - few.seconds, 0.0) / max(more.sample_passes - few.sample_passes, 1.0) or usual.pass_s
    return TrialTimes(
        fixed_s=max(cheap.seconds - pass_s * cheap.sample_passes, 0.0),
        tuned_fixed_s=max(few.seconds - pass_s * few.sample_passes, 0.0),
        pass_s=pass_s,
    )


class _Rehearsal:
    """Trials of one policy, by the number of samples that they are fine-tuned on."""

    def __init__(self, evaluator: Evaluator, policy: Policy, seed: int) -> None:
        self._evaluator, self._policy, self._seed = evaluator, policy, seed

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

    def __call__(self, samples: int) -> TrialResult:
        fidelity = Fidelity(name="rehearsal", rung=0, finetune_samples=samples, val_samples=_EXAMPLES)
        return self._evaluator(TrialSpec(number=0, policy=self._policy, fidelity=fidelity, seed=self._seed))


def _levels(space: SearchSpace) -> list[tuple[str, tuple]]:
    return [(name, tuple(space.levels[name])) for name in space.searched]
