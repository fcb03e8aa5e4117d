"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

Cuts an image into patches, projects each linearly to a token, adds learned positions and a class
token, and runs a plain pre-norm transformer encoder; the class token's output is classified.

Family: plain
Differs from the paper: the pre-training head of two layers is the option `representation_size`;
the classifier starts from small random values instead of zeros; the relative positions that it compares
(appendix D.4) are BEiT's biases (arXiv:2106.08254) instead of products with the query.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel, has_class_token
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, MaskedAttention
from vit_pytorch.layers_v01.blocks import Block, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.hyper_connections import HyperConnection, HyperResidual, make_encoder
from vit_pytorch.layers_v01.init import init_linears
from vit_pytorch.layers_v01.norm import ZeroCenteredLayerNorm
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import ConvStem, PatchEmbed, PatchGrid, to_ntuple
from vit_pytorch.layers_v01.positions import Learned2DPositions, LearnedPositions, SinCosPositions
from vit_pytorch.layers_v01.relative import RelativeAttention, TokenBias
from vit_pytorch.layers_v01.rotary import AxialRotary, MixedRotary, RotaryAttention
from vit_pytorch.layers_v01.tokens import AttentionPool, PatchDropout, PrefixTokens
from vit_pytorch.layers_v01.value_residual import WITH_VALUES, make_value_mix

Pool = Literal["cls", "mean", "cls+mean", "map"]
Stem = Literal["linear", "conv"]
# Positions that are added to the tokens, and those that act inside attention, with the layer that they need.
ADDED = ("none", "learned", "learned_2d", "sincos")
INSIDE: dict[str, type[Attention]] = {
    "relative": MaskedAttention,
    "relative_by_layer": RelativeAttention,
    "rope": RotaryAttention,
    "rope_mixed": RotaryAttention,
}
ROPE_THETA = {"rope": 100.0, "rope_mixed": 10.0}


