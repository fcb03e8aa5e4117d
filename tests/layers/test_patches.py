import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_pytorch.layers.patches import ConvStem, PatchEmbed, PatchGrid, pair

GRIDS = [PatchGrid((12,), (3,)), PatchGrid((8, 6), (4, 2)), PatchGrid((4, 6, 8), (2, 3, 4))]
each_rank = pytest.mark.parametrize("grid", GRIDS, ids=["1d", "2d", "3d"])


@each_rank
def test_unpatchify_inverts_patchify(grid):
    x = torch.randn(2, 3, *grid.size)
    patches = grid.patchify(x)
    assert patches.shape == (2, grid.num_patches, x[0].numel() // grid.num_patches)
    assert grid.unpatchify(patches).equal(x)


def test_order_of_patches():
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = PatchGrid((4, 6), (2, 3)).patchify(image)
    for cell, (row, column) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        patch = image[0, :, row : row + 2, column : column + 3]
        assert patches[0, cell].equal(patch.permute(1, 2, 0).flatten())


def test_smaller_input():
    grid = PatchGrid((8, 6), (4, 2))
    x = torch.randn(2, 3, 4, 4)
    assert grid.shape == (2, 3)
    assert grid.fit((4, 4)) == (1, 2)
    assert grid.unpatchify(grid.patchify(x), (1, 2)).equal(x)


@pytest.mark.parametrize(
    ("size", "patch", "message"),
    [
        ((8, 8), (4,), r"must have the same rank, got \(8, 8\) and \(4,\)"),
        ((8, 0), (4, 4), r"at least 1, got image size \(8, 0\)"),
        ((8, 8), (4, 0), r"at least 1, got .* patch size \(4, 0\)"),
        ((8, 9), (4, 4), r"must be a multiple of patch size \(4, 4\), got \(8, 9\)"),
    ],
)
def test_impossible_grid(size, patch, message):
    with pytest.raises(ValueError, match=message):
        PatchGrid(size, patch)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((12, 8), r"must be at most \(8, 8\), got \(12, 8\)"),
        ((6, 8), r"must be a multiple of patch size \(4, 4\), got \(6, 8\)"),
        ((0, 8), r"at least \(4, 4\), got image size \(0, 8\)"),
    ],
)
def test_input_that_does_not_fit(size, message):
    with pytest.raises(ValueError, match=message):
        PatchGrid((8, 8), (4, 4)).fit(size)


def test_unpatchify_of_another_grid():
    with pytest.raises(ValueError, match="has 4 patches, got 3"):
        PatchGrid((8, 8), (4, 4)).unpatchify(torch.randn(1, 3, 48))


def test_pair():
    assert pair(4) == (4, 4)
    assert pair([4, 6]) == (4, 6)
    with pytest.raises(ValueError, match=r"\(height, width\), got \(1, 2, 3\)"):
        pair((1, 2, 3))


@each_rank
def test_embedding_is_a_linear_layer_on_patches(grid):
    embed = PatchEmbed(grid, 3, 10)
    x = torch.randn(2, 3, *grid.size)
    weight = embed.proj.weight.movedim(1, -1).flatten(1)
    torch.testing.assert_close(embed(x), F.linear(grid.patchify(x), weight, embed.proj.bias))


@each_rank
def test_dual_patch_norm(grid):
    embed = PatchEmbed(grid, 3, 10, norm_eps=1e-6)
    nn.init.normal_(embed.norm_in.weight)
    nn.init.normal_(embed.norm_out.bias)
    linear = nn.Linear(embed.norm_in.normalized_shape[0], 10)
    linear.weight.data = embed.proj.weight.movedim(1, -1).flatten(1)
    linear.bias.data = embed.proj.bias
    x = torch.randn(2, 3, *grid.size)
    want = embed.norm_out(linear(embed.norm_in(grid.patchify(x))))
    torch.testing.assert_close(embed(x), want)


@pytest.mark.parametrize("patch", [1, 2, 4, 8, 16])
def test_conv_stem(patch):
    stem = ConvStem(PatchGrid((16, 32), (patch, patch)), 3, 24)
    assert stem(torch.randn(2, 3, 16, 32)).shape == (2, 16 * 32 // patch**2, 24)
    assert stem(torch.randn(2, 3, 16, 16)).shape == (2, 16 * 16 // patch**2, 24)
    assert len(stem.convs) == 3 * max(patch.bit_length() - 1, 2 * (patch == 1))


@pytest.mark.parametrize("patch", [(3, 3), (4, 2), (2,), (2, 2, 2)])
def test_conv_stem_needs_a_square_power_of_two(patch):
    with pytest.raises(
        ValueError, match=f"power of two; got {patch}".replace("(", r"\(").replace(")", r"\)")
    ):
        ConvStem(PatchGrid(tuple(12 * p for p in patch), patch), 3, 24)
