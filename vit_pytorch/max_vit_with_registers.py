"""MaxViT: Multi-Axis Vision Transformer, with registers.

Z. Tu, H. Talebi, H. Zhang, F. Yang, P. Milanfar, A. Bovik, Y. Li 2022, arXiv:2204.01697.

Every window of a block has register tokens (arXiv:2309.16588); their mean over the windows of an image is
among the tokens of each grid.

Family: pyramid
Differs from the paper: the registers, which are of the public vit-pytorch package. Its MaxViT is another one
than the paper's, so that its weights do not load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.blocks import Block
from vit_pytorch.layers.init import init_embeddings
from vit_pytorch.layers.relative import RelativeBias, RelativePositions, TokenBias
from vit_pytorch.layers.windows import GroupAttention
from vit_pytorch.max_vit import MaxViT as PlainMaxViT
from vit_pytorch.max_vit import MaxViTBlock


class RegisterMaxViT(PlainMaxViT):
    """The multi-axis vision transformer with register tokens.

    Args:
        dim: channels of the first stage; they double from stage to stage.
        dim_conv_stem: channels of the convolutional stem; default `dim`.
        window_size: cells of a window and of a grid, one number or (height, width).
        mbconv_expansion_rate: hidden channels of an MBConv, as a multiple of its output channels.
        mbconv_shrinkage_rate: hidden dimension of its squeeze-and-excitation, as a multiple of its output
            channels.
        num_register_tokens: number of register tokens of a window.
    """

    undecayed = PlainMaxViT.undecayed + r"|\.registers$|\.position\.bias\.prefix$"

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: Sequence[int],
        dim_head: int = 32,
        dim_conv_stem: int | None = None,
        window_size: int | Sequence[int] = 7,
        mbconv_expansion_rate: float = 4.0,
        mbconv_shrinkage_rate: float = 0.25,
        dropout: float = 0.1,
        channels: int = 3,
        num_register_tokens: int = 4,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            dim_head=dim_head,
            dim_conv_stem=dim_conv_stem,
            window_size=window_size,
            mbconv_expansion_rate=mbconv_expansion_rate,
            mbconv_shrinkage_rate=mbconv_shrinkage_rate,
            dropout=dropout,
            attn_dropout=dropout,
            channels=channels,
        )
        if num_register_tokens < 1:
            raise ValueError(f"num_register_tokens must be at least 1, got {num_register_tokens}")
        for stage, width in zip(self.stages, self.dims, strict=True):
            stage.blocks = nn.ModuleList(
                RegisterMaxViTBlock(width, block, registers=num_register_tokens)
                for block in stage.blocks  # type: ignore[union-attr]
            )

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage; the norm follows the pooling."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


class RegisterMaxViTBlock(nn.Module):
    """Convolution, attention within windows with registers, attention within grids with their means.

    Args:
        block: the block without registers, whose parts it takes.
        registers: number of register tokens of a window.
    """

    def __init__(self, dim: int, block: MaxViTBlock, *, registers: int) -> None:
        super().__init__()
        self.conv = block.conv
        self.registers = nn.Parameter(torch.empty(1, registers, dim))
        init_embeddings(self.registers)
        assert isinstance(block.window, Block)
        self.window = RegisterGroups(block.window)
        self.grid = RegisterGroups(block.grid)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map."""
        x, registers = self.window(self.conv(x), self.registers.expand(len(x), -1, -1))
        return self.grid(x, registers)[0]


class RegisterGroups(nn.Module):
    """A transformer block within the groups of a partition, each with registers before its cells.

    Args:
        block: the block without registers, whose parts it takes.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        groups = block.attention
        assert isinstance(groups, GroupAttention)
        assert isinstance(groups.bias, RelativeBias)
        bias = TokenBias(groups.bias.window, groups.attention.heads, prefix=True)
        bias.patches = groups.bias
        self.partition = groups.partition
        self.block = block
        self.block.attention = groups.attention
        groups.attention.position = RelativePositions(bias)

    def forward(
        self, x: Float[Tensor, "b h w d"], registers: Float[Tensor, "b r d"]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b r d"]]:
        """Return the map, and the means of the registers over the groups."""
        groups, count = self.partition.split(x), registers.shape[1]
        repeated = registers.repeat_interleave(len(groups) // len(x), dim=0)
        tokens = self.block(torch.cat([repeated, groups], dim=1), BlockInputs(num_prefix_tokens=count))
        means = tokens[:, :count].unflatten(0, (len(x), -1)).mean(dim=1)
        return self.partition.merge(tokens[:, count:], x.shape[1:3]), means


MaxViT = RegisterMaxViT
