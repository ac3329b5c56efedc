"""Augmentations of a batch of images `[N, C, H, W]` with background 0; random only through the given generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(images: Tensor, generator: torch.Generator, *, pixels: int = 2) -> Tensor:
    """Move every image by up to `pixels` in both directions; what moves in is 0."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    down, right = torch.randint(0, 2 * pixels + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    moved = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def affine(
    images: Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 12,
    scale: float = 0.12,
    shear: float = 0.12,
    pixels: float = 2,
) -> Tensor:
    """Rotate, scale, shear and move every image a little, each uniformly up to the given extent."""
    n = len(images)
    turn, grow_x, grow_y, lean, right, down = (torch.rand(6, n, generator=generator) * 2 - 1).unbind()
    angle = turn * (degrees * torch.pi / 180)
    cos, sin, lean = angle.cos(), angle.sin(), lean * shear
    grow_x, grow_y = 1 + grow_x * scale, 1 + grow_y * scale
    step = 2 * pixels / images.shape[-1]
    first = torch.stack([cos * grow_x, lean - sin * grow_y, right * step], dim=1)
    second = torch.stack([sin * grow_x, cos * grow_y, down * step], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
