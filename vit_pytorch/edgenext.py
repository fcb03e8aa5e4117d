"""EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture for Mobile Vision Applications.

M. Maaz, A. Shaker, H. Cholakkal, S. Khan, S. W. Zamir, R. M. Anwer, F. S. Khan 2022, arXiv:2206.10589.

A pyramid of ConvNeXt's blocks whose kernels grow from stage to stage. The last block of a stage splits its
channels into groups, which depth-wise convolutions mix one after the other, each with what the group before
it became; then channels attend to channels by their cross-covariance, in time linear in the number of cells
(split depth-wise transpose attention, SDTA).

Family: pyramid
Differs from the paper: nothing known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, CrossCovariance, heads_per_stage
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, layer, make_scale
from vit_pytorch.layers.conv import ConvNeXt, OnMap
from vit_pytorch.layers.init import init_convs
from vit_pytorch.layers.options import check_choice, per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.positions import FourierPositions

# Pixels from one cell of the first stage to the next, and the side of the kernel of overlapping patches.
STRIDE, OVERLAP = 4, 9


class EdgeNeXt(HierarchicalModel):
    """The pyramid of convolutions and split depth-wise transpose attention.

    Args:
        dim: channels of the first stage, which double from stage to stage, or of each.
        depth: number of blocks of each stage.
        global_depth: so many of them, the last ones, attend.
        heads: heads of each stage.
        kernel_size: side of the kernels of each stage's convolutional blocks, odd.
        scales: groups of channels of each stage's blocks that attend.
        positions: for each stage, blocks that attend add the waves of their places to the cells.
        stem: "patch" embeds patches of 4 x 4 pixels, "overlap" such of 9 x 9.
        down: what halves the map before a stage: "conv", a norm and a convolution of 2 x 2 cells, or
            "depthwise", the first block's convolution, which no way leads around then.
        conv_bias: use biases for the convolutions.
        mlp_ratio: hidden dimension of the feed-forwards by channels.
        image_size: the customary input, one number or (height, width) in pixels; any other from 32 pixels
            on is accepted.

    Raises:
        ValueError: if there are more or fewer of anything than stages, heads do not share the channels, more
            blocks attend than there are, channels cannot be split, or a kernel is even.
    """

    # Halving learns at the rate of its stage's first block, and temperatures decay, as in timm.
    down_in_first_block = True
    undecayed = r"(?!)"

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = (24, 48, 88, 168),
        depth: Sequence[int] = (3, 3, 9, 3),
        global_depth: Sequence[int] = (0, 1, 1, 1),
        heads: Sequence[int] = (8, 8, 8, 8),
        kernel_size: Sequence[int] = (3, 5, 7, 9),
        scales: Sequence[int] = (2, 2, 3, 4),
        positions: Sequence[bool] = (False, True, False, False),
        stem: Literal["patch", "overlap"] = "patch",
        down: Literal["conv", "depthwise"] = "conv",
        conv_bias: bool = True,
        image_size: int | Sequence[int] = 256,
        channels: int = 3,
        mlp_ratio: int | float = 4,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-6,
        norm_eps: float = 1e-6,
    ) -> None:
        check_choice("stem", stem, ("patch", "overlap"))
        check_choice("down", down, ("conv", "depthwise"))
        count = len(depth)
        dims, sides = per_stage("dim", dim, count), per_stage("kernel_size", kernel_size, count)
        attending = per_stage("global_depth", global_depth, count)
        groups, placed = per_stage("scales", scales, count), per_stage("positions", positions, count)
        all_heads = heads_per_stage(dims, heads)
        if any(side % 2 == 0 for side in sides):
            raise ValueError(f"kernel_size must be odd, got {sides}")
        if any(last > all_ for last, all_ in zip(attending, depth, strict=True)):
            raise ValueError(f"global_depth must be at most depth {tuple(depth)}, got {attending}")
        if down == "depthwise" and any(a == b for a, b in zip(attending[1:], depth[1:], strict=True)):
            raise ValueError(
                f"global_depth must be fewer than depth {tuple(depth)} after the first stage, where first "
                f"blocks halve the map, got {attending}"
            )
        size, strides = pair(image_size), [STRIDE * 2**stage for stage in range(count)]
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            min_size=(strides[-1], strides[-1]),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        side = OVERLAP if stem == "overlap" else STRIDE
        embed = nn.Conv2d(
            channels, dims[0], side, STRIDE, OVERLAP // 2 if stem == "overlap" else 0, bias=conv_bias
        )
        self.stem = nn.Sequential(OnMap(embed), norm(dims[0]))
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            width, kernel = dims[stage], sides[stage]
            blocks: list[nn.Module] = []
            for index, rate in enumerate(rates):
                feedforward = FeedForward(width, int(width * mlp_ratio), dropout=dropout)
                if index < depth[stage] - attending[stage]:
                    conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=conv_bias)
                    # With one before the stage, the first block has no convolution of its own.
                    halved = index == 0 < stage and down == "depthwise"
                    mix = nn.Identity() if halved else OnMap(conv)
                    scale = make_scale(width, layer_scale)
                    blocks.append(
                        ConvNeXt(mix, norm(width), feedforward, scale, nn.Identity(), drop_path=rate)
                    )
                    continue
                attention = Attention(
                    width,
                    heads=all_heads[stage],
                    dim_head=width // all_heads[stage],
                    dropout=dropout,
                    kernel=partial(CrossCovariance, all_heads[stage], attn_dropout),
                )
                grid = [extent // strides[stage] for extent in size]
                blocks.append(
                    SDTABlock(
                        width,
                        attention,
                        feedforward,
                        split=SplitConvs(width, groups[stage], bias=conv_bias),
                        positions=FourierPositions(grid, width) if placed[stage] else None,
                        norm=norm,
                        layer_scale=layer_scale,
                        drop_path=rate,
                    )
                )
            self.stages.append(Stage(halving(dims, stage, kernel, down, norm, conv_bias), blocks))
        self.fc_norm = norm(dims[-1])
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map; the norm acts on its mean."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


def halving(
    dims: Sequence[int], stage: int, kernel: int, down: str, norm: Callable[[int], nn.Module], bias: bool
) -> nn.Module:
    """Build what halves the map before a stage; nothing before the first.

    Args:
        kernel: side of the kernel of a depth-wise convolution.
        down: see `EdgeNeXt`.
    """
    if stage == 0:
        return nn.Identity()
    dim, out_dim = dims[stage - 1], dims[stage]
    if down == "conv":
        return nn.Sequential(norm(dim), OnMap(nn.Conv2d(dim, out_dim, 2, 2, bias=bias)))
    if out_dim % dim:
        raise ValueError(f"down='depthwise' needs a multiple of the channels before, got {dim} and {out_dim}")
    return OnMap(nn.Conv2d(dim, out_dim, kernel, 2, kernel // 2, groups=dim, bias=bias))


class SDTABlock(Block):
    """A block with split depth-wise transpose attention (section 3.2, figure 2).

    Args:
        split: mixes neighbouring cells.
        positions: added to the cells; None for none.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        split: nn.Module,
        positions: FourierPositions | None,
        **options: Any,
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.split = split
        self.positions = positions

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform the map; what attends is not added to the block's input but by its feed-forward."""
        mixed = self.split(x)
        tokens = mixed.flatten(1, 2)
        if self.positions is not None:
            tokens = self.positions(tokens, grid=x.shape[1:3])
        tokens = tokens + self.drop_path(self.scale1(self.attention(self.norm1(tokens), inputs)))
        return x + self.drop_path(self.scale2(self.feedforward(self.norm2(tokens.reshape(x.shape)))))


class SplitConvs(nn.Module):
    """Depth-wise convolutions of groups of channels, each but the first added to what the one before became.

    The last group stays as it is (Res2Net, arXiv:1904.01169).

    Args:
        groups: number of groups, from 2 on; the last may have fewer channels.

    Raises:
        ValueError: if there are no such groups.
    """

    def __init__(self, dim: int, groups: int, *, bias: bool = True) -> None:
        super().__init__()
        width = -(-dim // groups)
        if groups < 2 or width * (groups - 1) >= dim:
            raise ValueError(f"scales must be at least 2, and split the channels, got {groups} for {dim}")
        self.groups = groups
        self.convs = nn.ModuleList(
            OnMap(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias)) for _ in range(groups - 1)
        )

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Mix each cell with its neighbours."""
        groups = x.chunk(self.groups, dim=-1)
        done = [self.convs[0](groups[0])]
        for index, conv in enumerate(self.convs[1:], start=1):
            done.append(conv(done[-1] + groups[index]))
        return torch.cat([*done, groups[-1]], dim=-1)
