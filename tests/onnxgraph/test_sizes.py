"""Sizes inside an ONNX graph follow the widths of every policy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autoprune.device.connect import make_target
from autoprune.errors import LatencyError
from autoprune.onnxgraph import sizes as onnx_sizes
from autoprune.onnxgraph.sizes import LearnedSizes, learn_sizes
from autoprune.profiling import policy_timer as timer_module
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.records import Policy
from autoprune.structure import analyze
from autoprune.task.transformers import ViT
from tests.structure.attention_nets import Llama
from tests.structure.family_nets import Shuffle


def test_products_and_sums_of_widths_are_told_apart():
    sizes = LearnedSizes(
        full=np.array([8, 6]),
        narrow=np.array([4, 3]),
        dense={(0, 1): np.array([-1, 48, 14, 5])},
        alone={(0, 1): {0: np.array([-1, 24, 10, 5]), 1: np.array([-1, 24, 11, 5])}},
    )
    for widths in ([8, 6], [4, 3], [2, 5], [7, 1]):
        a, b = widths
        assert sizes.at((0, 1), np.array(widths)).tolist() == [-1, a * b, a + b, 5]


def test_a_product_with_a_sum_is_told():
    """Four heads of queries and keys of 16 and values of 8: 4 * (16 + 16 + 8) = 160."""
    halves = {0: np.array([80]), 1: np.array([96]), 2: np.array([144])}
    sizes = LearnedSizes(
        full=np.array([4, 16, 8]), narrow=np.array([2, 8, 4]), dense={(0, 1): np.array([160])}, alone={(0, 1): halves}
    )
    for heads, keys, values in ([4, 16, 8], [1, 5, 3], [3, 16, 1]):
        assert sizes.at((0, 1), np.array([heads, keys, values])).tolist() == [heads * (2 * keys + values)]


def test_a_transformer_is_resized_with_equal_norms_and_without_branches(monkeypatch: pytest.MonkeyPatch):
    """Its proof, on random widths and without any branch, is part of making the timer."""
    torch.manual_seed(0)
    net = ViT(1, 8, 3, dim=8, depth=1, heads=2, hidden=6).eval()
    structure = analyze(net, (torch.zeros(1, 1, 8, 8),))
    assert {unit.kind for unit in structure.units} == {"channel", "head", "head_dim"}
    assert any(unit.removable for unit in structure.units)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert make_policy_timer(structure, make_target("ort-cpu")).notes == ()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    monkeypatch.setattr(timer_module, "learn_sizes", lambda *_, **__: None)
    (note,) = make_policy_timer(structure, make_target("ort-cpu")).notes
    assert "every policy was exported from scratch" in note


def test_shuffles_that_look_channels_up_are_resized():
    """The exporter stores the positions of equal shuffles once; in a narrower model they differ."""
    torch.manual_seed(0)
    structure = analyze(Shuffle().eval(), (torch.zeros(1, 3, 8, 8),))
    small = structure.dense_policy()
    first, second = structure.lookups(small)
    assert np.array_equal(*structure.lookups(small).values())
    unit = structure.units[-1]
    narrow = Policy(space_id="", widths=structure.full_widths | {unit.name: 1})
    assert len(structure.lookups(narrow)[second]) < len(structure.lookups(small)[first])
    assert make_policy_timer(structure, make_target("ort-cpu")).notes == ()


def test_untrained_norms_of_other_channels_are_resized():
    """Their statistics are equal, and equal tensors are stored once."""
    torch.manual_seed(0)
    a, b, c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
    norms = [nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)) for _ in range(3)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    net = nn.Sequential(a, norms[0], b, norms[1], c, norms[2], head).eval()
    assert make_policy_timer(analyze(net, (torch.zeros(1, 3, 8, 8),)), make_target("ort-cpu")).notes == ()


def test_group_norms_and_grouped_weights_that_are_computed_are_resized():
    """As of wav2vec 2.0: the exporter writes ones for a norm of single channels, and leaves a large weight norm be."""
    torch.manual_seed(0)
    grouped = nn.utils.parametrizations.weight_norm(nn.Conv1d(64, 64, 16, groups=4), dim=2)
    head = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 2))
    net = nn.Sequential(nn.Conv1d(1, 64, 3), nn.GroupNorm(64, 64), nn.GELU(), grouped, nn.GELU(), head).eval()
    assert make_policy_timer(analyze(net, (torch.zeros(1, 1, 24),)), make_target("ort-cpu")).notes == ()


def test_rotary_positions_and_repeated_keys_are_resized():
    """Sines and cosines are stored as tables, and keys and values are repeated to one shape while they are alike."""
    torch.manual_seed(0)
    structure = analyze(Llama(), (torch.zeros(1, 7, dtype=torch.int64),))
    assert {unit.kind for unit in structure.units} == {"channel", "head", "head_dim"}
    assert make_policy_timer(structure, make_target("ort-cpu")).notes == ()


@pytest.mark.parametrize("channels", [[0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]], ids=["halves", "pairs"])
def test_tables_keep_the_entries_of_the_channels_that_a_unit_keeps(channels, transformer):
    values = np.sin(np.outer(np.arange(1, 6), [1.0, 0.3, 0.1, 0.03]))[:, channels].astype(np.float32)

    def export(policy):
        kept = np.array(channels) < policy.widths[head_dim]
        node = onnx.helper.make_node("Mul", ["x", "cos"], ["y"])
        table = onnx.numpy_helper.from_array(values[:, kept], "cos")
        return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [table]))

    head_dim = next(unit.name for unit in transformer.units if unit.kind == "head_dim" and unit.width == 4)
    sizes = learn_sizes(export(transformer.dense_policy()), transformer, export)
    widths = np.array([3 if unit.name == head_dim else unit.width for unit in transformer.units])
    np.testing.assert_array_equal(sizes.table("cos", values, widths), values[:, np.array(channels) < 3])


def test_a_table_of_equal_entries_keeps_as_many_as_its_units_do(transformer):
    def export(policy):
        heads, head_dim = (policy.widths[transformer.units[unit].name] for unit in (1, 2))
        node = onnx.helper.make_node("Mul", ["x", "ones"], ["y"])
        table = onnx.numpy_helper.from_array(np.ones((2, heads * head_dim), dtype=np.float32), "ones")
        return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [table]))

    sizes = learn_sizes(dense := export(transformer.dense_policy()), transformer, export)
    ones = onnx.numpy_helper.to_array(dense.graph.initializer[0])
    for heads, head_dim in [(4, 4), (3, 1), (1, 3), (3, 3)]:
        widths = np.array([unit.width for unit in transformer.units])
        widths[[1, 2]] = heads, head_dim
        assert sizes.table("ones", ones, widths).shape == (2, heads * head_dim)


def test_an_end_that_a_narrower_model_has_as_a_number_stays_the_end(transformer):
    end = np.iinfo(np.int64).max
    assert not learn_sizes(reshapes([end]), transformer, lambda policy: reshapes([8])).alone
    with pytest.raises(LatencyError, match="writes no size where a unit is narrower"):
        learn_sizes(reshapes([8]), transformer, lambda policy: reshapes([end]))


def reshapes(*sizes):
    """A model with one reshape to each of some sizes."""
    nodes = [onnx.helper.make_node("Reshape", ["x", f"s{i}"], [f"y{i}"]) for i in range(len(sizes))]
    shapes = [onnx.numpy_helper.from_array(np.array(size, dtype=np.int64), f"s{i}") for i, size in enumerate(sizes)]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], shapes))


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return analyze(ViT(1, 8, 3, dim=16, depth=2, heads=4, hidden=6).eval(), (torch.zeros(1, 1, 8, 8),))


def test_units_that_share_no_size_are_learned_together(transformer):
    exports = []

    def export(policy):
        exports.append(policy)
        dim, *_ = w = list(policy.widths.values())
        return reshapes([-1, dim], [-1, 3, w[1], w[2]], [-1, w[1] * w[2]], [-1, 3, w[4], w[5]], [-1, w[4] * w[5]])

    assert [unit.kind for unit in transformer.units] == ["channel", *["head", "head_dim", "channel"] * 2]
    dense = export(transformer.dense_policy())
    each = learn_sizes(dense, transformer, export)
    assert len(exports) == 1 + len(transformer.units)
    exports.clear()
    together = learn_sizes(dense, transformer, export, together=True)
    assert len(exports) == 3
    assert together.alone.keys() == each.alone.keys()
    for widths in np.random.default_rng(0).integers(1, each.full + 1, size=(20, len(each.full))):
        for place in each.alone:
            np.testing.assert_array_equal(together.at(place, widths), each.at(place, widths))


def test_sizes_of_several_units_and_sums_of_widths_are_told_apart(transformer):
    """A split between two units that are learned in one export, and a sum of one of them with a fixed number."""

    def export(policy):
        a, b = policy.widths["patches"], policy.widths[last]
        return reshapes([a, b], [-1, 10 + b])

    last = transformer.units[-1].name
    dense = export(transformer.dense_policy())
    with_both = [{0: 7, len(transformer.units) - 1: 2}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_sizes, "_groups", lambda structure: with_both)
        sizes = learn_sizes(dense, transformer, export, together=True)
    for a, b in [(16, 6), (16, 1), (5, 6), (3, 4)]:
        widths = np.array([a, *[unit.width for unit in transformer.units[1:-1]], b])
        numbers = [sizes.at((number, 1), widths).tolist() for number in range(2)]
        assert numbers == [[a, b], [-1, 10 + b]]


def test_units_that_cannot_be_told_apart_are_learned_in_exports_of_their_own(transformer):
    """Four heads of queries, keys and values in one matrix: `heads * (2 * keys + values)`."""
    heads, keys, values = 1, 2, 0  # columns of units; `values` stands for the width of the values
    exports = []

    def export(policy):
        exports.append(policy)
        w = list(policy.widths.values())
        return reshapes([-1, w[heads] * (2 * w[keys] + w[values])], [-1, w[5]])

    sizes = learn_sizes(export(transformer.dense_policy()), transformer, export, together=True)
    assert 1 + 3 < len(exports) < 1 + 2 * len(transformer.units)
    for w in np.random.default_rng(0).integers(1, sizes.full + 1, size=(20, len(sizes.full))):
        assert sizes.at((0, 1), w).tolist() == [-1, w[heads] * (2 * w[keys] + w[values])]
        assert sizes.at((1, 1), w).tolist() == [-1, w[5]]


def test_nodes_that_the_exporter_computes_away_in_a_narrower_model_are_passed_over(transformer):
    node = onnx.helper.make_node
    nodes = [node("Gather", ["w", "i"], ["val_3"]), node("Reshape", ["x", "s"], ["view"])]
    sizes = [onnx.numpy_helper.from_array(np.array([-1, n]), "s") for n in (90, 45)]
    dense, narrow = (
        onnx.helper.make_model(onnx.helper.make_graph(nodes[start:], "g", [], [], [size]))
        for start, size in zip((0, 1), sizes, strict=True)
    )
    assert learn_sizes(dense, transformer, lambda policy: narrow).alone.keys() == {(1, 1)}


def test_a_size_to_the_end_stays_where_another_follows_a_width():
    end = np.iinfo(np.int64).max
    sizes = LearnedSizes(
        full=np.array([8]), narrow=np.array([4]), dense={(0, 1): np.array([end, 8])},
        alone={(0, 1): {0: np.array([end, 4])}},
    )  # fmt: skip
    assert sizes.at((0, 1), np.array([5])).tolist() == [end, 5]
