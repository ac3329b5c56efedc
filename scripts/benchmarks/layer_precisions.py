"""How long linear layers, a transformer encoder and LSTMs take in each precision, relative to fp32.

Six linear layers d -> d of so many tokens, an encoder of six blocks, or one LSTM; all layers of a model have the same
precision, and those that cannot have it are in fp32.
`w8` and `w4` compute with inputs in int8 (accuracy level 4); `@0` is the same with inputs in fp32.

    OMP_NUM_THREADS=1 python scripts/benchmarks/layer_precisions.py [--widths 64 384] [--tokens 32 1]
        [--encoder 384] [--lstm 64 256]
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx
import torch
from torch import nn

from autoprune.device.connect import make_target
from autoprune.device.runner import time_models
from autoprune.device.timing import Protocol
from autoprune.onnxgraph.export import export_onnx, serialized
from autoprune.onnxgraph.treated import treated
from autoprune.structure import analyze
from autoprune.treatments import DENSE, PRECISIONS, Treatment

IN_FP32 = "@0"
PROTOCOL = Protocol(repeats=30, warmup_runs=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="*", type=int, default=[16, 32, 64, 128, 256, 384, 768])
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 1])
    parser.add_argument("--encoder", nargs="*", type=int, default=[384])
    parser.add_argument("--lstm", nargs="*", type=int, default=[64, 128, 256])
    options = parser.parse_args()
    torch.manual_seed(0)
    for tokens in options.tokens:
        for width in options.widths:
            print(f"six linear {width}, {tokens} tokens: {measured(six_linear(width), width, tokens)}", flush=True)
        for width in options.encoder:
            print(f"encoder {width}, {tokens} tokens: {measured(encoder(width), width, tokens)}", flush=True)
    for width in options.lstm:
        print(f"LSTM {width}, 32 steps: {measured(Lstm(width), width, 32)}", flush=True)


def six_linear(width: int) -> nn.Module:
    """Return six linear layers."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(6)))


def encoder(width: int) -> nn.Module:
    """Return six encoder blocks with heads of 32 columns."""
    layer = nn.TransformerEncoderLayer(width, width // 32, 4 * width, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


class Lstm(nn.Module):
    """An LSTM and a small linear layer that reads the hidden states of all steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[1, T, width]` to `[1, T, 8]`."""
        return self.head(self.lstm(x)[0])


def measured(model: nn.Module, width: int, tokens: int) -> str:
    """Return the latency of a model in fp32, and in every other precision as a share of it."""
    x = torch.randn(1, tokens, width)
    structure = analyze(model.eval(), (x,))
    exported, target = export_onnx(model, (x,)), make_target("ort-cpu")
    forms = {"fp32": serialized(exported)}
    for precision in PRECISIONS[1:]:
        treatment = Treatment(precision=precision)
        treatments = {layer.name: treatment if layer.allows(treatment) else DENSE for layer in structure.layers}
        written = treated(exported, treatments)
        forms[precision] = serialized(written)
        if precision in ("w8", "w4"):
            forms[precision + IN_FP32] = serialized(with_inputs_in_fp32(written))
    timings = time_models([*forms.values()], target, [x.numpy()], reference=forms["fp32"], protocol=PROTOCOL, seed=0)
    shares = ", ".join(f"{name} {ratio:.2f}" for name, ratio in zip(forms, timings.ratios, strict=True))
    return f"{1e3 * np.median(timings.reference.median_ms):.0f} us, {shares}"


def with_inputs_in_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose layers with rounded weights compute with inputs in fp32."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for attribute in (a for node in copied.graph.node for a in node.attribute if a.name == "accuracy_level"):
        attribute.i = 0
    return copied


if __name__ == "__main__":
    main()
