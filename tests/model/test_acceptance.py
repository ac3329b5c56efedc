"""Bad input: every kind of model that people hand over works, or gives one clear message."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from autoprune.errors import StructureError
from autoprune.model.acceptance import accepted, as_inputs, unwrap
from autoprune.pruning import prune
from autoprune.structure import analyze

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6), nn.Linear(6, 4)
    )


def changed(change):
    model = net()
    return change(model) or model


def masked(model):
    nn.utils.prune.l1_unstructured(model[2], "weight", 0.5)


def hooked(norm):
    def change(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            norm(model[2])

    return change


def quantized(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def whole_numbers(model):
    model[5].weight = nn.Parameter(model[5].weight.detach().to(torch.int8), requires_grad=False)


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear, "got the class Linear"),
        (lambda: {"weight": X}, "a model is an nn.Module; got dict"),
        (lambda: changed(scripted), "scripted or traced"),
        (lambda: changed(quantized), "5 is quantized .* then quantize it"),
        (lambda: changed(whole_numbers), r"5.weight is quantized \(torch.int8\)"),
        (lambda: changed(masked), r"2 is masked; .*torch.nn.utils.prune.remove\(module, name\)"),
        (lambda: changed(hooked(nn.utils.weight_norm)), "2 has weight norm as a hook; .*remove_weight_norm"),
        (lambda: changed(hooked(nn.utils.spectral_norm)), "2 has spectral norm as a hook; .*remove_spectral_norm"),
        (lambda: net().to("meta"), "on meta; .* has no values"),
        (lambda: nn.Sequential(net(), net().to("meta")), "its tensors are on cpu, meta"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "0 is lazy .* call the model once"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_that_cannot_be_pruned_gets_one_message(make, message):
    with pytest.raises(StructureError, match=message):
        prune(make(), (X,))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_and_parallel_modules_are_unwrapped():
    model = net()
    assert unwrap(torch.compile(nn.DataParallel(torch.compile(model)))) is model
    small = prune(torch.compile(model), (X,), multiple_of=1)
    assert small.state_dict().keys() == model.state_dict().keys()


def test_a_distributed_module_is_unwrapped(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = net()
        assert accepted(nn.parallel.DistributedDataParallel(model)) is model
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_part_is_seen_through():
    model = net()
    model[2] = torch.compile(model[2])
    assert prune(model, (X,), multiple_of=1)(X).shape == (2, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_kept(dtype):
    model = net().to(dtype)
    small = prune(model, (X.to(dtype),), multiple_of=1)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small(X.to(dtype)).dtype == dtype


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = net()

    def forward(self, x):
        if x.sum() > 0:
            return self.layers(x)
        return self.layers(-x)


def test_control_flow_on_values_is_located(capfd):
    with pytest.raises(StructureError, match=r"test_acceptance.py, line \d+: `if x.sum\(\) > 0:`.*must not branch"):
        prune(Branching(), (X,))
    assert capfd.readouterr() == ("", "")


def test_nothing_to_prune():
    with pytest.raises(StructureError, match="A prunable model has at least two layers"):
        prune(nn.Linear(4, 2), (torch.zeros(1, 4),))
    with pytest.raises(StructureError, match="nothing in this model can be pruned"):
        prune(nn.ReLU(), (torch.zeros(1, 4),))


def test_no_width_reaches_zero():
    small = prune(net(), (X,), keep=0.01, multiple_of=1)
    assert min(min(p.shape) for p in small.parameters()) == 1


def test_a_layer_with_weight_norm_does_not_stop_the_others():
    model = net()
    parametrizations.weight_norm(model[5])
    small = prune(model, (X,), multiple_of=1)
    assert small.get_parameter("0.weight").shape[0] == 4


def test_a_layer_with_spectral_norm_goes_on_being_normed():
    model = net()
    parametrizations.spectral_norm(model[5])
    small = prune(model, (X,), multiple_of=1).train()
    assert small.get_parameter("0.weight").shape[0] == 4
    u = small.get_buffer("5.parametrizations.weight.0._u")
    before = u.clone()
    for _ in range(2):  # the power iteration is no part of the graph of gradients
        small(X).sum().backward()
    assert not torch.equal(u, before)
    assert not u.requires_grad
    assert small.get_parameter("5.parametrizations.weight.original").grad is not None


class Blocks(nn.Module):
    """A net with parts in single precision under any autocast, and parts without gradients."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x).relu()
        with torch.autocast("cpu", enabled=False):
            x = self.b(x).relu()
        with torch.no_grad():
            scale = x.mean(1, keepdim=True)
        return self.c(x / (1 + scale))


def test_blocks_of_other_modes_are_part_of_the_model():
    torch.manual_seed(0)
    small = prune(Blocks(), (torch.randn(2, 6),), multiple_of=1)
    assert small.get_parameter("b.weight").shape == (4, 4)
    assert small(torch.randn(5, 6)).shape == (5, 3)


def test_an_orthogonal_layer_is_listed_and_does_not_stop_the_others():
    model = net()
    parametrizations.orthogonal(model[5])
    structure = analyze(model, (X,))
    reasons = {fixed.parameter: fixed.reason for fixed in structure.fixed}
    assert "aten.tril" in reasons["5.parametrizations.weight.original"]
    small = prune(model, (X,), multiple_of=1)
    assert small.get_parameter("0.weight").shape[0] == 4


class Tied(nn.Module):
    """A language model's head: whole numbers in, and the embedding's weight used twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.down(torch.relu(self.up(x))))


def test_whole_numbers_in_and_tied_weights():
    tokens = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(0))
    small = prune(Tied(), (tokens,), multiple_of=1)
    assert small.get_parameter("head.weight") is small.get_parameter("embed.weight")
    assert small.get_parameter("up.weight").shape[0] == 16
    assert small(tokens).shape == (2, 5, 20)


def test_example_inputs_in_every_form():
    for given in (X, [X], (X,), {"x": X}):
        assert as_inputs(given)[0] is X
    for given in ((), {}, 3, "x", (X, 1), None):
        with pytest.raises(StructureError, match="a tensor, a tuple of tensors or a dict"):
            as_inputs(given)
    with pytest.raises(StructureError, match=r"at least one example; got shape \(0, 3\)"):
        as_inputs(torch.zeros(0, 3))
    with pytest.raises(StructureError, match="on meta"):
        as_inputs(torch.zeros(1, 3, device="meta"))


def test_a_complex_parameter_is_not_called_quantized():
    model = net()
    model.spectrum = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(StructureError, match="spectrum is complex"):
        accepted(model)
