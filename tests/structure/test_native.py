import copy
import pickle

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import autoprune
from autoprune.errors import StructureError
from autoprune.onnxgraph.export import export_onnx
from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.recovery.recover import recover
from autoprune.structure import analyze, native
from autoprune.structure.own_classes import Removed, resize
from tests.model.test_adapters import Encoder, sentences

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Plain, grouped and depthwise convolutions and a norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.fc, self.head = nn.Linear(16, 12), nn.Linear(12, 4)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.grouped(torch.relu(self.deep(x))))
        return self.head(self.drop(torch.relu(self.fc(x.mean((2, 3))))))


def test_the_models_own_classes_at_pruned_sizes():
    torch.manual_seed(0)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    graph = prune(model, (X,), multiple_of=1, native=False).eval()
    small = prune(model, (X,), multiple_of=1, native=True).eval()
    assert type(small) is Net
    assert torch.allclose(small(X), graph(X), atol=1e-5)
    assert small.state_dict().keys() == model.state_dict().keys()
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    for name, module in small.named_modules():
        rebuilt = {nn.Conv2d: "out_channels", nn.Linear: "out_features", nn.BatchNorm2d: "num_features"}
        if type(module) in rebuilt:
            assert getattr(module, rebuilt[type(module)]) == len(module.weight), name
            assert f"{len(module.weight)}" in repr(module)
    small.train()(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("module", "same_as"),
    [
        (nn.Conv1d(8, 6, 3, groups=2), nn.Conv1d(4, 3, 3)),
        (nn.ConvTranspose2d(8, 6, 2), nn.ConvTranspose2d(4, 3, 2)),
        (nn.Linear(8, 6), nn.Linear(4, 3)),
        (nn.BatchNorm1d(6), nn.BatchNorm1d(3)),
        (nn.LayerNorm(6), nn.LayerNorm(3)),
        (nn.RMSNorm(6), nn.RMSNorm(3)),
        (nn.GroupNorm(1, 6), nn.GroupNorm(1, 3)),
        (nn.Embedding(8, 6), nn.Embedding(4, 3)),
        (nn.PReLU(6), nn.PReLU(3)),
    ],
)
def test_sizes_follow_the_weight(module, same_as):
    module.weight = same_as.weight
    resize(module, 1)
    assert repr(module) == repr(same_as)


class Recurrent(nn.Module):
    """The last state of a recurrent layer, scaled in float32."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 3)

    def forward(self, x):
        last = self.layer(x)[0][:, -1]
        return self.head((last.float() * 2).to(last.dtype))


@pytest.mark.parametrize(
    "layer",
    [
        nn.GRU(5, 12, batch_first=True),
        nn.LSTM(5, 12, batch_first=True),
        nn.RNN(5, 12, batch_first=True, nonlinearity="relu"),
    ],
    ids=["gru", "lstm", "rnn"],
)
def test_recurrent_layers_have_their_own_classes(layer, tmp_path):
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    model = Recurrent(layer)
    small = prune(model, (x,), multiple_of=1, native=True).eval()
    assert type(small.layer) is type(layer)
    assert small.layer.hidden_size == 6
    assert torch.allclose(small(x), prune(model, (x,), multiple_of=1, native=False).eval()(x), atol=1e-5)
    sent = pickle.loads(pickle.dumps(small))  # as to a worker process
    torch.testing.assert_close(sent(x), small(x))
    loaded = autoprune.load(lambda: model, autoprune.save(small, tmp_path / "small.safetensors"))
    assert (loaded.pruned_to.form, loaded.layer.hidden_size) == ("native", 6)
    torch.testing.assert_close(loaded(x), small(x))
    export_onnx(small, (x,), tmp_path / "small.onnx")
    (outputs,) = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), small(x), atol=1e-5, rtol=1e-4)
    small.train()(x).sum().backward()
    assert small.layer.weight_hh_l0.grad is not None


class Reshaping(nn.Module):
    """The size of its layer is written into its forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).reshape(-1, 16))


class Scaling(Reshaping):
    def forward(self, x):
        return self.b(torch.relu(self.a(x))) * self.a.out_features


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Reshaping(), "does not run at the pruned sizes .*native=False"),
        (Scaling(), "something else at the pruned sizes"),
    ],
)
def test_a_model_that_holds_sizes_says_why_not(model, message):
    with pytest.raises(StructureError, match=message):
        prune(model, (torch.zeros(2, 4),), multiple_of=1, native=True)


