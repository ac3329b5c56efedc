"""Four tiny nets with everything that the latency stage treats differently."""

import torch
from torch import nn


def _norm(channels):
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2)
        norm.bias.normal_(0, 0.2)
    return norm


class Residual(nn.Module):
    """A stem, one block with a projection and one with an identity shortcut, global pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), _norm(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, bias=False), _norm(8), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), _norm(16))
        self.project = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), _norm(16))
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), _norm(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.outer(self.inner(x)) + self.project(x))
        x = torch.relu(self.body(x) + x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Depthwise(nn.Module):
    """Expand, depthwise, project; a clipped activation; a mean as pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), _norm(4), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), _norm(8), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), _norm(8), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), _norm(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.project(self.depth(self.expand(self.stem(x)))).mean((2, 3)))


class Flat(nn.Module):
    """Pooling and a flatten whose size depends on a width, then two linear layers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Linear(8 * 16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.features(x)
        x = torch.relu(self.hidden(x.view(x.size(0), -1)))
        return self.head(nn.functional.dropout(x, 0.1, self.training))


class Blocks(nn.Module):
    """Two removable blocks with an identity shortcut and one with a projection; rectified after each addition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), _norm(6), nn.ReLU())
        self.first, self.second, self.third = self._branch(6, 4, 6), self._branch(6, 4, 6), self._branch(6, 8, 8, 2)
        self.project = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), _norm(8))
        self.head = nn.Linear(8, 5)

    def _branch(self, c_in, inner, c_out, stride=1):
        first = nn.Conv2d(c_in, inner, 3, stride, 1, bias=False)
        return nn.Sequential(
            first, _norm(inner), nn.ReLU(), nn.Conv2d(inner, c_out, 3, padding=1, bias=False), _norm(c_out)
        )

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.first(x) + x)
        x = torch.relu(self.second(x) + x)
        x = torch.relu(self.third(x) + self.project(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


NETS = {"residual": Residual, "depthwise": Depthwise, "flat": Flat, "blocks": Blocks}


class Recurrent(nn.Module):
    """A bidirectional LSTM between linear layers; only the last hidden layer can be pruned."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        x, _ = self.lstm(torch.relu(self.embed(x)))
        return self.head(torch.relu(self.hidden(x[:, -1])))


class LastOutput(nn.Module):
    """An LSTM and a linear layer that reads its last output."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(inputs, hidden, batch_first=True), nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """Layer norm and attention whose widths stay, and a feed-forward part."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.narrow(torch.relu(self.wide(x)))
        return self.head(x.mean(1))


class Upsampling(nn.Module):
    """A transposed convolution whose widths stay, and a convolution whose width does not."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(1, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 2, 2)
        self.body, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.up(torch.relu(self.first(x))))
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


MIXED = {
    "recurrent": (Recurrent, (1, 5, 4)),
    "attention": (Attention, (1, 5, 4)),
    "upsampling": (Upsampling, (1, 1, 8, 8)),
}
"""Nets that hold operators whose widths cannot change: class and shape of the input."""
