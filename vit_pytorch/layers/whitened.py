"""A convolutional network for small photographs that learns in a few passes over them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Correlation of a colour photograph's neighbouring pixels, and of its red with green (as green with blue) and
# of red with blue: those of natural images, rounded.
NEIGHBOURS = 0.95
COLOURS = ((1.0, 0.93, 0.85), (0.93, 1.0, 0.93), (0.85, 0.93, 1.0))
# keeps directions in which photographs hardly vary from being enlarged without end
NOISE = 5e-4


@torch.no_grad()
def init_whitening(conv: nn.Conv2d) -> None:
    """Start a convolution of images so that what leaves it is uncorrelated and of equal variance.

    K. Jordan 2024, arXiv:2404.00498, section 3.2. The covariance of patches is not measured on the data but
    that of a model of photographs: neighbours correlate by 0.95, pixels further apart by its powers. Each
    direction, largest variance first, comes with both signs; another number of channels than 3 is taken as
    uncorrelated.

    Raises:
        ValueError: if the output's channels are odd, or more than twice the values of a patch.
    """
    channels, (rows, columns) = conv.in_channels, conv.kernel_size
    values = channels * rows * columns
    if conv.out_channels % 2 or conv.out_channels > 2 * values:
        raise ValueError(
            f"whitened patches of {values} values need an even number of channels up to {2 * values}, "
            f"got {conv.out_channels}"
        )
    colours = torch.tensor(COLOURS, dtype=torch.float64) if channels == 3 else torch.eye(channels).double()
    places = [torch.arange(size)[:, None] - torch.arange(size) for size in (rows, columns)]
    along, across = (NEIGHBOURS ** distance.abs().double() for distance in places)
    covariance = torch.kron(colours, torch.kron(along, across))
    variances, directions = torch.linalg.eigh(covariance)
    kernels = (directions / (variances + NOISE).sqrt()).flip(1).mT[: conv.out_channels // 2]
    conv.weight.copy_(torch.cat([kernels, -kernels]).view_as(conv.weight))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@torch.no_grad()
def init_identity(conv: nn.Conv2d) -> None:
    """Start a convolution so that its first outputs are its inputs (arXiv:2404.00498, section 3.3)."""
    nn.init.kaiming_uniform_(conv.weight, a=5**0.5)
    nn.init.dirac_(conv.weight[: conv.in_channels])


class AddedConv(nn.Module):
    """A convolution with batch norm and GELU, added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        init_identity(self.conv)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Return the map and what the convolution finds in it."""
        return x + F.gelu(self.norm(self.conv(x)))


class WhitenedStage(nn.Module):
    """Convolutions with batch norm and GELU, of which the first is pooled to half the size, the others added.

    Args:
        out_dim: channels that leave.
        depth: convolutions.
    """

    def __init__(self, dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)
        self.blocks = nn.Sequential(*(AddedConv(out_dim) for _ in range(depth - 1)))
        init_identity(self.conv)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of half the size."""
        return self.blocks(F.gelu(self.norm(F.max_pool2d(self.conv(x), 2))))


class WhitenedNet(nn.Sequential):
    """A whitening convolution, and stages that halve the map and begin as identities.

    K. Jordan 2024, arXiv:2404.00498. The paper's airbench94 has three stages of 64, 256 and 256 channels
    without shortcuts, and whitens patches of 2 x 2 pixels by the covariance of the data, for good.

    Args:
        depths: convolutions in each stage.
        width: channels of the first stage, a multiple of 4. The other stages have four times as many; the
            whitening has half of them, or both signs of all directions of a patch if these are fewer.

    Attributes:
        reduction: pixels along a side of the last map's cell.
        num_features: channels of the last map.

    Raises:
        ValueError: if the width is no multiple of 4.
    """

    def __init__(self, channels: int, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        if width % 4 or width < 4:
            raise ValueError(f"the width of a whitened network must be a multiple of 4, got {width}")
        dims = [min(width // 2, 2 * 9 * channels), width, *(4 * width for _ in depths[1:])]
        self.whiten = nn.Conv2d(channels, dims[0], 3, padding=1)
        self.act = nn.GELU()
        self.stages = nn.Sequential(
            *(
                WhitenedStage(dim, out_dim, depth)
                for (dim, out_dim), depth in zip(pairwise(dims), depths, strict=True)
            )
        )
        self.reduction = 2 ** len(depths)
        self.num_features = dims[-1]
        init_whitening(self.whiten)
