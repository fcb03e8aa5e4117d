"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

Cuts an image into patches, projects each linearly to a token, adds learned positions and a class
token, and runs a plain pre-norm transformer encoder; the class token's output is classified.

Family: plain
Differs from the paper: the pre-training head of two layers is the option `representation_size`;
the classifier starts from small random values instead of zeros.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import FusedAttention, MaskedAttention
from vit_pytorch.layers.encoder import Block, Encoder, FeedForward, Residual, make_tail, rising
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import ConvStem, PatchEmbed, PatchGrid, extents
from vit_pytorch.layers.positions import LearnedPositions, SinCosPositions
from vit_pytorch.layers.tokens import AttentionPool, PrefixTokens
from vit_pytorch.plain import PlainModel, has_class_token

Pool = Literal["cls", "mean", "map"]
Positions = Literal["learned", "sincos", "none"]
Stem = Literal["linear", "conv"]


class ViT(PlainModel):
    """The Vision Transformer.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        channels: channels of the input.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        pool: "cls" classifies the class token, "mean" the mean of the patches, "map" an attention
            pool of the patches.
        dim_head: width of a head.
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the attention's output projection has a bias.
        qk_norm: whether queries and keys are normalised by head (LayerNorm).
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        layer_scale: what LayerScale's factors start at; None for no LayerScale.
        act: activation of the feed-forward: "gelu", "gelu_tanh", "quickgelu", "relu" or "silu".
        norm_eps: epsilon of the LayerNorms.
        stem: "linear" projects patches, "conv" stacks small convolutions.
        patch_norm: whether LayerNorms stand before and after the linear patch projection.
        positions: "learned", "sincos" or "none".
        class_token: whether there is a class token; None means where `pool` is "cls".
        num_registers: number of register tokens.
        no_embed_class: whether the class token goes without a position.
        fc_norm: whether the final norm acts on the pooled vector instead of on the tokens.
        pre_norm: whether a LayerNorm stands in front of the encoder (CLIP's vision tower).
        representation_size: width of the pre-training head's hidden layer (tanh); None for none.
        head_zero_init: whether the classifier starts at zero.

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
    """

    # Axes of the input, apart from the batch and the channels.
    rank: ClassVar[int] = 2

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
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pool: Pool = "cls",
        dim_head: int = 64,
        qkv_bias: bool = True,
        out_bias: bool = True,
        qk_norm: bool = False,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        stem: Stem = "linear",
        patch_norm: bool = False,
        positions: Positions = "learned",
        class_token: bool | None = None,
        num_registers: int = 0,
        no_embed_class: bool = False,
        fc_norm: bool = False,
        pre_norm: bool = False,
        representation_size: int | None = None,
        head_zero_init: bool = False,
    ) -> None:
        grid = PatchGrid(extents(image_size, self.rank), extents(patch_size, self.rank))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        _check_options(pool, stem, patch_norm, positions)
        class_token = has_class_token(pool, class_token)
        if grid.num_patches <= 16:
            warnings.warn(
                f"{grid.num_patches} patches are few for attention to work with: "
                f"make the patch smaller than {grid.patch}, so that there are more than 16",
                stacklevel=2,
            )
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)

        self.patch_embed = (
            ConvStem(grid, channels, dim)
            if stem == "conv"
            else PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None, bias=not pre_norm)
        )
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        if positions == "learned":
            placed = int(class_token and not no_embed_class)
            self.positions = LearnedPositions(grid.shape, dim, prefix=placed)
        elif positions == "sincos":
            self.positions = SinCosPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.pre_norm = norm() if pre_norm else nn.Identity()

        def block(layer: int) -> Block:
            attend = partial(FusedAttention, attn_dropout)
            attention = MaskedAttention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                out_bias=out_bias,
                dropout=dropout,
                qk_norm=partial(nn.LayerNorm, eps=norm_eps) if qk_norm else None,
                attend=attend,
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout, act=act)
            drop = rising(drop_path, layer, depth)
            tail = partial(make_tail, dim, layer_scale=layer_scale, drop_path=drop)
            return Block(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))

        self.encoder = Encoder(block, depth=depth)
        self.norm = nn.Identity() if fc_norm else norm()
        self.fc_norm = norm() if fc_norm else nn.Identity()
        self.attention_pool = (
            AttentionPool(dim, heads=heads, mlp_dim=mlp_dim, norm_eps=norm_eps, act=act)
            if pool == "map"
            else None
        )
        if representation_size is not None:
            self.pre_logits = nn.Sequential(nn.Linear(dim, representation_size), nn.Tanh())
        self.head_width = representation_size or dim
        self.reset_classifier(num_classes)
        if head_zero_init:
            init_linears(self.head, nn.init.zeros_)

    def pool_tokens(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Give one vector for each image, by the attention pool where there is one."""
        if self.attention_pool is None:
            return super().pool_tokens(features)
        return self.attention_pool(features[:, self.num_prefix_tokens :])

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        query = {"attention_pool.query"} if self.attention_pool is not None else set()
        return super().no_weight_decay() | query


def _check_options(pool: str, stem: str, patch_norm: bool, positions: str) -> None:
    check_choice("pool", pool, ("cls", "mean", "map"))
    check_choice("stem", stem, ("linear", "conv"))
    check_choice("positions", positions, ("learned", "sincos", "none"))
    if patch_norm and stem != "linear":
        raise ValueError(f"patch_norm belongs to stem='linear', got stem={stem!r}")
