"""Several outputs: which of them count, what they are called, and what pruned models and files return."""

from collections import namedtuple
from dataclasses import dataclass

import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import autoprune
from autoprune.errors import StructureError, TaskError
from autoprune.model.outputs import output_names, selected_leaves

X = torch.randn(4, 8)
Pair = namedtuple("Pair", "mean, scale")


class Heads(nn.Module):
    """Hidden states on the way to logits, and a head beside these."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.logits, self.box = nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x):
        first = self.first(x).relu()
        second = self.second(first).relu()
        return {"logits": self.logits(second), "box": self.box(second), "hidden": (first, second)}


class Cache:
    """Stands for a class that the exporter cannot take apart."""

    def __init__(self, logits):
        self.logits = logits


class Opaque(Heads):
    def forward(self, x):
        return Cache(super().forward(x)["logits"])


Cache.__module__ = "elsewhere"


@pytest.mark.parametrize("outputs", ["logits", lambda outputs: outputs["logits"] * 2])
def test_hidden_states_that_do_not_count_lose_channels_and_heads_do_not(outputs):
    small = autoprune.prune(Heads(), X, outputs=outputs)
    shapes = pytree.tree_map(lambda tensor: tuple(tensor.shape), small(X))
    assert shapes == {"logits": (4, 3), "box": (4, 4), "hidden": ((4, 8), (4, 8))}
    with pytest.raises(StructureError, match="It returns logits, box, hidden_0, hidden_1: `outputs=` says which"):
        autoprune.prune(Heads(), X)


def test_the_reason_names_the_output():
    table = autoprune.units(Heads(), X, outputs=lambda outputs: outputs["hidden"][1])
    reasons = table.set_index("name")["reason"]
    assert reasons["second.weight"] == "an output of the model (hidden_1)"
    assert reasons["box.weight"].iloc[0] == "an output of the model (box)"


def test_what_counts_is_kept_with_a_saved_model(tmp_path):
    torch.manual_seed(0)
    model = Heads()
    small = autoprune.recover(model, {"first": 8}, [X], outputs="logits")
    again = autoprune.load(lambda: model, autoprune.save(small, tmp_path / "small.safetensors"))
    assert torch.equal(small(X)["logits"], again(X)["logits"])
    assert again(X)["hidden"][0].shape == (4, 8)


def test_a_class_that_cannot_be_taken_apart_gives_its_selected_part():
    with pytest.raises(StructureError, match=r"does not know the class Cache .* outputs="):
        autoprune.units(Opaque(), X)
    small = autoprune.prune(Opaque(), X, outputs="logits")
    assert small(X).output.shape == (4, 3)


def test_a_cache_of_transformers_is_no_output():
    class WithCache(Heads):
        def forward(self, x):
            outputs = super().forward(x)
            cache = type("DynamicCache", (Cached,), {})()
            return outputs["logits"], cache

    class Cached:
        pass

    Cached.__name__, Cached.__module__ = "Cache", "transformers.cache_utils"
    logits, cache = autoprune.prune(WithCache(), X, native=False)(X)
    assert logits.shape == (4, 3)
    assert cache is None


def test_selectors_that_read_nothing_or_fail_are_refused():
    with pytest.raises(TaskError, match="have no 'scores'; dict has logits, box"):
        autoprune.units(Heads(), X, outputs="scores")
    with pytest.raises(TaskError, match="failed: KeyError"):
        autoprune.units(Heads(), X, outputs=lambda outputs: outputs["scores"])
    with pytest.raises(TaskError, match="read none of their tensors"):
        autoprune.units(Heads(), X, outputs=lambda outputs: len(outputs))


def test_names_of_outputs():
    @dataclass
    class Both:
        pair: Pair
        more: list

    torch.export.register_dataclass(Both)
    tree = Both(Pair(1, 2), [3, {"a": 4}])
    assert output_names(pytree.tree_structure(tree)) == ["pair_mean", "pair_scale", "more_0", "more_1_a"]
    assert output_names(pytree.tree_structure((1, 2))) == ["0", "1"]
    assert output_names(pytree.tree_structure(1)) == [""]


def test_shapes_and_types_of_outputs_may_be_asked_for():
    _, spec = pytree.tree_flatten((0, 0))
    leaves = [torch.zeros(2, 3), torch.zeros(2, 3)]
    assert selected_leaves(spec, leaves, lambda outputs: outputs[1].reshape(outputs[0].shape)) == {1}


class Named(nn.Module):
    """Inputs and outputs whose names are those of operators and weights."""

    def __init__(self):
        super().__init__()
        self.linear, self.weight = nn.Linear(8, 16), nn.Parameter(torch.randn(16, 2))

    def forward(self, cat, relu, weight):
        h = torch.cat([cat, relu, weight], 1)[:, :8]
        h = torch.relu(self.linear(h))
        return {"linear": h @ self.weight, "relu": (h @ self.weight).relu()}


def file_of(model, inputs, path, **options):
    return onnxruntime.InferenceSession(str(autoprune.export_onnx(model, inputs, path, **options)))


@pytest.mark.parametrize("prune", [False, True])
def test_names_in_the_file_are_those_of_arguments_and_keys(prune, tmp_path):
    inputs = (torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3))
    model = Named().eval()
    model = autoprune.prune(model, inputs) if prune else model
    session = file_of(model, inputs, tmp_path / "named.onnx")
    assert [entry.name for entry in session.get_inputs()] in (["cat", "relu", "weight"], ["cat", "relu", "weight_1"])
    assert [entry.name for entry in session.get_outputs()] == ["linear", "relu_1"]


@pytest.mark.parametrize(("outputs", "names"), [(None, ["logits", "box", "hidden_0", "hidden_1"]), ("box", ["box"])])
def test_a_file_has_all_outputs_or_the_chosen_one(outputs, names, tmp_path):
    session = file_of(Heads().eval(), X, tmp_path / "heads.onnx", outputs=outputs)
    assert [entry.name for entry in session.get_outputs()] == names
    assert [entry.name for entry in file_of(nn.Linear(8, 2), X, tmp_path / "one.onnx").get_outputs()] == ["output"]
