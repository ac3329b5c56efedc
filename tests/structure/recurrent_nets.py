"""Recurrent nets with every feature that is treated differently: kinds, layers, directions, layouts, states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS, FEATURES, HIDDEN = 4, 3, 6


class Recurrent(nn.Module):
    """A recurrent net over sequences `[N, T, C]` and a linear layer that reads its last outputs or its final state.

    `state`: none is given, `zeros` for all layers and both states, or one `learned` from the first step for all layers.
    """

    def __init__(
        self, kind: str, *, layers: int = 1, bidirectional: bool = False, batch_first: bool = True,
        state: str = "none", reads: str = "outputs", bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net: nn.RNNBase = getattr(nn, kind)(
            FEATURES, HIDDEN, layers, batch_first=batch_first, bidirectional=bidirectional, bias=bias,
            dropout=0.3 if layers > 1 else 0.0,
        )  # fmt: skip
        self.kind, self.state, self.reads = kind, state, reads
        self.parts = layers * (2 if bidirectional else 1)
        if state == "learned":
            self.start = nn.Linear(FEATURES, HIDDEN)
        self.head = nn.Linear(HIDDEN if reads == "final" else HIDDEN * (2 if bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        if self.state == "zeros":
            state = torch.zeros(self.parts, x.shape[0], HIDDEN).to(x.device)
        if self.state == "learned":
            state = torch.tanh(self.start(x[:, 0])).expand(self.parts, -1, -1).contiguous()
        if state is not None and self.kind == "LSTM":
            state = (state, torch.zeros_like(state))
        x = x if self.net.batch_first else x.transpose(0, 1)
        outputs, final = self.net(x, state)
        if self.reads == "final":
            return self.head((final[0] if self.kind == "LSTM" else final)[-1])
        return self.head(outputs[:, -1] if self.net.batch_first else outputs[-1])


def make_recurrent(kind: str, **features: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A seeded net in evaluation mode and its example inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Recurrent(kind, **features).eval(), (torch.randn(2, STEPS, FEATURES),)  # type: ignore[arg-type]
