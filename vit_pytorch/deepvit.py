"""DeepViT: Towards Deeper Vision Transformer.

D. Zhou, B. Kang, X. Jin, L. Yang, X. Lian, Z. Jiang, Q. Hou, J. Feng 2021, arXiv:2103.11886.

Deep layers of a ViT come to have the same attention maps, and gain nothing from them. Re-attention
makes the maps of a layer different again: it mixes those of the heads by a learned matrix and normalises
the result.

Family: plain
Differs from the paper: nothing; the mix has a bias as in the official code, whose named models re-attend
only in their last layers, scale the residual branches and have a convolutional stem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    FusedAttention,
    Keys,
    Mixed,
    Queries,
    Values,
    attention_weights,
    mix_heads,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate, layer
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions

Pool = Literal["cls", "mean"]
Stem = Literal["linear", "conv"]


class DeepViT(IsotropicModel):
    """The Vision Transformer with re-attention.

    Args:
        reattn_layers: number of last blocks that re-attend, the others being plain; default all.
        reattn_scale: factor on the re-attention's maps.
        scale_adjustment: s in x + branch(norm(s x)) / s, the residuals of all blocks.
        stem: "linear" projects patches; "conv" first applies two convolutions at half the resolution.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
        pool: Pool = "cls",
        dim_head: int = 64,
        reattn_layers: int | None = None,
        reattn_scale: float = 1.0,
        scale_adjustment: float = 1.0,
        stem: Stem = "linear",
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("stem", stem, ("linear", "conv"))
        reattn_layers = depth if reattn_layers is None else reattn_layers
        if reattn_layers > depth:
            raise ValueError(f"reattn_layers must be in [0, {depth}], got {reattn_layers}")
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def block(index: int) -> Block:
            kernel: Callable[[], nn.Module] = partial(FusedAttention, attn_dropout)
            if index >= depth - reattn_layers:
                kernel = partial(ReAttention, heads, attn_dropout, gain=reattn_scale)
            attention = Attention(
                dim, heads=heads, dim_head=dim_head, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
            build = Block if scale_adjustment == 1 else partial(AdjustedBlock, scale=scale_adjustment)
            rate = drop_path_rate(drop_path, index, depth)
            return build(dim, attention, feedforward, norm=norm, drop_path=rate)

        self.patch_embed = (
            HalvingStem(grid, channels, dim) if stem == "conv" else PatchEmbed(grid, channels, dim)
        )
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(block(index) for index in range(depth))
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class ReAttention(nn.Module):
    """norm(mix(softmax(q k^T * scale))) v, the heads' maps mixed with each other (section 4.2, equation 3).

    Args:
        gain: factor on the normalised maps.
    """

    def __init__(self, heads: int, dropout: float = 0.0, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(heads, heads)
        self.norm = nn.BatchNorm2d(heads)
        self.mixed = nn.Identity()

    def forward(self, q: Queries, k: Keys, v: Values, mask: Tensor | None = None) -> Mixed:
        """Attend from each query to all keys, or to those that a mask leaves (see `attention_weights`)."""
        maps = self.dropout(self.weights(attention_weights(q, k, mask=mask)))
        # The gain acts on the values, which are fewer than the maps.
        return self.mixed(self.norm(mix_heads(self.mix, maps))) @ (v * self.gain)


class AdjustedBlock(Block):
    """A block with x + branch(norm(s x)) / s as residuals."""

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        scale: float,
        norm: Callable[[int], nn.Module],
        drop_path: float,
    ) -> None:
        super().__init__(dim, attention, feedforward, norm=norm, drop_path=drop_path)
        self.scale = scale

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens."""
        s = self.scale
        x = x + self.drop_path(self.attention(self.norm1(s * x), inputs) / s)
        return x + self.drop_path(self.feedforward(self.norm2(s * x)) / s)


class HalvingStem(nn.Module):
    """Embed patches of a map at half the resolution, which two convolutions compute (official code).

    Args:
        grid: how the input is cut; its patch even.
        width: channels of the map.
    """

    def __init__(self, grid: PatchGrid, channels: int, dim: int, *, width: int = 64) -> None:
        super().__init__()
        if any(extent % 2 for extent in grid.patch):
            raise ValueError(f"the convolutional stem needs an even patch, got {grid.patch}")
        self.convs = nn.Sequential(
            nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        half = (grid.patch[0] // 2, grid.patch[1] // 2)
        self.proj = nn.Conv2d(width, dim, half, half)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the grid."""
        return self.proj(self.convs(x)).flatten(2).transpose(1, 2)
