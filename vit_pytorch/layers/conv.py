"""Convolutions on maps whose channels come last, as linear layers and attention have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, activation, fx_leaf, layer


def pool_map(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d"]:
    """Return the mean of a channels-first map; the gradient lies in memory with its channels last."""
    return x.permute(0, 2, 3, 1).mean(dim=(1, 2))


class OnMap(nn.Module):
    """Apply a module for channels-first maps to a channels-last one; both permutations are views.

    What the module is given lies in memory with its channels last, the order that convolutions of the
    processor are fastest in.

    Args:
        layers: modules for channels-first maps, applied in turn.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Return the map, its channels last again."""
        return self.layers(x.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MapNorm(nn.LayerNorm):
    """LayerNorm of the channels of a channels-first map."""

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Normalise every cell."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of vectors; in training, a single one, without statistics, is served by earlier batches'."""

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Norm each channel over the batch."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        of_batch = has_statistics(x, self.training)
        return F.batch_norm(x, *statistics, of_batch, self.momentum or 0.0, self.eps)


@fx_leaf
def has_statistics(x: Float[Tensor, "b d"], training: bool) -> bool:
    """Return whether a batch is normed by its own statistics: in training, if it is more than one vector."""
    return training and x.shape[0] > 1


class MapBatchNorm(TokenNorm):
    """Batch norm of a channels-last map."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Norm each channel over the cells of the batch."""
        return super().forward(x.flatten(0, -2)).view_as(x)


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch norm, and an activation, on a channels-first map.

    Args:
        kernel: side of the kernel; odd, and padded to keep the size but for the stride.
        stride: distance of the kernel's places.
        groups: parts of the channels that are convolved apart.
        eps: epsilon of the batch norm.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        act: str | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_dim, eps=eps)
        if act is not None:
            self.act = activation(act)

    def fuse(self) -> None:
        """Fold the batch norm into the convolution, for inference alone; a second time changes nothing."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()), nn.Identity()


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all (Hu et al. 2017, arXiv:1709.01507).

    Args:
        hard: whether the gate is the hard sigmoid, relu6(x + 3) / 6.
    """

    @checks_arguments
    def __init__(self, dim: int, hidden_dim: int, *, act: str = "silu", hard: bool = False) -> None:
        super().__init__()
        self.squeeze = nn.Linear(dim, hidden_dim)
        self.act = activation(act)
        self.excite = nn.Linear(hidden_dim, dim)
        self.gate = nn.Hardsigmoid() if hard else nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Scale the channels of a channels-first map."""
        gate = self.gate(self.excite(self.act(self.squeeze(pool_map(x)))))
        return x * gate[:, :, None, None]


class PositionGenerator(nn.Module):
    """Add a depth-wise convolution of the map, which tells cells their places (CPVT, arXiv:2102.10882, 3.2).

    Args:
        kernel: side of the kernel, odd.

    Raises:
        ValueError: where the kernel is not odd.
    """

    def __init__(self, dim: int, kernel: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel that keeps the size is odd, got {kernel}")
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Add the convolution to the map."""
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PositionedBlock(Block):
    """A block followed by a positional encoding generator (PEG; Twins, arXiv:2104.13840, section 3.1).

    Args:
        positions: acts on the map after the block.
    """

    def __init__(
        self, dim: int, attention: nn.Module, feedforward: nn.Module, *, positions: nn.Module, **options: Any
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.positions = positions

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Apply both residual branches, then the generator."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        return self.positions(x + self.drop_path(self.scale2(self.feedforward(self.norm2(x)))))


class InvertedBottleneck(nn.Module):
    """Widen each cell, convolve channel by channel, narrow again (MobileNetV2, arXiv:1801.04381, 3.3).

    The linear layers are that paper's 1 x 1 convolutions, on a map whose channels are last.

    Args:
        depthwise: makes the convolution from the width.
        norm: makes a batch norm from a width; one follows each of the two layers before the last.
        excite: where given, makes a gate of the channels from the width, which stands before the last layer
            (`SqueezeExcite` in MBConv, Tan et al. 2018, arXiv:1807.11626).
        norm_out: whether a norm follows the last layer, too, which has a bias otherwise.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        out_dim: int,
        hidden_dim: int,
        *,
        depthwise: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: str = "silu",
        excite: Callable[[int], nn.Module] | None = None,
        norm_out: bool = True,
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden_dim, bias=False)
        self.depthwise = OnMap(
            norm(hidden_dim),
            activation(act),
            depthwise(hidden_dim),
            norm(hidden_dim),
            activation(act),
            *([] if excite is None else [excite(hidden_dim)]),
        )
        self.project = nn.Linear(hidden_dim, out_dim, bias=not norm_out)
        self.norm = OnMap(norm(out_dim)) if norm_out else nn.Identity()
        for linear in (self.expand, self.project):
            nn.init.normal_(linear.weight, std=(2 / linear.out_features) ** 0.5)
        if not norm_out:
            nn.init.zeros_(self.project.bias)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map."""
        return self.norm(self.project(self.depthwise(self.expand(x))))
