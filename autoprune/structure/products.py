"""Rules of products of tensors: matrix products, einsum and attention."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from torch import fx

from autoprune.structure.analysis import Analysis, align, tie
from autoprune.structure.labels import Array, Value
from autoprune.structure.nodes import argument, shape_of

Names = Sequence[Hashable]
"""One name for every dimension of a tensor; dimensions with equal names are multiplied index by index."""


def matrix_product(state: Analysis, node: fx.Node) -> Value:
    """Rule of `matmul`, `mm` and `bmm`: the inner dimensions meet, leading dimensions are broadcast."""
    return _matmul(state, node, node.args[0], node.args[1])


def shifted_product(state: Analysis, node: fx.Node) -> Value:
    """Rule of `addmm` and `baddbmm`: a matrix product that is added to the first operand."""
    product = _matmul(state, node, node.args[1], node.args[2])
    return align(state.labels, [product, state.value(node.args[0])], shape_of(node), str(node.target))


def _matmul(state: Analysis, node: fx.Node, first: object, second: object) -> Value:
    x, y = state.value(first), state.value(second)
    names_x = [*_leading(len(x.shape) - 2), "row", "inner"][-len(x.shape) :]
    names_y = ["inner"] if len(y.shape) == 1 else [*_leading(len(y.shape) - 2), "inner", "column"]
    lead = max(len(x.shape), len(y.shape), 2) - 2
    out = [*_leading(lead), *(["row"] if len(x.shape) > 1 else []), *(["column"] if len(y.shape) > 1 else [])]
    return _contract(state, node, [(x, names_x), (y, names_y)], out)


def expert_product(state: Analysis, node: fx.Node) -> Value:
    """Rule of grouped products, `x [S, K]`, `weight [G, K, N]`: K meets, N passes, and the experts G are fixed."""
    x, weight = state.value(node.args[0]), state.value(node.args[1])
    if len(x.shape) != 2 or len(weight.shape) != 3:
        raise ValueError("only rows that are sorted by expert are known")
    state.labels.fix_value(weight, "is an expert, which rows are sent to by number", [0])
    state.labels.fix_value(x, "is a row that is sent to an expert", [0])
    return _contract(state, node, [(x, ["row", "inner"]), (weight, ["expert", "inner", "column"])], ["row", "column"])


def _leading(count: int) -> list[int]:
    """Return the names of leading dimensions, counted from the right."""
    return list(range(-count, 0))


def einsum(state: Analysis, node: fx.Node) -> Value:
    """Rule of `einsum`: every letter is one name; dimensions of an ellipsis are aligned at the right."""
    operands = [state.value(n) for n in node.args[1]]  # type: ignore[union-attr]
    terms, output = einsum_names(str(node.args[0]), [len(v.shape) for v in operands], len(shape_of(node)))
    return _contract(state, node, list(zip(operands, terms, strict=True)), output)


def einsum_names(equation: str, ranks: Sequence[int], rank: int) -> tuple[Sequence[Names], Names]:
    """Return the names of the dimensions of every operand of an einsum, and of its output.

    `ranks` are those of the operands, `rank` is that of the output.

    >>> einsum_names("bij,bjk->bik", [3, 3], 3)
    ([['b', 'i', 'j'], ['b', 'j', 'k']], ['b', 'i', 'k'])
    """
    inputs, _, output = equation.replace(" ", "").partition("->")
    if not output:
        letters = inputs.replace(",", "").replace(".", "")
        output = "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
        output = f"...{output}" if "..." in inputs else output
    terms = [_named(term, count) for term, count in zip(inputs.split(","), ranks, strict=True)]
    return terms, _named(output, rank)


def _named(term: str, rank: int) -> list[Hashable]:
    before, dots, after = term.partition("...")
    return [*before, *(_leading(rank - len(before) - len(after)) if dots else []), *after]


def bilinear(state: Analysis, node: fx.Node) -> Value:
    """Rule of `bilinear`, `x [..., I]`, `y [..., J]`, `weight [O, I, J]`, `bias [O]`."""
    x, y, weight, bias = (state.value(n) for n in node.args[:4])
    lead = _leading(len(x.shape) - 1)
    out = _contract(state, node, [(x, [*lead, "i"]), (y, [*lead, "j"]), (weight, ["o", "i", "j"])], [*lead, "o"])
    return align(state.labels, [out, bias], out.shape, str(node.target)) if bias.shape else out


def similarity(state: Analysis, node: fx.Node) -> Value:
    """Rule of cosine similarity and distances of pairs: operands are tied, the compared dimension is summed."""
    x, y = state.value(node.args[0]), state.value(node.args[1])
    shape = np.broadcast_shapes(x.shape, y.shape)
    names = {parameter.name for parameter in node.target._schema.arguments}  # type: ignore[union-attr]
    dim = (argument(node, "dim") if "dim" in names else -1) % len(shape)
    tied = align(state.labels, [x, y], shape, str(node.target))
    parts = tuple(c for c in tied.components if c.shape[dim] == 1)
    own = shape_of(node)
    return Value(own, parts if len(own) == len(shape) else tuple(c.squeeze(dim) for c in parts))


def distances(state: Analysis, node: fx.Node) -> Value:
    """Rule of `cdist`, `x [..., P, M]`, `y [..., R, M]`: M is summed, P and R pass."""
    x, y = state.value(node.args[0]), state.value(node.args[1])
    lead = _leading(len(x.shape) - 2)
    return _contract(state, node, [(x, [*lead, "p", "m"]), (y, [*lead, "r", "m"])], [*lead, "p", "r"])


def _contract(state: Analysis, node: fx.Node, operands: Sequence[tuple[Value, Names]], output: Names) -> Value:
    """Tie dimensions with equal names and pass the dimensions of the output on; an operand of size 1 is not tied.

    A name that two operands and the output share is a dimension of heads: each of its indices has a product. An operand
    of size 1 there serves all heads.
    """
    met: dict[Hashable, list[list[Array]]] = {}
    holders: dict[Hashable, int] = {}
    for value, names in operands:
        for dim, name in enumerate(names):
            holders[name] = holders.get(name, 0) + 1
            if value.shape[dim] > 1:
                met.setdefault(name, []).append(value.along(dim))
    tied = {name: tie(state.labels, sides, f"meets a fixed operand in {node.target}") for name, sides in met.items()}
    heads = [name for name in output if holders.get(name, 0) > 1 and any(met.get(name, ()))]
    for name, sides in met.items():
        if name in heads:
            state.heads += tied[name]
            state.heads_of.setdefault(node, []).extend(part for side in sides for part in side)
        elif heads:
            state.head_dims += tied[name]
    return Value.of_dims(shape_of(node), {dim: tied.get(name, []) for dim, name in enumerate(output)})


def attention(state: Analysis, node: fx.Node) -> Value:
    """Rule of attention: `q [..., h, l, e]`, `k [..., h, s, e]`, `v [..., h, s, f]`, `mask [..., h, l, s]`.

    With grouped queries, head `h` of `q` meets head `h // (heads of q / heads of k)` of `k` and `v`.
    """
    labels = state.labels
    q, k, v = (state.value(n) for n in node.args[:3])
    for value in (q, k, v):
        labels.fix_value(value, "a sequence length of attention", [len(value.shape) - 2])
    repeats = q.shape[-3] // k.shape[-3] if argument(node, "enable_gqa") and len(q.shape) > 2 else 1
    if repeats > 1:
        group = labels.fresh(repeats)
        k, v = _repeated(k, repeats, group), _repeated(v, repeats, group)
    lead = _leading(len(q.shape) - 2)
    operands: list[tuple[Value, Names]] = [(q, [*lead, "l", "e"]), (k, [*lead, "s", "e"]), (v, [*lead, "s", "f"])]
    mask = state.value(argument(node, "attn_mask"))
    if mask.shape:
        names = [*_leading(len(mask.shape) - 2), "l", "s"][-len(mask.shape) :]
        operands.append((mask, names))
    return _contract(state, node, operands, [*lead, "l", "f"])


def _repeated(value: Value, repeats: int, group: Array) -> Value:
    """Return keys or values repeated for the heads of queries: head `h == K[h // repeats] or G[h % repeats]`."""
    dim = len(value.shape) - 3
    shape = (*value.shape[:dim], repeats * value.shape[dim], *value.shape[dim + 1 :])
    others = Value(shape, tuple(c for c in value.components if c.shape[dim] == 1))
    own = [np.repeat(c, repeats) for c in value.along(dim)]
    grouped = [*own, np.tile(group, value.shape[dim])] if own or value.shape[dim] == 1 else []
    return Value(shape, others.components + Value.of_dims(shape, {dim: grouped}).components)
