"""A transformer encoder in the manner of Hugging Face: dict batches in, a dataclass out."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import autoprune


@dataclass
class Output:
    logits: torch.Tensor
    last_hidden_state: torch.Tensor


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, mask):
        q, k, v = (f(self.norm1(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, words=100, width=32, heads=4, layers=2, classes=4) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(words, width), nn.Parameter(torch.randn(16, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids) + self.position
        for layer in self.layers:
            x = layer(x, attention_mask[:, None, None, :].bool())
        return Output(logits=self.head(self.norm(x[:, 0])), last_hidden_state=x)


def sentences(count, seed):
    """Stand-in data: which quarter of the vocabulary do most words come from?"""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for number in range(count):
        mask = (torch.arange(16) < 8 + number % 9).long()
        ids = torch.randint(0, 25, (16,), generator=generator) + 25 * (number % 4)
        items.append({"input_ids": ids * mask, "attention_mask": mask, "labels": number % 4})
    return items


def make_task():
    torch.manual_seed(0)
    example = sentences(1, 9)[0]
    return autoprune.Task(
        build_model=Encoder,
        example_inputs={key: example[key][None] for key in ("input_ids", "attention_mask")},
        outputs="logits",
        train_set=sentences(1000, 0),
        val_set=sentences(300, 1),
        test_set=sentences(300, 2),
        loss=F.cross_entropy,  # the key that is left in an item, "labels", is the target
        recipe=autoprune.Recipe(epochs=4, optimizer="adamw", lr=1e-3, batch_size=32),
        finetune_recipe=autoprune.Recipe(optimizer="adamw", lr=5e-4, batch_size=32),
    )
