"""Find optimizer and learning rate for fine-tuning a pruned model, where nobody gave a recipe.

Every candidate trains the same repaired model on the same few batches; the loss on held-out examples decides. The best
of a first, very short test are tested again on more batches.

Source: successive halving, Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from autoprune.errors import TrialError
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from autoprune.training.held_out import HeldOut
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.teacher import TeacherMemory
from autoprune.training.terms import Term
from autoprune.trials import FORWARD_SHARE, HELD_OUT_EXAMPLES

_CANDIDATES = (
    *(Recipe(optimizer="sgd", batch_size=32, lr=lr) for lr in (0.08, 0.02, 0.005, 0.00125)),
    *(Recipe(optimizer="adamw", batch_size=32, lr=lr) for lr in (0.002, 0.0005, 0.000125, 0.00003)),
)
_ROUNDS = ((256, 3), (1_024, 1))
"""Examples that each candidate of a round trains on, and how many candidates go on."""


@dataclass(frozen=True, kw_only=True)
class RecipeTest:
    """Held-out loss of a candidate after training on `samples` examples; infinite where training diverged."""

    recipe: Recipe
    samples: int
    held_out_loss: float


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """The chosen recipe, the held-out loss before training, all tests, and what they cost."""

    recipe: Recipe
    repaired_loss: float
    tests: tuple[RecipeTest, ...]
    sample_passes: float

    @property
    def improves(self) -> bool:
        """Whether training by the chosen recipe lowered the held-out loss."""
        return self.tests[-1].held_out_loss < self.repaired_loss

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value, with `null` for infinite losses."""
        tests = [
            {
                "optimizer": test.recipe.optimizer,
                "lr": test.recipe.lr,
                "samples": test.samples,
                "held_out_loss": test.held_out_loss if math.isfinite(test.held_out_loss) else None,
            }
            for test in self.tests
        ]
        return {
            "recipe": asdict(self.recipe),
            "repaired_loss": self.repaired_loss,
            "tests": tests,
            "sample_passes": self.sample_passes,
        }


def expected_passes(task: Task, relative_cost: float) -> float:
    """Return the sample passes of `find_recipe`, at most, without the repair of its model.

    They are 0 where the task says how pruned models are trained.
    """
    if task.finetune_recipe is not None or task.finetune is not None:
        return 0.0
    candidates, trained, asked, tests = len(_CANDIDATES), 0, 0, 0
    for samples, survivors in _ROUNDS:
        trained, asked, tests = trained + candidates * samples, asked + samples, tests + candidates
        candidates = survivors
    held_out = (tests + 1) * min(HELD_OUT_EXAMPLES, length(task.val_set))
    return relative_cost * (trained + FORWARD_SHARE * held_out) + FORWARD_SHARE * asked


def find_recipe(
    model: nn.Module,
    task: Task,
    *,
    teacher: nn.Module,
    held_out: HeldOut,
    seed: int,
    relative_cost: float = 1.0,
    terms: Sequence[Term] = (),
) -> RecipeChoice:
    """Return the recipe that lowers the held-out loss of a repaired model most in a short test.

    Args:
        model: the repaired model; it is left as it is.
        task: training data and loss.
        teacher: the dense model.
        held_out: examples that the candidates are compared on.
        seed: decides the order of the data.
        relative_cost: MACs of `model` as a share of the dense model's.
        terms: of every training, such as the mask of the model's zeros.
    """
    test = _Test(
        model=model, task=task, teacher=teacher, held_out=held_out, seed=seed, relative_cost=relative_cost, terms=terms
    )
    repaired_loss = test.held_out_loss(model, _CANDIDATES[0])
    recipes: Sequence[Recipe] = _CANDIDATES
    tests: list[RecipeTest] = []
    for samples, survivors in _ROUNDS:
        if task.train_step is None:
            test.passes.forward(samples)  # the teacher answers once for all candidates
        tests += sorted((test(recipe, samples) for recipe in recipes), key=lambda each: -each.held_out_loss)
        recipes = [each.recipe for each in tests[-survivors:]]
    return RecipeChoice(
        recipe=recipes[0], repaired_loss=repaired_loss, tests=tuple(tests), sample_passes=test.passes.total
    )


@dataclass(frozen=True, kw_only=True)
class _Test:
    """Trains copies of one model on the same batches and counts what that costs."""

    model: nn.Module
    task: Task
    teacher: nn.Module
    held_out: HeldOut
    seed: int
    relative_cost: float
    terms: Sequence[Term]
    passes: SamplePasses = field(default_factory=SamplePasses)
    memory: TeacherMemory = field(default_factory=TeacherMemory)

    def __call__(self, recipe: Recipe, samples: int) -> RecipeTest:
        trained = copy.deepcopy(self.model)
        try:
            finetune(
                trained,
                self.task,
                samples=samples,
                seed=self.seed,
                recipe=recipe,
                teacher=self.teacher,
                passes=self.passes,
                relative_cost=self.relative_cost,
                memory=self.memory,
                terms=self.terms,
            )
        except TrialError:
            return RecipeTest(recipe=recipe, samples=samples, held_out_loss=math.inf)
        return RecipeTest(recipe=recipe, samples=samples, held_out_loss=self.held_out_loss(trained, recipe))

    def held_out_loss(self, model: nn.Module, recipe: Recipe) -> float:
        self.passes.forward(self.held_out.examples, self.relative_cost)
        return self.held_out.loss(model, recipe)
