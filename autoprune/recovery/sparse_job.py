"""The work of one call of `sparsify`: make weights zero by a schedule, let the rest recover, and say what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from autoprune.model.copying import copy_of
from autoprune.model.outputs import Selector
from autoprune.pruning.weights import prunable_weights
from autoprune.recovery.batchnorm import recalibrate
from autoprune.recovery.bias_correction import correct_biases
from autoprune.recovery.layer_fitting import FITTING_RUNS
from autoprune.recovery.masked_fit import fit_cut, fit_masked, fitting_inputs
from autoprune.recovery.sparsify_data import calibration_of
from autoprune.structure import in_form
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.task.recipe import Recipe
from autoprune.training.adaptive import Adaptive
from autoprune.training.admm import Admm
from autoprune.training.channel_plan import ChannelPlan
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.dense import draw_weights
from autoprune.training.drop_and_regrow import DropAndRegrow
from autoprune.training.finetune import OnProgress, finetune
from autoprune.training.gradual import Gradual
from autoprune.training.growing_regularization import GrowingRegularization
from autoprune.training.held_out import HeldOut
from autoprune.training.iterative import ROUNDS, train_iteratively
from autoprune.training.mask_schedule import MaskSchedule, OneShot
from autoprune.training.plans import NoPlan, WeightPlan
from autoprune.training.recipe_terms import terms_named
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate, predict_outputs
from autoprune.trials import FORWARD_SHARE

Plans = WeightPlan | ChannelPlan | NoPlan

_WITHOUT_TRAINING = ("none", "bias", "least-squares")


@dataclass(frozen=True, kw_only=True)
class SparseTo:
    """How a model became sparse: what was asked, the share of zeros that it has, its score, and the cost.

    `score` and `dense_score` are those on validation data, `None` without any. `example_inputs` and `outputs` are those
    of the task, by which `save` describes the model.
    """

    pattern: str
    schedule: str
    finetune: str
    terms: tuple[str, ...]
    share_of_zeros: float
    score: float | None
    dense_score: float | None
    sample_passes: float
    example_inputs: Any = field(default=(), repr=False, compare=False)
    outputs: Selector = field(default=None, repr=False, compare=False)


@dataclass(kw_only=True)
class SparseJob:
    """One call of `sparsify`."""

    dense: nn.Module
    task: Task | None
    schedule: str
    mode: str
    samples: int
    recipe: Recipe | None
    terms: tuple[str, ...]
    seed: int
    allowed_drop: float
    watched: bool
    on_progress: OnProgress | None
    checkpoint: Checkpoint | None = None
    passes: SamplePasses = field(default_factory=SamplePasses)

    def run(self, plan: Plans, pattern: str) -> nn.Module:
        """Return the sparse model."""
        model = copy_of(self.dense)
        trains = self.samples and self.mode not in _WITHOUT_TRAINING
        kept = self._trained(model, plan) if trains else self._masked(model, plan)
        share = _share_of_zeros(model)
        if isinstance(plan, ChannelPlan):
            model = self._cut(model, plan, kept)
        score = self.score(model) if self.watched else None
        said = SparseTo(
            pattern=pattern,
            schedule=self.schedule,
            finetune=self.mode,
            terms=self.terms,
            share_of_zeros=share,
            score=score,
            dense_score=self.dense_score if self.watched else None,
            sample_passes=self.passes.total,
            example_inputs=self.task.example_inputs if self.task is not None else (),
            outputs=self.task.outputs if self.task is not None else None,
        )
        object.__setattr__(model, "sparse_to", said)  # `nn.Module` takes attributes of any type, and says otherwise
        return model.eval()

    def score(self, model: nn.Module) -> float:
        """Return the score of a model on validation data."""
        assert self.task is not None
        return evaluate(model, self.task, self.task.val_set, dense_outputs=self.dense_outputs).score

    @cached_property
    def dense_outputs(self) -> Tensor:
        """Outputs of the dense model on validation data."""
        assert self.task is not None
        return predict_outputs(self.dense, self.task, self.task.val_set)

    @cached_property
    def dense_score(self) -> float:
        """Score of the dense model on validation data."""
        return self.score(self.dense)

    def _masked(self, model: nn.Module, plan: Plans) -> list[Tensor]:
        """Set weights to zero without training, and repair the others if wanted."""
        plan.begin(model, self.task)
        kept = plan.kept()
        self.passes.training(1, plan.passes)
        if self.mode == "least-squares" and isinstance(plan, WeightPlan):
            masks = {
                group.name: mask.view(model.get_parameter(group.name).shape)
                for group, mask in zip(plan.groups, kept, strict=True)
            }
            inputs = self._fitting_inputs
            self.passes.forward(fit_masked(model, masks, self._given_task, inputs) * len(inputs[0]))
        _keep_only(plan, kept)
        if self.mode == "bias":
            self._correct_biases(model)
            _keep_only(plan, kept)
        return kept

    def _correct_biases(self, model: nn.Module) -> None:
        calibration = calibration_of(self.task, "wanda", self.seed)
        runs = correct_biases(model, self.dense, [inputs for inputs, _ in calibration.batches])
        self.passes.forward(runs * calibration.examples)
        recalibrate(model, self._given_task, seed=self.seed, passes=self.passes)

    def _cut(self, model: nn.Module, plan: ChannelPlan, kept: list[Tensor]) -> nn.Module:
        """Return the model without the channels that are not kept."""
        structure, policy, channels = plan.cut(kept)
        if self.mode != "least-squares":
            return in_form(structure, structure.shrink(policy, channels).eval(), None, given=model)
        model.load_state_dict(self.dense.state_dict())
        inputs = self._fitting_inputs
        self.passes.forward(FITTING_RUNS * len(inputs[0]))
        return in_form(structure, fit_cut(structure, policy, channels, inputs), None, given=model)

    @cached_property
    def _fitting_inputs(self) -> tuple[Tensor, ...]:
        return fitting_inputs(calibration_of(self.task, "wanda", self.seed))

    @property
    def _given_task(self) -> Task:
        assert self.task is not None
        return self.task

    def _trained(self, model: nn.Module, plan: Plans) -> list[Tensor]:
        """Train a model by the schedule; return which groups are kept."""
        assert self.task is not None
        if self.schedule == "iterative":
            return train_iteratively(
                plan, model, self.task, train=self._train, score=self.score, least=self._least, passes=self.passes,
                checkpoint=self.checkpoint,
            )  # fmt: skip
        schedule = self._schedule(plan)
        if self.mode == "scratch":
            plan.begin(model, self.task)
            schedule = _Fixed(plan, plan.kept())
            draw_weights(model, self.seed)
        self._train(model, schedule)
        return schedule.kept

    def _train(self, model: nn.Module, schedule: MaskSchedule) -> None:
        task = self.task
        assert task is not None
        teacher = None if self.mode == "scratch" and task.trains else self.dense
        held_out = HeldOut.of(task, self.dense_outputs) if self.watched and teacher is not None else None
        recipe = self.recipe or (task.recipe if self.mode == "scratch" else None)
        finetune(
            model,
            task,
            samples=max(1, self.samples // (ROUNDS if self.schedule == "iterative" else 1)),
            seed=self.seed,
            recipe=recipe,
            teacher=teacher,
            passes=self.passes,
            held_out=held_out,
            terms=[*terms_named(self.terms), schedule],
            on_progress=self.on_progress,
            checkpoint=self.checkpoint,
            from_scratch=self.mode == "scratch",
        )

    @property
    def _least(self) -> float:
        return self.dense_score - self.allowed_drop

    def _schedule(self, plan: Plans) -> MaskSchedule:
        if self.schedule == "adaptive":
            assert self.task is not None
            passes = FORWARD_SHARE * length(self.task.val_set)
            return Adaptive(plan, score=self.score, least=self._least, passes_of_score=passes)
        makers: Mapping[str, Callable[[Any], MaskSchedule]] = {
            "one-shot": OneShot,
            "gradual": Gradual,
            "set": lambda each: DropAndRegrow(each, by_gradient=False),
            "rigl": lambda each: DropAndRegrow(each, by_gradient=True),
            "admm": Admm,
            "growing": GrowingRegularization,
        }
        return makers[self.schedule](plan)


def _keep_only(plan: Plans, kept: list[Tensor]) -> None:
    for group, mask in zip(plan.groups, kept, strict=True):
        group.keep_only(mask)


def _share_of_zeros(model: nn.Module) -> float:
    weights = prunable_weights(model).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


class _Fixed(OneShot):
    """A mask that is known: the model's weights do not say any more what stays."""

    def __init__(self, plan: Plans, kept: list[Tensor]) -> None:
        super().__init__(plan)
        self._known = kept

    def begin(self, model: nn.Module, task: Task) -> None:
        """Apply the mask; the plan has begun."""
        del model, task
        self.kept = self._known
        self.finish()
