"""The learning rate of a training whose terms keep weights at zero."""

import pytest
import torch
from torch import nn

from autoprune.sparsity.patterns import Pattern
from autoprune.structure import analyze
from autoprune.training.channel_plan import ChannelPlan
from autoprune.training.finetune import finetune
from autoprune.training.gradual import Gradual
from autoprune.training.known_masks import KnownMasks
from autoprune.training.mask_schedule import OneShot
from autoprune.training.masked import MaskedWeights
from autoprune.training.optimization import learning_rate
from autoprune.training.plans import WeightPlan
from autoprune.training.recipe_terms import terms_named
from autoprune.training.terms import Step, Term, Terms
from tests.pipeline import tiny


class Rates(Term):
    """Remembers the rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def after_step(self, step: Step) -> bool:
        self.rates.append(step.rate)
        return False


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 2))


def begun(model: nn.Module, *terms: Term) -> Terms:
    told = Terms(terms)
    told.begin(model, tiny.make_task())
    return told


def half_mask(model: nn.Module) -> dict[str, torch.Tensor]:
    mask = torch.ones_like(model.get_parameter("0.weight"), dtype=torch.bool)
    mask[:, :6] = False
    return {"0.weight": mask}


def test_the_rate_follows_the_density_of_the_whole_model() -> None:
    model = two_layers()
    assert begun(model).rate_scale == 1
    assert begun(model, MaskedWeights(half_mask(model))).rate_scale == pytest.approx((48 / 96) ** -0.5)


def test_a_mask_that_changes_its_places_counts_as_one_that_does_not() -> None:
    model, masks = two_layers(), half_mask(two_layers())
    plan = KnownMasks(masks=masks, patterns={"0.weight": Pattern.parse("sparse:60%")})
    assert begun(model, OneShot(plan)).rate_scale == begun(model, MaskedWeights(masks)).rate_scale


def test_the_rate_rises_while_zeros_come() -> None:
    model = two_layers()
    told = begun(model, Gradual(WeightPlan(pattern=Pattern.parse("sparse:75%"))))
    assert told.rate_scale == 1
    scales = []
    for share in (0.25, 0.5, 1.0):
        told.after_step(share=share, rate=0.1)
        scales.append(told.rate_scale)
    assert 1 < scales[0] < scales[1] < scales[2] == pytest.approx(2)


def test_penalties_and_channels_leave_the_rate() -> None:
    model = tiny.Net()
    assert begun(model, *terms_named(("l1:0.1", "clip:0.5"))).rate_scale == 1
    schedule = OneShot(ChannelPlan(share=0.5))
    told = begun(model, schedule)
    assert any(not bool(kept.all()) for kept in schedule.kept)
    assert told.rate_scale == 1


def test_embeddings_do_not_count() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(1_000, 16), nn.Linear(16, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids).mean(1))

    torch.manual_seed(0)
    own = Words().eval()
    structure = analyze(own, (torch.zeros(2, 3, dtype=torch.long),))
    mask = torch.arange(64).view(4, 16) % 4 == 0
    for model in (own, structure.shrink(structure.dense_policy())):
        assert begun(model, MaskedWeights({"head.weight": mask})).rate_scale == pytest.approx(2)


def test_the_factor_has_a_largest_value() -> None:
    model = nn.Linear(1_000, 10)
    mask = torch.zeros(10, 1_000, dtype=torch.bool)
    assert begun(model, MaskedWeights({"weight": mask})).rate_scale == pytest.approx(10)


def test_the_training_takes_the_scaled_rate_but_not_from_scratch() -> None:
    task = tiny.make_task()
    seen, masked, drawn = Rates(), Rates(), Rates()
    for rates in (seen, masked, drawn):
        model = task.build_model()
        mask = {n: torch.arange(p.numel()).view(p.shape) % 4 == 0 for n, p in model.named_parameters() if p.dim() > 1}
        terms = [rates] if rates is seen else [MaskedWeights(mask), rates]
        finetune(
            model, task, samples=64, seed=0, teacher=task.build_model(), terms=terms, from_scratch=rates is drawn
        )  # fmt: skip
    assert seen.rates[0] == pytest.approx(learning_rate(task.tuning_recipe, 0.5 * 32 / 64))
    assert drawn.rates == seen.rates
    assert masked.rates == pytest.approx([2 * rate for rate in seen.rates], rel=0.05)
