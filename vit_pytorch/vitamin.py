"""ViTamin: Designing Scalable Vision Models in the Vision-Language Era.

J. Chen, Q. Yu, X. Shen, A. Yuille, L.-C. Chen 2024, arXiv:2404.02132.

An image encoder to be trained with texts: two stages of inverted bottlenecks, which have one LayerNorm in
place of batch norms and squeeze-and-excitation (MBConv-LN), then a plain transformer on a map of 1/16, whose
feed-forwards are gated by GELU. It pools by the mean of the tokens.

Family: plain
Differs from the paper: nothing known; the second norm before each feed-forward is timm's, whose weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, layer, plain_blocks
from vit_pytorch.layers.conv import MapNorm, OnMap, conv_stem, shortcut
from vit_pytorch.layers.init import init_convs
from vit_pytorch.layers.options import OptionLike, read_option
from vit_pytorch.layers.patches import PatchGrid, pair
from vit_pytorch.layers.positions import Learned, NoPositions

POSITIONS: dict[str, type[Learned | NoPositions]] = {"learned": Learned, "none": NoPositions}


class ViTamin(IsotropicModel):
    """The transformer on a map of inverted bottlenecks.

    Args:
        image_size: largest input, one number or (height, width) in pixels; a multiple of 16.
        depth: number of transformer blocks.
        conv_dim: channels of the convolutional stages, each of which halves the map; the stem, which halves
            it first, has those of the first stage.
        conv_depth: number of blocks of each of them.
        expansion: hidden channels of their blocks, by those of the output.
        positions: "learned" (`Learned`), or "none", with which images may have any size.

    Raises:
        ValueError: if the numbers of stages differ.
    """

    option_kinds: ClassVar = {"positions": POSITIONS}

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        conv_dim: Sequence[int],
        conv_depth: Sequence[int] = (2, 4),
        expansion: float = 4.0,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        dim_head: int = 64,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        positions: OptionLike = "learned",
    ) -> None:
        added: Any = read_option("positions", positions, POSITIONS)
        dynamic = isinstance(added, NoPositions) or added.dynamic_img_size
        patch = 2 ** (len(conv_dim) + 2)
        grid = PatchGrid(pair(image_size), (patch, patch), dynamic=dynamic)
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        self.patch_embed = ConvStages(
            channels, dim, conv_dim, conv_depth, expansion=expansion, norm_eps=norm_eps
        )
        self.positions = added.build(grid.shape, dim, class_token=False)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
            qkv_bias=qkv_bias,
            act="geglu",
            norm=partial(nn.LayerNorm, eps=norm_eps),
            block=GatedBlock,
        )
        self.fc_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the tokens; the norm follows the pooling."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return tokens


class ConvStages(nn.Module):
    """The stem, the stages of MBConv-LN, and the convolution that gives the transformer's tokens.

    Args:
        dim: dimension of the tokens.
        conv_dim: channels of the stages.
        conv_depth: number of blocks of each.
        expansion: hidden channels of a block, by those of its output.

    Raises:
        ValueError: if the numbers of stages differ.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        conv_dim: Sequence[int],
        conv_depth: Sequence[int],
        *,
        expansion: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        if len(conv_dim) != len(conv_depth):
            raise ValueError(
                "conv_dim and conv_depth must be one for each convolutional stage, got "
                f"{tuple(conv_dim)} and {tuple(conv_depth)}"
            )
        width = conv_dim[0]
        self.stem = conv_stem(
            channels,
            (width, width),
            padding="symmetric",
            norm=partial(MapNorm, eps=norm_eps),
            act="gelu",
            bias=(True, True),
        )
        self.stages = nn.ModuleList()
        for out_dim, depth in zip(conv_dim, conv_depth, strict=True):
            stage = nn.Sequential()
            for index in range(depth):
                hidden = int(out_dim * expansion)
                stage.append(MBConvLN(width, out_dim, hidden, halve=index == 0, norm_eps=norm_eps))
                width = out_dim
            self.stages.append(stage)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.proj = OnMap(nn.Conv2d(width, dim, 3, stride=2, padding=1))
        init_convs(self)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the map."""
        x = self.stem(images.permute(0, 2, 3, 1))
        for stage in self.stages:
            x = stage(x)
        return self.proj(self.norm(x)).flatten(1, 2)


class MBConvLN(nn.Module):
    """An inverted bottleneck with one LayerNorm, before it, and GELU after both of its first layers.

    Args:
        hidden_dim: channels of the depth-wise convolution.
        halve: halve the map, on the way around by the mean of 3 x 3 cells.
    """

    def __init__(self, dim: int, out_dim: int, hidden_dim: int, *, halve: bool, norm_eps: float) -> None:
        super().__init__()
        stride = 2 if halve else 1
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.expand = nn.Linear(dim, hidden_dim)
        self.conv = OnMap(nn.Conv2d(hidden_dim, hidden_dim, 3, stride, 1, groups=hidden_dim))
        self.project = nn.Linear(hidden_dim, out_dim)
        self.act = nn.GELU()
        pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False) if halve else None
        self.shortcut = shortcut(dim, out_dim, pool=pool, project=False, bias=True)
        for linear in (self.expand, self.project):
            nn.init.normal_(linear.weight, std=(2 / linear.out_features) ** 0.5)
            nn.init.zeros_(linear.bias)

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform a map, which a first block of a stage halves."""
        hidden = self.act(self.conv(self.act(self.expand(self.norm(x)))))
        return self.shortcut(x) + self.project(hidden)


class GatedBlock(Block):
    """A transformer block whose feed-forward has a norm of its own, after the block's."""

    def __init__(self, dim: int, attention: nn.Module, feedforward: nn.Module, **options: Any) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.norm3 = options["norm"](dim)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        return x + self.drop_path(self.scale2(self.feedforward(self.norm3(self.norm2(x)))))
