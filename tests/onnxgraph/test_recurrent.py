from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from autoprune.errors import StructureError
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.recurrent import KINDS
from autoprune.onnxgraph.resizer import Resizer
from autoprune.records import Policy
from autoprune.structure import analyze
from tests.structure.recurrent_nets import FEATURES, STEPS, make_recurrent

NETS = {
    "stacked": ("LSTM", {"layers": 2}),
    "learned": ("LSTM", {"layers": 2, "bidirectional": True, "state": "learned", "batch_first": False}),
    "gru": ("GRU", {"layers": 2, "bidirectional": True, "state": "zeros"}),
    "gru without bias": ("GRU", {"bias": False, "reads": "final"}),
    "rnn": ("RNN", {"layers": 2, "bidirectional": True, "reads": "final"}),
}
"""Kinds and features of nets."""


def run(model: bytes, x: torch.Tensor) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize(("kind", "features"), NETS.values(), ids=NETS)
def test_exported_and_resized_nets_compute_what_pytorch_does(kind: str, features: dict) -> None:
    net, inputs = make_recurrent(kind, **features)
    structure = analyze(net, inputs)
    dense = export_onnx(net, inputs)
    nodes = [node for node in dense.graph.node if node.op_type in KINDS]
    assert [node.op_type for node in nodes] == [kind] * features.get("layers", 1)
    if features.get("state") != "learned":
        assert not any("".join(node.input[5:]) for node in nodes)  # zeros are the default
    x = torch.randn(5, STEPS, FEATURES)
    with torch.no_grad():
        np.testing.assert_allclose(run(dense.SerializeToString(), x), net(x).numpy(), rtol=1e-4, atol=1e-5)
        policy = Policy(space_id="", widths={u.name: 2 + n for n, u in enumerate(structure.units)})
        shrunk = structure.shrink(policy)
        captured = export_onnx(structure.shrink(structure.dense_policy(), prove=False), inputs)
        resized = run(Resizer(captured, structure).resize(policy), x)
        np.testing.assert_allclose(resized, shrunk(x).numpy(), rtol=1e-4, atol=1e-5)
        exported = export_onnx(shrunk, inputs)
        np.testing.assert_allclose(run(exported.SerializeToString(), x), shrunk(x).numpy(), rtol=1e-4, atol=1e-5)


def test_wide_layers_are_stacked_in_the_file() -> None:
    """The exporter folds small weights only."""
    net = torch.nn.LSTM(40, 100, batch_first=True).eval()

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)[0][:, -1]

    x = torch.randn(2, 3, 40)
    model = export_onnx(Last().eval(), (x,))
    assert {i.name: list(i.dims) for i in model.graph.initializer if i.name.startswith("net.")} == {
        "net.weight_ih_l0_gates": [1, 400, 40],
        "net.weight_hh_l0_gates": [1, 400, 100],
        "net.bias_ih_l0_gates": [1, 800],
    }
    with torch.no_grad():
        np.testing.assert_allclose(run(model.SerializeToString(), x), Last()(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_used_twice_is_exported() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = torch.nn.GRU(FEATURES, 6, batch_first=True), torch.nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.net(x)[0][:, -1] + self.net(-x)[0][:, -1])

    x = torch.randn(2, STEPS, FEATURES)
    net = Twice().eval()
    structure = analyze(net, (x,))
    policy = Policy(space_id="", widths={"net.l0": 3})
    resized = Resizer(export_onnx(net, (x,)), structure).resize(policy)
    with torch.no_grad():
        np.testing.assert_allclose(run(resized, x), structure.shrink(policy)(x).numpy(), rtol=1e-4, atol=1e-5)


def test_projections_are_refused() -> None:
    class Projected(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.LSTM(FEATURES, 6, proj_size=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)[0]

    with pytest.raises(StructureError, match="proj_size"):
        export_onnx(Projected().eval(), (torch.randn(2, STEPS, FEATURES),))
