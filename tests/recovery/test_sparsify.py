"""Sparse copies of a model by every schedule, and what cannot be asked."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import autoprune
from autoprune.errors import AutopruneError, PolicyError, StructureError, UsageError
from autoprune.pruning import prunable_weights
from autoprune.recovery.sparsify_arguments import MODES, SCHEDULES
from autoprune.structure import analyze
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from autoprune.training.scoring import evaluate
from autoprune.treatments import Treatment
from tests.task.toys import toy_data, toy_model, toy_task
from tests.training.test_own_trainer import elsewhere, loop

RECIPE = Recipe(batch_size=16, lr=0.1, precision="fp32")
TASK = toy_task(finetune_recipe=RECIPE)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    model = toy_model()
    finetune(model, TASK, samples=400, seed=0)
    return model


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("pattern", "share"), [("sparse:75%", 0.75), ("2:4", 64 / 200)])
def test_every_schedule_ends_in_the_pattern_and_its_score_is_that_of_the_stored_model(
    dense: nn.Module, schedule: str, pattern: str, share: float, tmp_path
) -> None:
    before = copy.deepcopy(dense.state_dict())
    sparse = autoprune.sparsify(dense, TASK, pattern=pattern, schedule=schedule, epochs=2, allowed_drop=0.5)
    about = sparse.sparse_to
    assert about.share_of_zeros == share
    assert about.score > 0.9
    save_file(sparse.state_dict(), tmp_path / "sparse.safetensors")
    again = toy_model()
    again.load_state_dict(load_file(tmp_path / "sparse.safetensors"))
    if schedule == "gradual":
        again = autoprune.load(toy_model, autoprune.save(sparse, tmp_path / "packed.safetensors"))
        assert all(torch.equal(value, sparse.state_dict()[name]) for name, value in again.state_dict().items())
    assert evaluate(again, TASK, TASK.val_set).score == about.score
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    weight = sparse.get_parameter("5.weight")
    assert pattern != "2:4" or bool((weight.view(4, -1, 4).ne(0).sum(-1) == 2).all())


class Recurrent(nn.Module):
    """Reads rows of 4 numbers; its last output is classified."""

    def __init__(self, kind: str, **options: object) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(4, 16, 2, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GRU", {"bidirectional": True}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("LSTM", {})],
)
def test_recurrent_layers_have_zeros_and_come_back_from_a_file(kind: str, options: dict[str, object], tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5, 4)
    model = Recurrent(kind, **options).eval()
    sparse = autoprune.sparsify(model, TensorDataset(x, torch.zeros(64, dtype=torch.int64)), pattern="sparse:75%")
    weights = {name: value for name, value in sparse.state_dict().items() if value.dim() == 2}
    zeros = {name: int((value == 0).sum()) for name, value in weights.items()}
    assert all(zeros.values())
    assert sum(zeros.values()) == round(0.75 * sum(value.numel() for value in weights.values()))
    loaded = autoprune.load(lambda: Recurrent(kind, **options), autoprune.save(sparse, tmp_path / "small.safetensors"))
    assert torch.equal(loaded(x), sparse(x))


def test_convolutions_of_three_dimensions_have_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 2), nn.Flatten(), nn.Linear(32, 2)).eval()
    data = TensorDataset(torch.randn(32, 1, 5, 5, 5), torch.zeros(32, dtype=torch.int64))
    sparse = autoprune.sparsify(model, data, pattern="sparse:50%", ranking="local")
    assert float((sparse.get_parameter("2.weight") == 0).float().mean()) == 0.5
    assert [layer.op for layer in analyze(model, data.tensors[0][:1]).layers] == ["conv3d", "conv3d", "linear"]


def test_transposed_convolutions_have_zeros_but_no_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2), nn.Flatten(), nn.LazyLinear(2))
    data = TensorDataset(torch.randn(32, 1, 5, 5), torch.zeros(32, dtype=torch.int64))
    model.eval()(data.tensors[0])
    sparse = autoprune.sparsify(model, data, pattern="sparse:50%", ranking="local")
    assert float((sparse.get_parameter("2.weight") == 0).float().mean()) == 0.5
    layer = analyze(model, data.tensors[0][:1]).layers[1]
    assert layer.op == "conv_transpose2d"
    assert layer.allows(Treatment.parse("sparse:50%"))
    assert not any(layer.allows(Treatment.parse(pattern)) for pattern in ("2:4", "sparse:50%@4x1", "int8", "rank:2"))


@pytest.mark.parametrize("schedule", ["iterative", "rigl"])
def test_channels_are_cut_and_the_seed_decides(dense: nn.Module, schedule: str) -> None:
    one, again = (
        autoprune.sparsify(dense, TASK, pattern="channels:50%", schedule=schedule, epochs=2, allowed_drop=0.9)
        for _ in range(2)
    )
    assert one.get_parameter("0.weight").shape == (4, 1, 3, 3)
    assert evaluate(one, TASK, TASK.val_set).score == one.sparse_to.score > 0.7
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("trainer", [loop, elsewhere])
@pytest.mark.parametrize("schedule", [*SCHEDULES])
def test_schedules_work_in_trainers_of_the_users_own(dense: nn.Module, schedule: str, trainer) -> None:
    task = toy_task(finetune=trainer)
    scores = "fisher" if schedule == "admm" else None
    sparse = autoprune.sparsify(
        dense, task, pattern="sparse:75%", schedule=schedule, scores=scores, epochs=4, allowed_drop=0.5
    )
    assert sparse.sparse_to.share_of_zeros == 0.75
    assert sparse.sparse_to.score > 0.9


@pytest.mark.parametrize("trainer", [None, loop])
def test_terms_alone_make_zeros_and_go_with_masks(dense: nn.Module, trainer) -> None:
    task = toy_task(finetune=trainer, finetune_recipe=RECIPE)
    alone = autoprune.sparsify(dense, task, pattern="none", terms="l1:0.05", epochs=4)
    assert alone.sparse_to.terms == ("l1:0.05",)
    assert 0.1 < alone.sparse_to.share_of_zeros < 0.9
    assert alone.sparse_to.score > 0.8
    masked = autoprune.sparsify(dense, task, pattern="2:4", terms=["clip:0.1", "growing:0.1"], epochs=1)
    assert masked.sparse_to.terms == ("clip:0.1", "growing:0.1")
    weight = masked.get_parameter("5.weight")
    assert bool((weight.view(4, -1, 4).ne(0).sum(-1) == 2).all())
    assert weight.abs().max() <= 0.1


def test_channels_that_a_term_made_zero_are_cut(dense: nn.Module) -> None:
    sparse = autoprune.sparsify(dense, TASK, pattern="none", terms=["group-lasso:0.3"], epochs=4)
    zero = int(autoprune.zeros(sparse).set_index("name").loc["0.weight", "zero_filters"])
    assert 0 < zero < 8
    small = autoprune.prune(sparse, TASK.example_inputs, keep=1 - zero / 8, multiple_of=1)
    x = torch.rand(5, 1, 6, 6)
    torch.testing.assert_close(small(x), sparse(x))


def test_schedules_that_watch_the_score_stop_where_it_falls_too_much(dense: nn.Module) -> None:
    for schedule in ("iterative", "adaptive"):
        sparse = autoprune.sparsify(
            dense, TASK, pattern="sparse:99%", schedule=schedule, epochs=2, allowed_drop=0.05, ranking="global"
        )
        assert 0 < sparse.sparse_to.share_of_zeros < 0.985
        assert schedule == "adaptive" or sparse.sparse_to.score >= sparse.sparse_to.dense_score - 0.05


def test_what_goes_by_scores_and_rankings(dense: nn.Module) -> None:
    shares = {}
    for scores in ("magnitude", "random", "wanda", "0.5*l2+0.5*taylor"):
        sparse = autoprune.sparsify(dense, TASK, scores=scores, finetune="none", pattern="sparse:50%")
        shares[scores] = sparse.get_parameter("5.weight") == 0
        assert sparse.sparse_to.sample_passes >= (0 if scores in ("magnitude", "random") else 1)
    assert len({tuple(mask.flatten().tolist()) for mask in shares.values()}) == 4
    by_size = autoprune.sparsify(dense, pattern="sparse:50%", ranking="erk")
    assert by_size.sparse_to.share_of_zeros == pytest.approx(0.5, abs=0.02)
    assert len(set(autoprune.zeros(by_size)["share"])) == 2
    weight = dense.get_parameter("5.weight")
    everything = torch.cat([weight.detach().abs().flatten() for weight in prunable_weights(dense).values()])
    of_all = autoprune.sparsify(dense, pattern="mean:0.5", ranking="global")
    share = float((everything <= 0.5 * everything.mean()).double().mean())
    assert of_all.sparse_to.share_of_zeros == pytest.approx(share)
    for pattern, least in (("threshold:0.2", 0.2), ("mean:0.5", 0.5 * float(weight.detach().abs().mean()))):
        cut = autoprune.sparsify(dense, pattern=pattern).get_parameter("5.weight")
        assert torch.equal(cut, torch.where(weight.abs() > least, weight, 0))


def test_modes_of_recovery(dense: nn.Module) -> None:
    scores = {}
    for mode in MODES:
        sparse = autoprune.sparsify(dense, TASK, pattern="sparse:85%", finetune=mode, epochs=6)
        assert sparse.sparse_to.share_of_zeros == pytest.approx(0.85, abs=0.01)
        scores[mode] = sparse.sparse_to.score
    assert scores["none"] <= scores["bias"] <= scores["least-squares"]
    assert scores["full"] >= scores["none"]
    assert scores["scratch"] > 0.7


@pytest.mark.parametrize("pattern", ["sparse:80%", "2:4", "channels:50%"])
def test_least_squares_brings_outputs_back_to_those_of_the_dense_model(dense: nn.Module, pattern: str) -> None:
    x = torch.stack([x for x, _ in TASK.val_set])
    wanted = dense(x).detach()
    given = {"pattern": pattern, "ranking": "local"}
    plain, fitted = (autoprune.sparsify(dense, TASK, finetune=mode, **given) for mode in ("none", "least-squares"))
    errors = [float((model(x) - wanted).detach().square().mean()) for model in (plain, fitted)]
    assert errors[1] < 0.5 * errors[0]
    assert fitted.sparse_to.share_of_zeros == plain.sparse_to.share_of_zeros
    assert fitted.sparse_to.sample_passes > plain.sparse_to.sample_passes
    shares = {each: autoprune.zeros(autoprune.sparsify(dense, ranking=each))["share"].max() for each in (None, "lamp")}
    assert shares[None] == shares["lamp"] > 0.8


def test_data_without_a_task_and_distillation_without_labels(dense: nn.Module) -> None:
    data = DataLoader(toy_data(96, 0), batch_size=16)
    labelled = autoprune.sparsify(
        dense, data, loss=F.cross_entropy, validation=toy_data(32, 1), schedule="iterative", recipe=RECIPE, epochs=2
    )
    taught = autoprune.sparsify(dense, data, recipe=RECIPE, epochs=2)
    for sparse in (labelled, taught):
        assert evaluate(sparse, TASK, TASK.val_set).score > 0.9
    assert labelled.sparse_to.score > 0.9
    assert taught.sparse_to.score is None


def quantized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "gradual"}, UsageError, "the schedule 'gradual' trains: give training data"),
        ({"finetune": "full"}, UsageError, "finetune='full' looks at data: give training data"),
        ({"scores": "taylor"}, UsageError, "the score 'taylor' looks at data: give training data"),
        ({"pattern": "channels:50%"}, UsageError, "give training data, or use prune"),
        ({"data": TASK, "pattern": "channels:100%"}, PolicyError, "channels:100%"),
        ({"schedule": "gradul"}, UsageError, "unknown schedule 'gradul'. Did you mean 'gradual'"),
        ({"finetune": "ful"}, UsageError, "unknown finetune 'ful'"),
        ({"scores": "l3"}, UsageError, "unknown score 'l3'"),
        ({"ranking": "globl"}, UsageError, "unknown ranking 'globl'"),
        ({"pattern": "sparse:100%"}, PolicyError, "above 0 and below 100 %"),
        ({"pattern": "sparse:0"}, PolicyError, "above 0 and below 100 %"),
        ({"pattern": "4:2"}, PolicyError, "N from 1 to M - 1"),
        ({"pattern": "dense"}, PolicyError, "weights are sparse as sparse:80%"),
        ({"pattern": "threshold:-1"}, PolicyError, "a threshold is a number above 0"),
        ({"pattern": "mean:1", "ranking": "lamp"}, UsageError, "has none. Take ranking=.local., or global"),
        ({"pattern": "2:4", "ranking": "global"}, UsageError, "a ranking divides a share of zeros"),
        ({"pattern": "sparse:50%@7x7"}, PolicyError, "divides no weight of the model"),
        ({"data": TASK, "schedule": "rigl", "pattern": "mean:1"}, UsageError, "keeps the number of zeros"),
        ({"data": TASK, "schedule": "gradual", "finetune": "scratch"}, UsageError, "goes with one-shot alone"),
        ({"data": TASK, "epochs": 0}, UsageError, "more than 0 epochs"),
        ({"data": TASK, "allowed_drop": -1}, UsageError, "0 or more"),
        ({"data": toy_data(8, 0), "schedule": "adaptive"}, UsageError, "watches the score on validation data"),
        ({"data": 3}, UsageError, "a Task, a data set or a loader"),
        ({"model": quantized()}, StructureError, "is quantized"),
        ({"model": quantized(), "data": TASK}, StructureError, "is quantized"),
        ({"model": 3}, UsageError, "takes an nn.Module"),
        ({"model": nn.LazyLinear(3)}, StructureError, "'weight' is lazy"),
        ({"model": nn.Linear(2, 2, device="meta")}, StructureError, "'weight' is lazy or on the meta device"),
        ({"model": toy_model().half(), "data": TASK}, UsageError, "trained and scored in float32"),
        ({"data": TensorDataset(torch.ones(0, 2), torch.ones(0))}, UsageError, "the data are empty"),
        ({"data": []}, UsageError, "the data are empty"),
        ({"pattern": 0.8}, UsageError, "pattern is a text"),
        ({"pattern": "sparse:80%+2:4"}, PolicyError, "the share of zeros is"),
        ({"schedule": None}, UsageError, "schedule is a text"),
        ({"scores": ""}, UsageError, "scores are a name"),
        ({"ranking": ""}, UsageError, "unknown ranking ''"),
        ({"finetune": ""}, UsageError, "unknown finetune ''"),
        ({"data": TASK, "epochs": "2"}, UsageError, "epochs is a number above 0"),
        ({"seed": 1.5}, UsageError, "seed is a whole number"),
        ({"choose": "fc"}, UsageError, "choose is a function"),
        ({"recipe": "l1:0.1"}, UsageError, "recipe is an autoprune.Recipe"),
        ({"data": TASK, "terms": "l3:0.1"}, UsageError, "a recipe's term is one of l1, l2.* got 'l3:0.1'"),
        ({"data": TASK, "terms": ["l1:0"]}, UsageError, "with a strength above 0.* got 'l1:0'"),
        ({"data": TASK, "terms": 0.1}, UsageError, "terms is a text or several, such as l1:0.001"),
        ({"data": TASK, "terms": "l1:1", "finetune": "bias"}, UsageError, "finetune='bias' has none. Take brief"),
        ({"data": TASK, "pattern": "none"}, UsageError, "zeros are those of terms alone: give terms"),
        ({"data": TASK, "pattern": "none", "terms": "l1:1", "schedule": "rigl"}, UsageError, "and no schedule"),
        ({"data": TASK, "pattern": "none", "terms": "l1:1", "scores": "taylor"}, UsageError, "and no schedule, scores"),
        ({"checkpoint": 3}, UsageError, "checkpoint is the path of a file"),
        ({"finetune": "least-squares"}, UsageError, "finetune='least-squares' looks at data"),
        ({"data": TASK, "schedule": "set", "finetune": "least-squares"}, UsageError, "goes with one-shot alone"),
        ({"choose": lambda name: False}, UsageError, "none was chosen"),
    ],
)
def test_what_cannot_be_is_one_message(
    dense: nn.Module, options: dict, error: type[AutopruneError], message: str
) -> None:
    given = {"model": dense, "data": None} | options
    with pytest.raises(error, match=message.replace("(", r"\(")):
        autoprune.sparsify(given.pop("model"), given.pop("data"), **given)


def test_a_cut_model_is_cut_again(dense: nn.Module) -> None:
    x = torch.rand(5, 1, 6, 6)
    for native in (True, False):
        once = autoprune.prune(dense, TASK.example_inputs, keep=0.5, multiple_of=1, native=native)
        twice = autoprune.prune(once, TASK.example_inputs, keep=0.5, multiple_of=1, native=native)
        assert twice.get_parameter("0.weight").shape == (2, 1, 3, 3)
        kept = once.get_parameter("0.weight")
        assert all(any(torch.equal(row, other) for other in kept) for row in twice.get_parameter("0.weight"))
    sparse = autoprune.sparsify(twice, TASK, pattern="sparse:50%", schedule="gradual", epochs=1)
    assert sparse.sparse_to.share_of_zeros == 0.5
    assert autoprune.recover(once, {"0": 2}, [x.repeat(20, 1, 1, 1)])(x).shape == (5, 4)
