"""Families of operators without a rule of their own, with all their overloads: pools, copies, element-wise ones."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

aten = torch.ops.aten

POOLS = (
    {getattr(aten, f"{kind}_pool{n}d") for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)}
    | {aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices}
    | {aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d}
    | {getattr(aten, f"{kind}{n}d") for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)}
    | {aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_trilinear3d}
    | {aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten._upsample_lanczos2d_aa}
)
"""Pooling and resizing: every channel by itself, over the trailing dimensions that the name counts (all overloads)."""

UNCHANGED = {
    aten.dropout, aten.dropout_, aten.feature_dropout, aten.feature_dropout_, aten.alpha_dropout, aten.alpha_dropout_,
    aten.feature_alpha_dropout, aten.feature_alpha_dropout_,
    aten.to, aten._to_copy, aten.type_as, aten.contiguous, aten.clone, aten.alias, aten.alias_copy, aten.detach,
    aten.detach_, aten.lift, aten.lift_fresh, aten.lift_fresh_copy, aten.pin_memory, aten.zero, aten.zero_,
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like,
    aten.randint_like, aten.bernoulli, aten.conj, aten.resolve_conj, aten.resolve_neg,
}  # fmt: skip
"""Operators (all overloads) whose output has the shape and the labels of their first operand."""

_UNCHANGED_OVERLOADS = {
    aten.fill.Scalar, aten.fill_.Scalar, aten.view.dtype, aten.bernoulli_.float, aten.bernoulli_.Tensor,
    aten.uniform_.default, aten.normal_.default, aten.exponential_.default, aten.cauchy_.default,
    aten.log_normal_.default, aten.geometric_.default,
}  # fmt: skip

ELEMENTWISE = {
    aten.absolute, aten.arccos, aten.arccosh, aten.arcsin, aten.arcsinh, aten.arctan, aten.arctan2, aten.arctanh,
    aten.complex, aten.copy, aten.divide, aten.fill, aten.fix, aten.floor_divide, aten.gelu, aten.greater,
    aten.greater_equal, aten.hardswish, aten.imag, aten.less, aten.less_equal, aten.log_sigmoid,
    aten.masked_fill, aten.mish, aten.multiply, aten.negative, aten.not_equal, aten.polar, aten.real, aten.relu6,
    aten.rsub, aten.selu, aten.silu, aten.softplus, aten.subtract, aten.true_divide, aten.where, aten.div,
    aten.__and__, aten.__or__, aten.__xor__, aten.__lshift__, aten.__rshift__,
    aten.__iand__, aten.__ior__, aten.__ixor__, aten.__ilshift__, aten.__irshift__,
}  # fmt: skip
"""Operators (all overloads) that are element-wise in effect, though they lack PyTorch's tag `pointwise`."""


_GROUPED_PRODUCTS = {"aten::_grouped_mm", "transformers::grouped_mm_fallback"}
"""Products of rows, sorted by expert, with the matrix of their expert: `(x [S, K], weight [G, K, N], ends [G])`."""


def is_grouped_product(target: Any) -> bool:
    """Return whether an operator multiplies each row with the matrix of its expert, in a mixture of experts."""
    return isinstance(target, OpOverload) and target._schema.name in _GROUPED_PRODUCTS


def is_pool(target: Any) -> bool:
    """Return whether an operator pools or resizes every channel by itself."""
    return isinstance(target, OpOverload) and target.overloadpacket in POOLS


def is_unchanged(target: Any) -> bool:
    """Return whether the output of an operator has the shape and the labels of the first operand."""
    return isinstance(target, OpOverload) and (target.overloadpacket in UNCHANGED or target in _UNCHANGED_OVERLOADS)


def is_elementwise(target: Any) -> bool:
    """Return whether an operator, or the twin of one that works in place, is element-wise."""
    if not isinstance(target, OpOverload):
        return False
    if torch.Tag.pointwise in target.tags or target.overloadpacket in ELEMENTWISE:
        return True
    twin = _not_in_place(target)
    return twin in ELEMENTWISE or any(
        torch.Tag.pointwise in getattr(twin, overload).tags for overload in (twin.overloads() if twin else ())
    )


def _not_in_place(target: OpOverload) -> Any:
    """Return the operator of which `target` is the version that writes into its first operand, or `None`."""
    name = target.overloadpacket.__name__
    return getattr(aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
