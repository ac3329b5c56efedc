"""How a run fine-tunes its models, where the task does not say: found once, by a short test on a repaired model."""

from __future__ import annotations

from dataclasses import replace

from autoprune.evaluation import DenseModel
from autoprune.manifest import Manifest
from autoprune.pipeline.baselines import uniform_baselines
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.events import RECIPE, Events
from autoprune.runfolder import RunFolder, read_json
from autoprune.search.explore import Search
from autoprune.training.recipe_search import RecipeChoice, find_recipe
from autoprune.training.sample_passes import SamplePasses


def with_recipe(
    dense_model: DenseModel, plan: Search, costs: CostModel, folder: RunFolder, events: Events
) -> DenseModel:
    """Return the dense model with a recipe for fine-tunings; one that a test finds is kept in the run folder.

    A search that began without such a test goes on with the recipe it began with.
    """
    if dense_model.task.finetune_recipe is not None or dense_model.task.finetune is not None or folder.has_results:
        return dense_model
    events.stage(RECIPE)
    choice = _tested(dense_model, plan, costs)
    Manifest(folder).write_json(folder.recipe, choice.to_json(), sources=[folder.dense, folder.order])
    events.note(_line(choice))
    return replace(dense_model, task=replace(dense_model.task, finetune_recipe=choice.recipe))


def recipe_passes(folder: RunFolder) -> dict[str, float]:
    """Return the sample passes of the test as `recipe`; nothing where there was none."""
    if not folder.recipe.exists():
        return {}
    return {"recipe": read_json(folder.recipe, "sample_passes")["sample_passes"]}


def _tested(dense_model: DenseModel, plan: Search, costs: CostModel) -> RecipeChoice:
    """Test recipes on the uniform policy of the first budget that has one."""
    policy = next(iter(uniform_baselines(plan, costs).values()), plan.space.smallest())
    cut, passes = dense_model.cut(policy), SamplePasses()
    model = cut.shrink()
    dense_model.repair(model, cut, passes)
    form, zeros = dense_model.to_train(dense_model.fitted(model, policy, passes), policy, "one-shot")
    choice = find_recipe(
        form,
        dense_model.task,
        teacher=dense_model.module,
        held_out=dense_model.held_out,
        seed=plan.run_seed,
        relative_cost=dense_model.relative_cost(policy),
        terms=zeros.terms,
    )
    return replace(choice, sample_passes=choice.sample_passes + passes.total)


def _line(choice: RecipeChoice) -> str:
    recipe, last = choice.recipe, choice.tests[-1]
    verdict = "" if choice.improves else "; no recipe improved on the repair, this one harms least"
    return (
        f"fine-tuning by {recipe.optimizer}, rate {recipe.lr:g}: held-out loss {choice.repaired_loss:.4g} after the "
        f"repair, {last.held_out_loss:.4g} after {last.samples} examples ({choice.sample_passes:,.0f} sample passes)"
        + verdict
    )
