"""What is hidden: the share asked for, whole units, from the generator that is passed in."""

import pytest
import torch
from torch import nn

from vit_pytorch import ViT, create_model
from vit_pytorch.ssl.masks import (
    as_maskable,
    check_ratio,
    count_visible,
    cover,
    draw_mask,
    draw_noise,
    gather_tokens,
    patch_tokens,
)


def test_noise_is_torchs():
    first, second = (draw_noise(2, 5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.equal(second)
    torch.manual_seed(3)
    assert draw_noise(2, 5).equal(first)
    assert not draw_noise(2, 5).equal(first)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.6, 15), (0.5, 13), (0.01, 1), (0.99, 25)])
def test_share_is_rounded_up(ratio, hidden):
    assert draw_mask(6, (5, 5), ratio).sum(dim=1).tolist() == [hidden] * 6


def test_units_are_hidden_whole():
    mask = draw_mask(64, (4, 6), 0.5, unit=(2, 3))
    units = mask.view(64, 2, 2, 2, 3).transpose(2, 3).flatten(3)
    assert units.all(-1).equal(units.any(-1))
    assert units.any(-1).flatten(1).sum(dim=1).tolist() == [2] * 64
    # Every choice of two of four units occurs.
    assert len(mask.unique(dim=0)) == 6


def test_units_fill_the_grid():
    with pytest.raises(ValueError, match=r"grid of \(5, 4\) patches is not cut into units of \(2, 2\)"):
        draw_mask(1, (5, 4), 0.5, unit=(2, 2))


def test_masks_differ_between_images():
    assert len(draw_mask(8, (8, 8), 0.5).unique(dim=0)) == 8


def test_cover_and_take():
    tokens, token = torch.randn(2, 3, 4), torch.randn(1, 1, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    covered = cover(tokens, mask, token)
    assert covered[mask].equal(token[0].expand(3, -1))
    assert covered[~mask].equal(tokens[~mask])
    places = torch.tensor([[2, 0], [1, 1]])
    taken = gather_tokens(tokens, places)
    assert taken.equal(torch.stack([tokens[0, [2, 0]], tokens[1, [1, 1]]]))


def test_patches_without_prefix():
    tokens = torch.randn(2, 6, 4)
    assert patch_tokens(tokens, 2, 4).equal(tokens[:, 2:])
    with pytest.raises(ValueError, match="5 behind 2 prefix tokens, got 6"):
        patch_tokens(tokens, 2, 5)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_ratio(ratio):
    with pytest.raises(ValueError, match=f"share is between 0 and 1, got {ratio}"):
        check_ratio("share", ratio)


def test_some_stay():
    assert [count_visible(n, 0.75) for n in (16, 10, 5)] == [4, 2, 1]
    with pytest.raises(ValueError, match=r"masking 0\.75 of 3 patches leaves 0 visible"):
        count_visible(3, 0.75)


def test_maskable():
    vit = ViT(image_size=20, patch_size=4, num_classes=0, dim=8, depth=1, heads=1, mlp_dim=8)
    assert as_maskable(vit) is vit
    with pytest.raises(ValueError, match="CaiT has 1, of which 0 are there"):
        as_maskable(create_model("cait_xxs24_224", depth=1))
    with pytest.raises(ValueError, match="got Linear"):
        as_maskable(nn.Linear(2, 2))


def test_overlapping_patches_are_told():
    vit = ViT(image_size=24, patch_size=4, num_classes=0, dim=8, depth=1, heads=1, mlp_dim=8, stem="conv")
    with pytest.warns(UserWarning, match="ViT embeds patches by ConvStem, through which hidden pixels may"):
        assert as_maskable(vit) is vit