class Residual(nn.Module):
    """A residual branch of two convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Conv2d(3 if n == 0 else 6, 6, 1) for n in range(4))

    def forward(self, x):
        x = self.stem(x)
        return self.c(x + self.b(torch.relu(self.a(x))))


class Reading(Residual):
    """Its forward reads the weight of the branch itself."""

    def forward(self, x):
        x = self.stem(x)
        return self.c(x + self.b(torch.conv2d(x, self.a.weight, self.a.bias).relu()))


def without(model, unit):
    structure = analyze(model, (X,))
    return structure, structure.shrink(Policy(space_id="", widths=structure.full_widths | {unit: 0}))


def test_a_removed_branch_is_a_module_that_returns_zeros(tmp_path):
    structure, graph = without(Residual(), "a")
    small = native(structure, graph)
    assert type(small) is Residual
    assert isinstance(small.a, Removed)
    assert isinstance(small.b, Removed)
    assert small.state_dict().keys() == graph.state_dict().keys()
    assert torch.allclose(small.train()(X), graph.train()(X), atol=1e-6)
    assert torch.allclose(small.eval()(X), graph.eval()(X), atol=1e-6)
    again = autoprune.load(Residual, autoprune.save(small, tmp_path / "small.safetensors"))
    assert type(again) is Residual
    assert torch.equal(again(X), small(X))
    copy.deepcopy(small).train()(X).sum().backward()


def test_a_removed_branch_that_forward_reads_itself_has_no_native_form():
    structure, graph = without(Reading(), "a")
    with pytest.raises(StructureError, match="'Removed' object has no attribute 'weight'"):
        native(structure, graph)


def test_tied_and_parametrised_weights_stay_so():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8, bias=False), nn.Linear(4, 8, bias=False)
            self.b.weight = self.a.weight
            self.c = parametrizations.weight_norm(nn.Linear(8, 6))
            self.d, self.e = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.e(torch.relu(self.d(self.c(torch.relu(self.a(x) * self.b(x))))))

    small = prune(Tied(), (torch.zeros(2, 4),), multiple_of=1, native=True)
    assert small.a.weight is small.b.weight
    assert small.e.weight.shape == (2, 4)
    assert torch.nn.utils.parametrize.is_parametrized(small.c)


def test_keywords_and_dataclasses_stay_the_models_own():
    item = sentences(1)[0]
    inputs = {key: item[key][None] for key in ("input_ids", "attention_mask")}

    class Plain(Encoder):
        def forward(self, input_ids=None, attention_mask=None):
            return super().forward(input_ids, attention_mask).logits

    graph, small = (prune(Plain(), inputs, multiple_of=1, native=kind) for kind in (False, True))
    assert type(small) is Plain
    assert small.up.out_features == 8
    small.load_state_dict(graph.state_dict())
    assert torch.allclose(small.eval()(**inputs), graph.eval()(**inputs), atol=1e-5)


def test_recover_returns_own_classes_too():
    torch.manual_seed(0)
    model = Net().eval()
    batches = [(torch.randn(64, 3, 8, 8),)]
    graph, small = (recover(model, {"fc": 6}, batches, native=kind) for kind in (False, True))
    assert type(small) is Net
    assert not small.training
    assert torch.allclose(graph(X), small(X), atol=1e-5)


class CopiesByName(nn.Linear):
    """Its copies come from its state, whatever else is known about the copy."""

    def __deepcopy__(self, memo):
        new = type(self)(self.in_features, self.out_features)
        new.load_state_dict(self.state_dict())
        return new


class IsItsCopy(nn.Linear):
    def __deepcopy__(self, memo):
        return self


class SharesItsWeight(nn.Linear):
    def __deepcopy__(self, memo):
        new = type(self)(self.in_features, self.out_features)
        new.weight, new.bias = self.weight, self.bias
        return new


@pytest.mark.parametrize("kind", [CopiesByName, IsItsCopy, SharesItsWeight])
def test_own_ways_of_copying(kind):
    model = nn.Sequential(kind(4, 16), nn.ReLU(), nn.Linear(16, 2))
    before, x = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.rand(2, 4)
    small = prune(model, x, multiple_of=1)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    assert small(x).shape == (2, 2)
    torch.testing.assert_close(model.state_dict(), before)
    assert type(small[0]) is kind
    assert model[0].out_features == 16
