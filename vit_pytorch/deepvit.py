"""DeepViT: Towards Deeper Vision Transformer.

D. Zhou, B. Kang, X. Jin, L. Yang, X. Lian, Z. Jiang, Q. Hou, J. Feng 2021, arXiv:2103.11886.

Deep layers of a ViT come to have the same attention maps, and gain nothing from them. Re-attention
makes the maps of a layer different again: it mixes those of the heads by a learned matrix and normalises
the result.

Family: plain
Differs from the paper: nothing; the mix has a bias as in the official code, whose named models re-attend
in their last layers alone, scale the residual branches and have a convolutional stem.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.attention import (
    Attention,
    ExplicitAttention,
    FusedAttention,
    MixHeads,
    attention_weights,
)
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens

Pool = Literal["cls", "mean"]
Stem = Literal["linear", "conv"]


class DeepViT(IsotropicModel):
    """The Vision Transformer with re-attention.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        channels: channels of the input.
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        dim_head: width of a head.
        reattn_layers: how many of the last blocks re-attend, the others attending plainly; None for all.
        reattn_scale: factor on the re-attention's maps.
        scale_adjustment: s in x + branch(norm(s x)) / s, the residuals of all blocks.
        stem: "linear" projects patches, "conv" stands two convolutions at half the resolution in front.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
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
        if scale_adjustment <= 0:
            raise ValueError(f"scale_adjustment is above 0, got {scale_adjustment}")
        first = 0 if reattn_layers is None else depth - reattn_layers
        if not 0 <= first <= depth:
            raise ValueError(f"of {depth} blocks, 0 to {depth} can re-attend, got {reattn_layers}")

        def block(layer: int) -> Block:
            attention = Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(ReAttention, heads, attn_dropout, gain=reattn_scale)
                if layer >= first
                else partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
            # norm(s x) is the norm of x with another epsilon.
            norm = partial(nn.LayerNorm, dim, eps=norm_eps / scale_adjustment**2)
            drop = drop_path_rate(drop_path, layer, depth)

            def tail() -> list[nn.Module]:
                scale = [] if scale_adjustment == 1 else [Scale(1 / scale_adjustment)]
                return [*scale, *make_tail(dim, drop_path=drop)]

            return Block(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))

        self.patch_embed = (
            HalvingStem(grid, channels, dim) if stem == "conv" else PatchEmbed(grid, channels, dim)
        )
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)
        self.encoder = Encoder(block, depth=depth)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.reset_classifier(num_classes)


class ReAttention(ExplicitAttention):
    """norm(mix(softmax(q k^T * scale))) v, the heads' maps mixed with each other (section 4.2, equation 3).

    Args:
        heads: number of heads.
        dropout: probability with which an attention weight is dropped in training, before the mix.
        gain: factor on the normalised maps.
    """

    def __init__(self, heads: int, dropout: float = 0.0, *, gain: float = 1.0) -> None:
        super().__init__(dropout)
        self.gain = gain
        self.mix = MixHeads(heads)
        self.norm = nn.BatchNorm2d(heads)
        self.mixed = nn.Identity()

    def forward(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h m e"],
        v: Float[Tensor, "b h m f"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b h n f"]:
        """Attend from every query to all keys, or to those that a mask leaves (see `attention_weights`)."""
        maps = self.dropout(self.weights(attention_weights(q, k, self.scale, mask)))
        return self.mixed(self.norm(self.mix(maps))) @ (v * self.gain)


class Scale(nn.Module):
    """Multiply by a fixed factor.

    Args:
        factor: the factor.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Scale every element."""
        return x * self.factor

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"factor={self.factor}"


class HalvingStem(nn.Module):
    """Embed patches of a map at half the resolution, which two convolutions compute (official code).

    Args:
        grid: how the input is cut; 2-D, its patch even.
        channels: channels of the input.
        dim: width of a token.
        width: channels of the map.
    """

    def __init__(self, grid: PatchGrid, channels: int, dim: int, *, width: int = 64) -> None:
        super().__init__()
        if len(grid.patch) != 2 or any(extent % 2 for extent in grid.patch):
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
