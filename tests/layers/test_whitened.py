import pytest
import torch
from skimage import data
from torch import nn

from vit_pytorch.layers.whitened import WhitenedNet, WhitenedStage, init_whitening

COLOURS = ((1.0, 0.93, 0.85), (0.93, 1.0, 0.93), (0.85, 0.93, 1.0))


def whitening(channels: int, kernel: tuple[int, int], out: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, kernel)
    init_whitening(conv)
    return conv


@torch.no_grad()
def test_patches_of_the_model_are_whitened():
    """The outputs' covariance is the identity, as far as the noise allows; each comes with both signs."""
    conv = whitening(3, (2, 3), 36)
    values = [(c, y, x) for c in range(3) for y in range(2) for x in range(3)]
    covariance = torch.tensor(
        [[COLOURS[c][d] * 0.95 ** (abs(y - v) + abs(x - u)) for d, v, u in values] for c, y, x in values],
        dtype=torch.float64,
    )
    kernels = conv.weight.flatten(1).double()
    assert kernels[18:].equal(-kernels[:18])
    found = kernels[:18] @ covariance @ kernels[:18].T
    variances = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(found, (variances / (variances + 5e-4)).diag(), atol=1e-5, rtol=0)
    assert conv.bias is not None
    assert not conv.bias.any()


@torch.no_grad()
def test_photographs_come_out_alike():
    """Of a real photograph the directions vary by a factor of 4 instead of 90."""
    photo = torch.tensor(data.astronaut()).movedim(-1, 0)[None].float()
    photo = (photo - photo.mean((2, 3), keepdim=True)) / photo.std((2, 3), keepdim=True)
    spread = whitening(3, (3, 3), 32)(photo)[0, :16].std((1, 2))
    patches = nn.functional.unfold(photo, 3)[0]
    before = torch.linalg.eigvalsh(patches.cov())[-16:].sqrt()
    assert spread.max() / spread.min() < 5
    assert before[-1] / before[0] > 80


def test_grey_has_fewer_directions():
    assert WhitenedNet(1, (1, 1)).whiten.out_channels == 18
    assert WhitenedNet(3, (1, 1)).whiten.out_channels == 32


@torch.no_grad()
def test_a_stage_begins_as_the_identity():
    stage = WhitenedStage(8, 12, 2)
    x = torch.randn(4, 8, 6, 10)
    pooled = nn.functional.max_pool2d(x, 2)
    normed = nn.functional.gelu(
        (pooled - pooled.mean((0, 2, 3), keepdim=True)) / pooled.std((0, 2, 3), correction=0, keepdim=True)
    )
    found = WhitenedStage(8, 12, 1)(x)
    assert found.shape == (4, 12, 3, 5)
    torch.testing.assert_close(found[:, :8], normed, atol=1e-4, rtol=1e-4)
    once = stage.blocks[0]
    again = nn.functional.gelu(
        (normed - normed.mean((0, 2, 3), keepdim=True)) / normed.std((0, 2, 3), correction=0, keepdim=True)
    )
    torch.testing.assert_close(once(found)[:, :8], normed + again, atol=1e-3, rtol=1e-3)


def test_what_does_not_fit():
    with pytest.raises(
        ValueError, match="patches of 12 values need an even number of channels up to 24, got 26"
    ):
        whitening(3, (2, 2), 26)
    with pytest.raises(ValueError, match="up to 24, got 7"):
        whitening(3, (2, 2), 7)
    with pytest.raises(ValueError, match="must be a multiple of 4, got 6"):
        WhitenedNet(3, (1,), width=6)
