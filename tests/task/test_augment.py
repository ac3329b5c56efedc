import pytest
import torch

from autoprune.task import augment

IMAGES = torch.rand(16, 2, 9, 9, generator=torch.Generator().manual_seed(0))
ALL = [augment.shift, augment.flip, augment.affine]


@pytest.mark.parametrize("change", ALL)
def test_shape_type_and_determinism(change):
    before = IMAGES.clone()
    one, two, other = (change(IMAGES, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == IMAGES.shape
    assert one.dtype == IMAGES.dtype
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(IMAGES, before)


def test_shift_moves_and_fills_with_background():
    dot = torch.zeros(200, 1, 9, 9)
    dot[:, 0, 4, 4] = 1.0
    moved = augment.shift(dot, torch.Generator().manual_seed(0), pixels=2)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    places = moved.flatten(1).argmax(dim=1)
    assert {(int(p) // 9, int(p) % 9) for p in places} == {(r, c) for r in range(2, 7) for c in range(2, 7)}


def test_flip_mirrors_some_images_and_leaves_the_others():
    flipped = augment.flip(IMAGES, torch.Generator().manual_seed(0))
    same = [torch.equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(same) < len(same)


def test_affine_without_extent_is_the_identity():
    same = augment.affine(IMAGES, torch.Generator().manual_seed(0), degrees=0, scale=0, shear=0, pixels=0)
    torch.testing.assert_close(same, IMAGES, atol=1e-5, rtol=0)
