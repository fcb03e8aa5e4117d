"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

Cuts an image into patches, projects each linearly to a token, adds learned positions and a class
token, and runs a plain pre-norm transformer encoder; the class token's output is classified.

Family: plain
Differs from the paper: the pre-training head of two layers is the option `Head(hidden_dim=...)`;
the classifier starts from small random values instead of zeros; the relative positions that it compares
(appendix D.4) are BEiT's biases (arXiv:2106.08254) instead of products with the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import (
    Attention,
    BlockInputs,
    GroupedQuery,
    HeadNorm,
    Ids,
    MultiHead,
)
from vit_pytorch.layers.blocks import Block, FeedForward, PostNormBlock, SharedNormBlock, drop_path_rate
from vit_pytorch.layers.differential import Differential
from vit_pytorch.layers.hyper_connections import HyperConnections
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.norm import NORMS
from vit_pytorch.layers.options import Option, OptionLike, check_choice, read_option
from vit_pytorch.layers.patches import (
    ConvolutionalStem,
    ConvStem,
    LinearStem,
    PatchDropout,
    PatchEmbed,
    PatchGrid,
    PrefixTokens,
    blank,
    mean_of_seen,
    refuse_mask,
    seen_patches,
    seen_tokens,
    to_ntuple,
    warn_if_few,
)
from vit_pytorch.layers.position_options import (
    POSITIONS,
    attention_position,
    position_inputs,
    read_positions,
    why_no_mask,
)
from vit_pytorch.layers.positions import Learned, NoPositions
from vit_pytorch.layers.relative import Relative, TokenBias, hide_keys
from vit_pytorch.layers.rotary import (
    AxialRotary,
    MixedRotary,
    RotaryOption,
)
from vit_pytorch.layers.tokens import AttentionPool, AttentionPooling, Head
from vit_pytorch.layers.value_residual import VALUE_RESIDUALS, read_value_residual
from vit_pytorch.legacy import flat_options

Pool = Literal["cls", "mean", "cls+mean", "map"]
STEMS: dict[str, type[Option] | Option] = {
    "linear": LinearStem,
    "dual_norm": LinearStem(patch_norm=True),
    "conv": ConvolutionalStem,
}
ATTENTIONS: dict[str, type[MultiHead]] = {
    "multi_head": MultiHead,
    "grouped_query": GroupedQuery,
    "differential": Differential,
}
# Tokens, and the parameters of positions and connections.
UNDECAYED = (
    IsotropicModel.undecayed + r"|^(positions|rotary)\.|^relative\.(?!patches\.network)"
    r"|\.attention\.position\.(?!bias\.patches\.network)"
    r"|\.connect[12]\.alpha$|\.[qk]_norm\.weight$"
)
# What a mask acts in.
MASKED = ("forward_features", "forward_head", "pool_features", "block_inputs", "encode")


