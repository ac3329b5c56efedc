"""`nn.MultiheadAttention` with fewer or narrower heads: its numbers follow the cut, and its forward where it must.

PyTorch's own forward needs heads that are together as wide as the stream, and scales by their width. `NarrowAttention`
computes the same without these two conditions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.structure.units import Site


class NarrowAttention(nn.MultiheadAttention):
    """Attention of `num_heads` heads that keep the scale of the dense model, whatever their widths.

    `projected` are the widths of queries, keys and values of all heads together.
    """

    projected: tuple[int, int, int]
    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `nn.MultiheadAttention` returns for the same arguments: outputs, and weights where needed."""
        inputs = [query, key, value]
        is_batched = query.dim() == 3
        if is_batched and not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        if not is_batched:
            inputs = [x.unsqueeze(0) for x in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in self._projections(inputs))
        mask = self._mask(q, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ v
        else:
            causal = is_causal and mask is None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=self.scale)
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _projections(self, inputs: list[Tensor]) -> list[Tensor]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(self.projected)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(self.projected)
        return [F.linear(x, weight, bias) for x, weight, bias in zip(inputs, weights, biases, strict=True)]

    def _mask(self, queries: Tensor, key_padding: Tensor | None, attention: Tensor | None) -> Tensor | None:
        """Return numbers to add to the scores `[batch, heads, queries, keys]`; `None` without masks."""
        masks = []
        if attention is not None:
            shape = (-1, self.num_heads) if attention.dim() == 3 else (1, 1)
            masks.append(_numbers(attention, queries).view(*shape, *attention.shape[-2:]))
        if key_padding is not None:
            masks.append(_numbers(key_padding, queries)[:, None, None, :])
        return sum(masks[1:], masks[0]) if masks else None


def _numbers(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as numbers to add: minus infinity where a boolean mask leaves an entry out."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, -torch.inf)


def follow_heads(copied: nn.Module, masks: Mapping[Site, np.ndarray], canonical: Mapping[str, str]) -> None:
    """Let the numbers and, where that is needed, the class of attention layers follow their cut tensors, in place.

    Args:
        copied: a copy of the dense model with cut tensors.
        masks: which indices live, bool `[size]` for every labelled dimension.
        canonical: first name of every tensor.
    """
    for path, module in copied.named_modules():
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
            living = _living_rows(module, f"{path}." if path else "", masks, canonical)
            if living is not None:
                _resize(module, living)


def _living_rows(
    module: nn.MultiheadAttention, prefix: str, masks: Mapping[Site, np.ndarray], canonical: Mapping[str, str]
) -> list[np.ndarray] | None:
    """Return which rows of the projections of queries, keys and values live, bool `[heads, head_width]` each."""
    width = module.num_heads * module.head_dim
    joint = module.in_proj_weight is not None
    names = ["in_proj_weight"] if joint else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    rows = []
    for name in names:
        first = canonical.get(f"{prefix}{name}", "")
        mask = masks.get(("parameter", first, 0))
        rows.append(np.ones(3 * width // len(names), dtype=bool) if mask is None else mask)
    living = np.concatenate(rows)
    return list(living.reshape(3, module.num_heads, module.head_dim)) if living.size == 3 * width else None


def _resize(module: nn.MultiheadAttention, living: list[np.ndarray]) -> None:
    dense_width, stream = module.head_dim, module.out_proj.weight.shape[0]
    heads = int(living[0].any(1).sum())
    if not heads or any(int(rows.any(1).sum()) != heads or rows.sum() % heads for rows in living):
        return  # nothing is left, or heads are not cut as a whole
    projected = tuple(int(rows.sum()) for rows in living)
    module.embed_dim, module.num_heads, module.head_dim = stream, heads, projected[0] // heads
    if module.in_proj_weight is None:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
    else:
        module.kdim = module.vdim = stream
    if set(projected) == {stream} and module.head_dim == dense_width:
        return
    module.__class__ = NarrowAttention
    narrow: NarrowAttention = module  # pyright: ignore[reportAssignmentType]
    narrow.projected, narrow.scale = projected, dense_width**-0.5  # pyright: ignore[reportAttributeAccessIssue]
    narrow._qkv_same_embed_dim = False  # keeps nn.TransformerEncoder from its fast path, which needs wide heads
