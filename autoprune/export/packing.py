"""Weights with zeros in the cheapest form of a file, and back; the forms are those of `sparsity.storage`.

A packed tensor `w` is some tensors of the file and an entry of its layout, plain JSON:

- `w.values`: the blocks that are left, in the order of the grid of blocks `[O / rows, I / columns, K]`; each block has
  its numbers row by row, with zeros where it stands out of the weight. Numbers are those of the weight, or steps of
  8 bits, or of 4, two in a byte.
- `w.scales`: sizes of the steps, of an output `[O]` (int8) or of every 32 inputs `[O, B]` (w8, w4, whose dense form is
  filled up to whole blocks); only beside steps.
- `w.mask` (form `mask`): a bit for every block, the lowest bit of a byte first.
- `w.columns` and `w.rows` (form `rows`): the column `[I / columns, K]` of every block that is left, and where the
  blocks of a row begin and end.
- `w.places` (form `groups`): the place of every block in its group, in as few bits as hold M - 1, lowest bit first; the
  groups are in the order `[O / rows, K, groups]`.

The layout names form, shape, type, block, N and M, and beside scales of blocks the bits of a step. Nothing of a file is
trusted: sizes and places are checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.export.rounded_steps import Steps, filled, of_nibbles, scales_shape, to_nibbles, value_bytes
from autoprune.quantization.grid import BLOCK
from autoprune.sparsity.masks import block_sums, pattern_mask
from autoprune.sparsity.patterns import Pattern
from autoprune.sparsity.storage import DENSE, GROUPS, MASK, ROWS, index_bytes, place_bits

_INDEX_TYPES = {1: np.uint8, 2: np.int16, 4: np.int32}
_VIEWS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
"""Types in which columns are stored, since few readers know unsigned ones, and those that they stand for."""

_PARTS = ("values", "scales", "mask", "columns", "rows", "places")


class LayoutError(ValueError):
    """A file describes a packed tensor that is not possible."""


def packed(weight: Tensor, pattern: Pattern | None = None, steps: Steps | None = None) -> tuple[dict, dict] | None:
    """Return the parts of a weight in its cheapest form by the ends of their names, and its entry of the layout.

    Args:
        weight: floating-point tensor `[O, ...]`.
        pattern: of its zeros. A weight that does not keep to it, or has none, is packed by the zeros that it has.
        steps: to store in the place of the weight's own numbers.

    Returns:
        `None` where the plain tensor is the cheapest form.
    """
    stored = (weight if steps is None else steps.steps).detach().cpu().contiguous()
    if stored.dim() < 2 or not stored.numel():
        return None
    kept, pattern = _kept_blocks(stored, pattern)
    forms = _forms(kept, stored, pattern, steps)
    if pattern is None and steps is not None and steps.blocks:  # as policies count it
        forms = {DENSE: forms[DENSE]}
    form = min(forms, key=lambda name: forms[name])
    if form == DENSE and steps is None:
        return None
    block = pattern.block if pattern is not None and form != DENSE else (1, 1)
    parts = {} if steps is None else {"scales": steps.scales}
    whole = filled(stored) if steps is not None and steps.blocks else stored
    parts["values"] = whole.flatten() if form == DENSE else _blocks(stored, block)[kept].flatten().contiguous()
    if steps is not None and steps.bits == 4:
        parts["values"] = to_nibbles(parts["values"])
    if form == MASK:
        parts["mask"] = torch.from_numpy(np.packbits(kept.numpy().ravel(), bitorder="little"))
    elif form == ROWS:
        row, column = np.nonzero(kept.flatten(1).numpy())
        size = int(index_bytes(kept[0].numel()))
        parts["columns"] = torch.from_numpy(column.astype(_VIEWS[size]).view(_INDEX_TYPES[size]))
        parts["rows"] = torch.from_numpy(np.searchsorted(row, np.arange(len(kept) + 1)).astype(np.int32))
    elif form == GROUPS:
        assert pattern is not None
        places = np.nonzero(kept.transpose(1, 2).numpy())[2] % pattern.of
        parts["places"] = torch.from_numpy(_bits(places, place_bits(pattern)))
    of = [pattern.kept, pattern.of] if pattern is not None and form == GROUPS else [0, 0]
    dtype = str(weight.dtype).removeprefix("torch.")
    entry = {"form": form, "shape": list(weight.shape), "dtype": dtype, "block": list(block), "of": of}
    return parts, entry | ({"bits": steps.bits} if steps is not None and steps.blocks else {})


def unpacked(parts: Mapping[str, Tensor], entry: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that `packed` took apart.

    Args:
        parts: by the ends of their names.
        entry: of the layout.
        shape: that the model needs.

    Raises:
        LayoutError: the parts do not fit the entry, or the entry does not fit the shape.
    """
    if tuple(entry["shape"]) != tuple(shape):
        raise LayoutError(f"the shape is {list(entry['shape'])}, and the model needs {list(shape)}")
    dtype = getattr(torch, str(entry["dtype"]), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise LayoutError(f"{entry['dtype']!r} is no type of weights")
    block = tuple(entry["block"])
    if len(block) != 2 or not all(isinstance(side, int) and 1 <= side <= 255 for side in block) or len(shape) < 2:
        raise LayoutError(f"blocks of {list(block)} are none of a weight {list(shape)}")
    if "bits" in entry and (entry["bits"] not in (4, 8) or len(shape) != 2 or "scales" not in parts):
        raise LayoutError(f"steps of {entry['bits']!r} bits are none of a weight {list(shape)}")
    whole = _unpacked_values(parts, entry, shape, block)
    if "scales" in parts:
        if tuple(parts["scales"].shape) != scales_shape(shape, blocks="bits" in entry):
            raise LayoutError(f"there are scales {list(parts['scales'].shape)} for a weight {list(shape)}")
        whole = Steps(steps=whole, scales=parts["scales"]).values
    return whole.to(dtype)


def _unpacked_values(
    parts: Mapping[str, Tensor], entry: Mapping[str, Any], shape: tuple[int, ...], block: tuple[int, ...]
) -> Tensor:
    """Return the numbers or steps of a weight, in its shape."""
    values, form, bits = parts["values"], entry["form"], entry.get("bits", 0)
    inputs = scales_shape(shape, blocks=True)[1] * BLOCK if bits else 0
    kept = None if form == DENSE else _KEPT[form](parts, entry, _grid(shape, block))
    every = shape[0] * inputs if bits else math.prod(shape)
    expected = every if kept is None else int(kept.sum()) * math.prod(block)
    if values.dim() != 1 or len(values) != (value_bytes(expected, bits) if bits else expected):
        raise LayoutError(f"there are {values.numel()} values, and {expected} places")
    if bits and values.dtype != (torch.int8 if bits == 8 else torch.uint8):
        raise LayoutError(f"{values.dtype} is no type of steps of {bits} bits")
    values = of_nibbles(values, expected) if bits == 4 else values
    if kept is not None:
        return _filled(values, kept, block, shape)
    return values.reshape(shape[0], inputs)[:, : shape[1]] if bits else values.reshape(shape)


def parts_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the parts of a packed tensor among the tensors of a file, by the ends of their names."""
    return {part: tensors[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in tensors}


def _kept_blocks(weight: Tensor, pattern: Pattern | None) -> tuple[Tensor, Pattern | None]:
    """Return which blocks are stored, bool `[O / rows, I / columns, K]`, and the pattern that they have.

    A pattern holds a certain number of blocks, also where some of them are zeros.
    """
    if pattern is not None:
        mask = pattern_mask((weight != 0).float(), pattern)
        if not bool(((weight != 0) & ~mask).any()):
            return block_sums(mask.float(), pattern) > 0, pattern
    return weight.reshape(*_grid(tuple(weight.shape), (1, 1))) != 0, None


def _forms(kept: Tensor, weight: Tensor, pattern: Pattern | None, steps: Steps | None) -> dict[str, int]:
    """Return the bytes of every form beside what all of them have."""
    bits, left = 8 * weight.element_size() if steps is None else steps.bits, int(kept.sum())
    values = value_bytes(left * (math.prod(pattern.block) if pattern is not None else 1), bits)
    columns = kept[0].numel()
    numbers = BLOCK * steps.scales.numel() if steps is not None and steps.blocks else weight.numel()
    forms = {DENSE: value_bytes(numbers, bits), MASK: values + -(-kept.numel() // 8)}
    forms[ROWS] = values + left * int(index_bytes(columns)) + 4 * (len(kept) + 1)
    if pattern is not None and pattern.of:
        forms[GROUPS] = values + -(-left * place_bits(pattern) // 8)
    return forms


def _grid(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how many blocks a weight has along its outputs, inputs and kernel."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1]), math.prod(shape[2:])


def _padded_shape(grid: tuple[int, int, int], block: tuple[int, ...]) -> tuple[int, ...]:
    return grid[0], block[0], grid[1], block[1], grid[2]


def _blocks(weight: Tensor, block: tuple[int, ...]) -> Tensor:
    """Return a weight as `[O / rows, I / columns, K, rows, columns]`."""
    grid = _grid(tuple(weight.shape), block)
    whole = weight.new_zeros(grid[0] * block[0], grid[1] * block[1], grid[2])
    whole[: weight.shape[0], : weight.shape[1]] = weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
    return whole.reshape(_padded_shape(grid, block)).permute(0, 2, 4, 1, 3)


def _filled(values: Tensor, kept: Tensor, block: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Return a weight whose blocks that are left have some values."""
    grid = _grid(shape, block)
    blocks = values.new_zeros(*grid, *block)
    blocks[kept] = values.reshape(-1, *block)
    whole = blocks.permute(0, 3, 1, 4, 2).reshape(grid[0] * block[0], grid[1] * block[1], grid[2])
    return whole[: shape[0], : shape[1]].reshape(shape).contiguous()


def _bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Return whole numbers in so many bits each, as bytes."""
    return np.packbits((numbers[:, None] >> np.arange(width)) & 1, bitorder="little")


def _kept_by_mask(parts: Mapping[str, Tensor], entry: Mapping[str, Any], grid: tuple[int, int, int]) -> Tensor:
    del entry
    stored, count = parts["mask"], math.prod(grid)
    if stored.dtype != torch.uint8 or stored.shape != (-(-count // 8),):
        raise LayoutError(f"a mask of {count} blocks has {-(-count // 8)} bytes; got {list(stored.shape)}")
    bits = np.unpackbits(stored.numpy(), bitorder="little")
    if bits[count:].any():
        raise LayoutError("a mask has bits behind its last block")
    return torch.from_numpy(bits[:count].astype(bool)).reshape(grid)


def _kept_by_rows(parts: Mapping[str, Tensor], entry: Mapping[str, Any], grid: tuple[int, int, int]) -> Tensor:
    del entry
    size, rows = int(index_bytes(grid[1] * grid[2])), parts["rows"].numpy().astype(np.int64)
    columns = parts["columns"].numpy()
    if columns.dtype != _INDEX_TYPES[size] or columns.ndim != 1 or rows.shape != (grid[0] + 1,):
        raise LayoutError(f"columns or rows are not those of a grid of {list(grid)} blocks")
    columns = columns.view(_VIEWS[size]).astype(np.int64)
    if rows[0] != 0 or rows[-1] != len(columns) or (np.diff(rows) < 0).any():
        raise LayoutError("rows begin and end at other places than there are columns for")
    kept = np.zeros((grid[0], grid[1] * grid[2]), dtype=bool)
    if (columns >= kept.shape[1]).any():
        raise LayoutError(f"a column lies behind the last one, {kept.shape[1] - 1}")
    kept[np.repeat(np.arange(grid[0]), np.diff(rows)), columns] = True
    if kept.sum() != len(columns):
        raise LayoutError("a row has a column twice")
    return torch.from_numpy(kept).reshape(grid)


def _kept_by_groups(parts: Mapping[str, Tensor], entry: Mapping[str, Any], grid: tuple[int, int, int]) -> Tensor:
    left, of = entry["of"]
    pattern = Pattern(kept=left, of=of)
    down, across, kernel = grid
    count, width, stored = int(pattern.blocks_left(*grid)), place_bits(pattern), parts["places"]
    if stored.dtype != torch.uint8 or stored.shape != (-(-count * width // 8),):
        raise LayoutError(f"{count} places take {-(-count * width // 8)} bytes; got {list(stored.shape)}")
    bits = np.unpackbits(stored.numpy(), bitorder="little")[: count * width].reshape(count, width)
    places = (bits.astype(np.int64) << np.arange(width)).sum(1)
    in_group = [left] * (across // of) + [min(left, across % of)] * (across % of > 0)
    first = np.tile(np.repeat(np.arange(len(in_group)) * of, in_group), down * kernel)
    if (places >= of).any() or (first + places >= across).any():
        raise LayoutError("a place lies outside of its group")
    kept = np.zeros((down * kernel, across), dtype=bool)
    kept[np.repeat(np.arange(down * kernel), sum(in_group)), first + places] = True
    if kept.sum() != count:
        raise LayoutError("a group has a place twice")
    return torch.from_numpy(kept).reshape(down, kernel, across).transpose(1, 2)


_KEPT = {MASK: _kept_by_mask, ROWS: _kept_by_rows, GROUPS: _kept_by_groups}