class ViT(IsotropicModel):
    """The Vision Transformer.

    Args:
        pool: "cls" classifies the class token, "mean" the mean of the patches, "cls+mean" both,
            concatenated, "map" an attention pool of the patches (`AttentionPooling`).
        positions: what is added to the tokens: "none", "learned" (`Learned`), "learned_2d" (`Learned2D`),
            "sincos" (`SinCos`) or "sequence" (`Sequential`); or what acts inside attention: "relative",
            "relative_by_layer" (`Relative`), "relative_log" (`LogRelative`), "rope", "rope_mixed"
            (`Rotary`), "rope_halves" (`HalvedRotary`), "rope_normalized" (`NormalizedRotary`), "rope_scaled"
            (`ScaledRotary`); or one of each, as "learned+rope" or [Learned(), Rotary(theta=50.0)].
        stem: how patches are embedded: "linear" (`LinearStem`), "dual_norm" or "conv" (`ConvolutionalStem`).
        qkv_bias: use biases for queries, keys and values; "qv" for queries and values alone.
        out_bias: use a bias in the output projection of attention, where the feed-forward has biases; "none"
            for no biases in both, "attention" for one in the projection alone.
        qk_norm: apply `norm` to queries and keys, per head; "rms" for `HeadNorm`.
        attention: "multi_head" (`MultiHead`), "grouped_query" (`GroupedQuery`), where several heads share
            keys and values, or "differential" (`Differential`).
        patch_dropout: share of the patches that is dropped in training, in [0, 1).
        layer_scale: initial factors of the channels of the blocks' branches; a pair for other ones of
            attention and of the feed-forward, None for none.
        norm: "layer" for LayerNorm, "zero_centered" for gains 1 + w that weight decay pulls towards 1, "rms"
            for RMSNorm, before each branch; `Norm` says more.
        value_residual: layers mix the first layer's values into their own (`ValueResidual`): True or
            "learnable", "identity", "gated", "sparse", or the indices of layers that do so evenly.
        hyper_connections: residual streams with learned connections (`HyperConnections`), or their number.
        head: what comes between pooling and the classifier (`Head`).
    """

    undecayed = UNDECAYED
    # Axes of the input, apart from the batch and the channels.
    rank: ClassVar[int] = 2
    option_kinds: ClassVar[Mapping[str, Mapping[str, type[Option] | Option]]] = {
        "positions": POSITIONS,
        "stem": STEMS,
        "attention": ATTENTIONS,
        "norm": NORMS,
        "head": {"linear": Head},
        "value_residual": VALUE_RESIDUALS,
        "hyper_connections": {"hyper": HyperConnections},
    }

    @flat_options
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
        pool: Pool | OptionLike = "cls",
        dim_head: int = 64,
        positions: OptionLike | Sequence[OptionLike] = "learned",
        stem: OptionLike = "linear",
        class_token: bool = False,
        num_registers: int = 0,
        qkv_bias: bool | Literal["qv"] = True,
        out_bias: bool | Literal["attention", "none"] = True,
        qk_norm: bool | Literal["rms"] = False,
        attention: OptionLike = "multi_head",
        attn_dropout: float = 0.0,
        patch_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | Sequence[float | None] | None = None,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        norm: OptionLike = "layer",
        value_residual: bool | OptionLike | Sequence[int] = False,
        hyper_connections: int | OptionLike | None = None,
        head: OptionLike = "linear",
    ) -> None:
        added, inside = read_positions(positions)
        dynamic = isinstance(added, Learned) and bool(added.dynamic_img_size)
        if dynamic and isinstance(inside, Relative):
            raise ValueError(
                "dynamic_img_size is for positions that are added to the tokens, alone or beside rotations, "
                f"got {inside.kind!r} inside attention in addition"
            )
        # Nothing but a table, added or looked up, ends anywhere.
        dynamic |= isinstance(added, NoPositions) and not isinstance(inside, Relative)
        sizes = to_ntuple(image_size, self.rank), to_ntuple(patch_size, self.rank)
        stem = cast(LinearStem | ConvolutionalStem, read_option("stem", stem, STEMS))
        grid = PatchGrid(*sizes, dynamic=dynamic, crop=isinstance(stem, LinearStem) and stem.crop)
        pooling = read_pooling(pool)
        pool = pool if isinstance(pool, str) else "map"
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        # The constructor is decorated.
        warn_if_few(grid, stacklevel=4)
        head = read_option("head", head, {"linear": Head})
        values = read_value_residual(value_residual)
        streams = read_hyper_connections(hyper_connections)
        class_token = class_token or pool in ("cls", "cls+mean")
        heads_option = read_option("attention", attention, ATTENTIONS)
        norms = read_option("norm", norm, NORMS)
        if streams is not None and (norms.post or norms.shared):
            raise ValueError(
                "norms after the branches, or before both, do not go with hyper_connections, "
                f"got norm.{'post' if norms.post else 'shared'}=True"
            )
        if isinstance(heads_option, Differential) and (qk_norm or isinstance(inside, RotaryOption)):
            raise ValueError(
                "differential attention halves its queries and keys: it takes no qk_norm and no rotations, "
                f"got {f'qk_norm={qk_norm}' if qk_norm else f'positions={positions!r}'}"
            )
        make_norm = norms.build(norm_eps)
        make_qk_norm = partial(HeadNorm, heads) if qk_norm == "rms" else make_norm

        self.beside_padding = why_no_mask(stem, added, inside)
        if isinstance(stem, LinearStem):
            self.patch_embed = PatchEmbed(
                grid,
                channels,
                dim,
                norm_eps=norm_eps if stem.patch_norm is True else None,
                # A bias before CLIP's norm would nearly cancel there.
                bias=not stem.pre_norm,
                norm_out=make_norm if stem.patch_norm == "after" else None,
            )
        else:
            self.patch_embed = ConvStem(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        self.positions = added.build(grid.shape, dim, class_token=class_token, registers=num_registers)
        self.rotary: AxialRotary | MixedRotary | None = None
        self.relative: TokenBias | None = None
        relative = inside if isinstance(inside, Relative) else Relative()
        bias = partial(relative.build, grid.shape, heads, prefix=self.prefix.count > 0)
        if isinstance(inside, RotaryOption):
            self.rotary = inside.build(grid.shape, dim_head, heads=heads, depth=depth)
        elif isinstance(inside, Relative) and not inside.per_layer:
            self.relative = bias()
        self.dropout = nn.Dropout(emb_dropout)
        self.patch_dropout = PatchDropout(patch_dropout)
        self.pre_norm = make_norm(dim) if stem.pre_norm else nn.Identity()

        kv_heads = [heads_option.heads_of_keys(heads, layer, depth) for layer in range(depth)]
        if qk_norm == "rms" and set(kv_heads) != {heads}:
            raise ValueError(f"qk_norm='rms' needs as many heads of keys as of queries, got {kv_heads}")
        if values is not None and len(set(kv_heads)) > 1:
            raise ValueError(f"layers of a value residual need as many heads of values, got {kv_heads}")
        mix = (
            values.build(dim=dim, heads=kv_heads[0], depth=depth)
            if values is not None
            else lambda layer: None
        )
        self.value_residual = values is not None
        self.streams = streams

        block_class = SharedNormBlock if norms.shared else PostNormBlock if norms.post else Block

        def block(layer: int) -> nn.Module:
            attention = Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                kv_heads=kv_heads[layer],
                qkv_bias=qkv_bias,
                out_bias=out_bias in (True, "attention"),
                dropout=dropout,
                qk_norm=make_qk_norm if qk_norm else None,
                position=attention_position(inside, layer, bias),
                value_mix=mix(layer),
                sub_norm=make_norm if norms.sub == "both" else None,
                kernel=heads_option.kernel(attn_dropout, dim_head, layer),
            )
            sub_norm = None if norms.sub == "none" else make_norm
            feedforward = FeedForward(
                dim, mlp_dim, dropout=dropout, act=act, sub_norm=sub_norm, bias=out_bias in (True, False)
            )
            rate = drop_path_rate(drop_path, layer, depth)
            options: dict[str, Any] = {"layer_scale": layer_scale, "drop_path": rate}
            options["norm"] = norms.build_scaled(norm_eps)
            if streams is None:
                return block_class(dim, attention, feedforward, **options)
            return streams.build(dim, attention, feedforward, layer=layer, **options)

        self.blocks = nn.ModuleList(block(layer) for layer in range(depth))
        self.norm = make_norm(dim) if head.norm is False else nn.Identity()
        self.classifier_dim = 2 * dim if pool == "cls+mean" else dim
        self.fc_norm = make_norm(self.classifier_dim) if head.norm else nn.Identity()
        self.standardizes = head.standardize
        if head.standardize:
            self.fc_norm = nn.Sequential(self.fc_norm, norms.build_bare(norm_eps)(self.classifier_dim))
        self.attention_pool = (
            AttentionPool(
                dim,
                heads=pooling.heads or heads,
                mlp_dim=pooling.mlp_dim or mlp_dim,
                norm_eps=norm_eps,
                act=act,
            )
            if pooling is not None
            else None
        )
        self.pools_prefix = pooling is not None and pooling.prefix
        if head.hidden_dim is not None:
            self.pre_logits = nn.Sequential(nn.Linear(self.classifier_dim, head.hidden_dim), nn.Tanh())
            self.classifier_dim = head.hidden_dim
        self.reset_classifier(num_classes)
        if head.zero_init:
            init_linears(self.head, nn.init.zeros_)

    def forward(
        self, images: Float[Tensor, "b c *size"], mask: Bool[Tensor, "b h w"] | None = None
    ) -> Float[Tensor, "b k ..."]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        With a mask, a batch holds images of several sizes, each filled up below and to the right by whole
        patches of padding, and each has the logits that it has alone.

        Args:
            images: a batch.
            mask: true for pixels, false for padding, which has no influence; default no padding.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes, the mask
                is not one of whole patches, or the model mixes patches or stretches places (see `no_mask`).
        """
        if mask is None:
            return self.forward_head(self.forward_features(images))
        if self.no_mask:
            refuse_mask(mask, self.no_mask)
            return self.forward_head(self.forward_features(images))
        pooled = self.pool_seen(self.forward_features(images, mask), seen_patches(mask, images, self.grid))
        return self.head(self.to_latent(self.pre_logits(self.fc_norm(pooled))))

    @property
    def no_mask(self) -> str | None:
        """Why a mask cannot be taken; None if it can."""
        if self.rank != 2:
            return f"an input of {self.rank} axes is no image"
        if any(getattr(type(self), name) is not getattr(ViT, name) for name in MASKED):
            return f"{type(self).__name__} has a forward pass of its own"
        if self.training and self.patch_dropout.p and self.pool != "cls":
            return "patch_dropout drops some of the patches that are pooled"
        return self.beside_padding

    def forward_features(
        self, images: Float[Tensor, "b c *size"], mask: Bool[Tensor, "b h w"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, prefix tokens first (section 3.1)."""
        self.check_images(images)
        seen = None
        if mask is not None:
            if self.no_mask:
                refuse_mask(mask, self.no_mask)
            seen = seen_patches(mask, images, self.grid)
            images = blank(images, mask)
        grid = self.grid.fit(images.shape[2:])
        tokens = self.prefix(self.patch_embed(images))
        if self.positions is not None:
            tokens = self.positions(tokens, prefix=self.prefix.count, grid=grid)
        tokens = self.pre_norm(self.dropout(tokens))
        tokens, ids_keep = self.patch_dropout(tokens, self.prefix.count, seen)
        return self.encode(tokens, grid, ids_keep, seen)

    def pool_seen(
        self, features: Float[Tensor, "b n d"], seen: Bool[Tensor, "b p"] | None
    ) -> Float[Tensor, "b e"]:
        """Pool as `pool_features` does, of the patches those that are no padding."""
        if self.pool == "cls":
            return features[:, 0]
        patches = features[:, self.num_prefix_tokens :]
        if self.attention_pool is not None:
            pooled = features if self.pools_prefix else patches
            return self.attention_pool(pooled, seen_tokens(seen, pooled.shape[1] - patches.shape[1]))
        mean = mean_of_seen(patches, seen)
        return mean if self.pool == "mean" else torch.cat([features[:, 0], mean], dim=1)

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Ids | None = None,
        seen: Bool[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply the blocks and the final norm (equations 2 to 4); see `IsotropicModel.encode`.

        Args:
            tokens: prefix tokens and patches.
            grid: patches along each axis.
            ids_keep: the patches that are among the tokens.
            seen: patches of the grid that are no padding; default all.
        """
        inputs = self.block_inputs(self.grid.shape if grid is None else tuple(grid), ids_keep)
        if seen is not None:
            keys, bias = seen_tokens(seen, self.prefix.count, ids_keep), inputs.mask
            inputs = replace(inputs, mask=keys if bias is None else hide_keys(keys, bias))
        if self.streams is not None:
            tokens = self.streams.split(tokens)
        if self.value_residual:
            inputs = replace(inputs, first_values=self.blocks[0].values(tokens))  # type: ignore[operator]
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens if self.streams is None else tokens.sum(dim=2))

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: positions used inside attention."""
        inputs = BlockInputs(tuple(grid), self.prefix.count, ids_keep)
        if self.rotary is None and self.relative is None:
            return inputs
        return position_inputs(inputs, self.rotary, self.relative)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        matcher = super().group_matcher(coarse)
        if self.standardizes:
            # The classifier has the rate of the last block, as in timm.
            matcher["blocks"] = [matcher["blocks"][0], (r"^(?:norm|head)\.", (99999,))]
        return matcher

    def layer_tokens(self, output: Tensor) -> Float[Tensor, "b n d"]:
        """Return the tokens in the output of a block: the sum of its residual streams, if there are
        several."""
        return output if self.streams is None else output.sum(dim=2)


def read_pooling(pool: str | OptionLike) -> AttentionPooling | None:
    """Return the attention pool that an argument stands for; None for another pooling.

    Raises:
        ValueError: if the pooling is unknown.
    """
    if isinstance(pool, str):
        check_choice("pool", pool, ("cls", "mean", "cls+mean", "map"))
        return AttentionPooling() if pool == "map" else None
    return read_option("pool", pool, {"map": AttentionPooling})


def read_hyper_connections(value: int | OptionLike | None) -> HyperConnections | None:
    """Return the hyper-connections that an argument stands for; None for plain residuals."""
    if value is None:
        return None
    if isinstance(value, int):
        return HyperConnections(streams=value)
    return read_option("hyper_connections", value, {"hyper": HyperConnections})