class ViT(IsotropicModel):
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
        pool: "cls" classifies the class token, "mean" the mean of the patches, "cls+mean" both, one after the
            other, "map" an attention pool of the patches.
        dim_head: width of a head.
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the attention's output projection has a bias.
        qk_norm: whether queries and keys are normalised by head (LayerNorm).
        qk_scale: factor on the scores of attention; None for 1 / sqrt(dim_head).
        attn_dropout: dropout on the attention weights, in [0, 1).
        patch_dropout: share of the patches that is left out in training, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        layer_scale: what LayerScale's factors start at; None for no LayerScale.
        act: activation of the feed-forward: "gelu", "gelu_tanh", "quickgelu", "relu" or "silu".
        norm_eps: epsilon of the LayerNorms.
        zero_centered_norm: whether LayerNorms, but those of `patch_norm` and the attention pool, store by how
            much their gain exceeds 1, so that weight decay pulls it there.
        value_residual: whether layers mix the first layer's values into their own, by two learned numbers; or
            how: "learnable", "identity" (evenly), "gated" or "sparse" (evenly, in the last third of the
            layers alone), or the indices of layers that do so, evenly.
        hyper_connections: number of residual streams that learned connections mix; None for plain residuals.
        hyper_static: whether these connections are the same for all tokens.
        stem: "linear" projects patches, "conv" stacks small convolutions.
        patch_norm: whether LayerNorms stand before and after the linear patch projection.
        positions: what is added to the tokens: "none", "learned" (one embedding for each place), "learned_2d"
            (one for the column, one for the row) or "sincos"; or what acts inside attention: "relative" (a
            bias for each offset and head, which all layers share), "relative_by_layer" (each layer has its
            own), "rope" (rotations by fixed frequencies along the axes) or "rope_mixed" (by learned ones of
            each layer and head); or one of each, as "learned+rope".
        rope_theta: what the frequencies of rotations fall to the inverse of; None for 100 or, where they are
            learned, 10.
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
    # What attends where positions do not act inside attention.
    attention: ClassVar[type[Attention]] = Attention

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
        qk_scale: float | None = None,
        attn_dropout: float = 0.0,
        patch_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        zero_centered_norm: bool = False,
        value_residual: bool | str | Sequence[int] = False,
        hyper_connections: int | None = None,
        hyper_static: bool = False,
        stem: Stem = "linear",
        patch_norm: bool = False,
        positions: str = "learned",
        rope_theta: float | None = None,
        class_token: bool | None = None,
        num_registers: int = 0,
        no_embed_class: bool = False,
        fc_norm: bool = False,
        pre_norm: bool = False,
        representation_size: int | None = None,
        head_zero_init: bool = False,
    ) -> None:
        grid = PatchGrid(to_ntuple(image_size, self.rank), to_ntuple(patch_size, self.rank))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        _check_options(pool, stem, patch_norm, fc_norm)
        if hyper_static and hyper_connections is None:
            raise ValueError("hyper_static says what hyper_connections are, and there are none")
        added, inside = read_positions(positions, rope_theta)
        class_token = has_class_token(pool, class_token)
        if grid.num_patches <= 16:
            warnings.warn(
                f"{grid.num_patches} patches are few for attention to work with: "
                f"make the patch smaller than {grid.patch}, so that there are more than 16",
                stacklevel=2,
            )
        make_norm = partial(ZeroCenteredLayerNorm if zero_centered_norm else nn.LayerNorm, eps=norm_eps)
        norm = partial(make_norm, dim)
        values = value_residual is not False
        mix = make_value_mix(value_residual, dim=dim, heads=heads, depth=depth) if values else None

        self.patch_embed = (
            ConvStem(grid, channels, dim)
            if stem == "conv"
            else PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None, bias=not pre_norm)
        )
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        placed = int(class_token and not no_embed_class)
        if added == "learned":
            self.positions = LearnedPositions(grid.shape, dim, prefix=placed)
        elif added == "learned_2d":
            self.positions = Learned2DPositions(grid.shape, dim, prefix=placed)
        elif added == "sincos":
            self.positions = SinCosPositions(grid.shape, dim)
        self.rotary: AxialRotary | MixedRotary | None = None
        theta = rope_theta or ROPE_THETA.get(inside, 0.0)
        if inside == "rope":
            self.rotary = AxialRotary(grid.shape, dim_head, theta=theta)
        elif inside == "rope_mixed":
            self.rotary = MixedRotary(grid.shape, dim_head, heads=heads, depth=depth, theta=theta)
        bias = partial(TokenBias, grid.shape, heads, prefix=len(self.prefix) > 0)
        self.relative = bias() if inside == "relative" else None
        self.relative_by_layer = inside == "relative_by_layer"
        self.dropout = nn.Dropout(emb_dropout)
        self.patch_dropout = PatchDropout(patch_dropout)
        self.pre_norm = norm() if pre_norm else nn.Identity()

        def block(layer: int) -> Block:
            attend = partial(FusedAttention, attn_dropout, qk_scale)
            own: dict[str, Any] = {"rope_mixed": {"layer": layer}}.get(inside, {})
            if inside == "relative_by_layer":
                own = {"bias": bias()}
            kind = INSIDE.get(inside, self.attention)
            if mix is not None:
                kind, own = WITH_VALUES[kind], {**own, "mix": mix(layer)}
            attention = kind(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                out_bias=out_bias,
                dropout=dropout,
                qk_norm=make_norm if qk_norm else None,
                attend=attend,
                **own,
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout, act=act)
            drop = drop_path_rate(drop_path, layer, depth)
            tail = partial(make_tail, dim, layer_scale=layer_scale, drop_path=drop)
            if hyper_connections is None:
                return Block(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))
            connect = partial(
                HyperConnection, dim, hyper_connections, dynamic=not hyper_static, norm=make_norm
            )
            return Block(
                HyperResidual(attention, norm(), tail(), connection=connect(2 * layer)),
                HyperResidual(feedforward, norm(), tail(), connection=connect(2 * layer + 1)),
            )

        self.encoder = make_encoder(block, depth=depth, streams=hyper_connections, values=values)
        self.norm = nn.Identity() if fc_norm else norm()
        self.fc_norm = norm() if fc_norm else nn.Identity()
        self.attention_pool = (
            AttentionPool(dim, heads=heads, mlp_dim=mlp_dim, norm_eps=norm_eps, act=act)
            if pool == "map"
            else None
        )
        if representation_size is not None:
            self.pre_logits = nn.Sequential(nn.Linear(self.head_width, representation_size), nn.Tanh())
            self.head_width = representation_size
        self.reset_classifier(num_classes)
        if head_zero_init:
            init_linears(self.head, nn.init.zeros_)

    def context(self, grid: Sequence[int], kept: Int[Tensor, "b k"] | None = None) -> tuple[Any, ...]:
        """Give what every block is handed beside the tokens: what says, inside attention, where they stand.

        Args:
            grid: patches along each axis.
            kept: places in the grid of the patches that are among the tokens; all of them unless told.
        """
        if self.rotary is not None:
            return self.rotary.context(grid, self.num_encoder_prefix_tokens, kept)
        if self.relative is not None:
            return self.relative.context(grid, self.num_encoder_prefix_tokens, kept)
        return (tuple(grid), self.num_encoder_prefix_tokens, kept) if self.relative_by_layer else ()

    def pool_tokens(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Give one vector for each image, by the attention pool where there is one."""
        if self.attention_pool is None:
            return super().pool_tokens(features)
        return self.attention_pool(features[:, self.num_prefix_tokens :])

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        names = [name for name, _ in self.named_parameters()]
        placed = {name for name in names if name.startswith(("positions.", "relative.", "rotary."))}
        inside = {name for name in names if ".branch.bias." in name or name.endswith(".connection.alpha")}
        query = {"attention_pool.query"} if self.attention_pool is not None else set()
        return super().no_weight_decay() | placed | inside | query


def read_positions(positions: str, rope_theta: float | None = None) -> tuple[str, str]:
    """Give the positions that are added to the tokens and those inside attention; "none" and "" for none.

    Raises:
        ValueError: where a kind is unknown or there are two of one sort, or frequencies are told for none.
    """
    kinds = positions.split("+")
    for kind in kinds:
        check_choice("positions", kind, (*ADDED, *INSIDE))
    added, inside = ([kind for kind in kinds if kind in known] for known in (ADDED, INSIDE))
    if len(added) > 1 or len(inside) > 1:
        raise ValueError(
            f"positions are at most one of {', '.join(ADDED)} and one of {', '.join(INSIDE)}; "
            f"got {positions!r}"
        )
    if rope_theta is not None and (inside[:1] not in (["rope"], ["rope_mixed"]) or rope_theta <= 0):
        raise ValueError(
            f"rope_theta is above 0 and belongs to rotary positions, got {rope_theta} for {positions!r}"
        )
    return (added or ["none"])[0], (inside or [""])[0]


def _check_options(pool: str, stem: str, patch_norm: bool, fc_norm: bool) -> None:
    check_choice("pool", pool, ("cls", "mean", "cls+mean", "map"))
    check_choice("stem", stem, ("linear", "conv"))
    if patch_norm and stem != "linear":
        raise ValueError(f"patch_norm belongs to stem='linear', got stem={stem!r}")
    if fc_norm and pool == "cls+mean":
        raise ValueError("fc_norm acts on one vector of the width of a token, pool='cls+mean' gives two")
