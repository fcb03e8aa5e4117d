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
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import Attention, FusedAttention
from vit_pytorch.layers.encoder import Block, DropPath, Encoder, FeedForward, LayerScale, Residual
from vit_pytorch.layers.patches import ConvStem, PatchEmbed, PatchGrid, pair
from vit_pytorch.layers.positions import LearnedPositions, SinCosPositions
from vit_pytorch.layers.tokens import AttentionPool, PrefixTokens
from vit_pytorch.model import Intermediates, VisionModel, take_layers

Pool = Literal["cls", "mean", "map"]
Positions = Literal["learned", "sincos", "none"]
Stem = Literal["linear", "conv"]
TIMM_POOL = {"token": "cls", "avg": "mean"}


class ViT(VisionModel):
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
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(num_classes=num_classes, num_features=dim, channels=channels, image_size=grid.size)
        class_token = pool == "cls" if class_token is None else class_token
        _check_options(pool, class_token, stem, patch_norm, positions)
        if grid.num_patches <= 16:
            warnings.warn(
                f"{grid.num_patches} patches are few for attention to work with: "
                f"make the patch smaller than {grid.patch}, so that there are more than 16",
                stacklevel=2,
            )
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)

        self.grid = grid
        self.pool: str = pool
        self.patch_embed: nn.Module = (
            ConvStem(grid, channels, dim)
            if stem == "conv"
            else PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None, bias=not pre_norm)
        )
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        self.num_prefix_tokens = len(self.prefix)
        self.positions: LearnedPositions | SinCosPositions | None = None
        if positions == "learned":
            placed = int(class_token and not no_embed_class)
            self.positions = LearnedPositions(grid.shape, dim, prefix=placed)
        elif positions == "sincos":
            self.positions = SinCosPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.pre_norm = norm() if pre_norm else nn.Identity()

        def block(layer: int) -> Block:
            attend = partial(FusedAttention, attn_dropout)
            attention = Attention(
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
            return Block(Residual(attention, norm(), tail(layer)), Residual(feedforward, norm(), tail(layer)))

        def tail(layer: int) -> list[nn.Module]:
            scale = [] if layer_scale is None else [LayerScale(dim, layer_scale)]
            path = [DropPath(drop_path * layer / max(depth - 1, 1))] if drop_path else []
            return [*scale, *path]

        self.encoder = Encoder(block, depth=depth)
        self.norm = nn.Identity() if fc_norm else norm()
        self.fc_norm = norm() if fc_norm else nn.Identity()
        self.attention_pool = (
            AttentionPool(dim, heads=heads, mlp_dim=mlp_dim, norm_eps=norm_eps, act=act)
            if pool == "map"
            else None
        )
        self.pre_logits: nn.Module = nn.Identity()
        if representation_size is not None:
            self.pre_logits = nn.Sequential(nn.Linear(dim, representation_size), nn.Tanh())
        self.head_width = representation_size or dim
        self.to_latent = nn.Identity()
        self.head: nn.Module = nn.Identity()
        self.feature_info = [
            {"module": f"encoder.blocks.{layer}", "num_chs": dim, "reduction": max(grid.patch)}
            for layer in range(depth)
        ]
        self._init_embedding()
        self.reset_classifier(num_classes)
        if head_zero_init and isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)

    @property
    def head_hidden_size(self) -> int:
        """Width of what enters the classifier."""
        return self.head_width

    def patchify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        """Flatten each patch of pixels to a vector (row, column, channel)."""
        self.check_images(images)
        return self.grid.patchify(images)

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Turn images into the tokens that enter the encoder, prefix tokens in front (equation 1)."""
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        x = self.patch_embed(images)
        if self.positions is not None:
            x = x + self.positions(grid)
        if self.num_prefix_tokens:
            prefix = self.prefix()
            if isinstance(self.positions, LearnedPositions) and self.positions.prefix:
                prefix = prefix + self.positions.for_prefix(self.num_prefix_tokens)
            x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pre_norm(self.dropout(x))

    def encode(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Run the encoder and its final norm (equations 2 to 4)."""
        return self.norm(self.encoder(tokens))

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Compute the tokens after the final norm, prefix tokens in front."""
        return self.encode(self.embed(images))

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k"]:
        """Pool tokens and classify them.

        Args:
            features: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.
        """
        if self.attention_pool is not None:
            x = self.attention_pool(features[:, self.num_prefix_tokens :])
        elif self.pool == "cls":
            x = features[:, 0]
        else:
            x = features[:, self.num_prefix_tokens :].mean(dim=1)
        x = self.to_latent(self.pre_logits(self.fc_norm(x)))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates]:
        """Compute features between the blocks; see `VisionModel.forward_intermediates`."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is NCHW or NLC, got {output_fmt!r}")
        layers = take_layers(indices, len(self.encoder.blocks))
        last, taken = self.encoder.intermediates(self.embed(images), layers, stop_early=stop_early)
        if norm:
            taken = [self.norm(tokens) for tokens in taken]
        prefix = [tokens[:, : self.num_prefix_tokens] for tokens in taken]
        taken = [tokens[:, self.num_prefix_tokens :] for tokens in taken]
        if output_fmt == "NCHW":
            grid = self.grid.fit(images.shape[2:])
            taken = [tokens.transpose(1, 2).unflatten(2, grid) for tokens in taken]
        found: Intermediates = list(zip(taken, prefix, strict=True)) if return_prefix_tokens else taken
        return found if intermediates_only else (self.norm(last), found)

    def get_classifier(self) -> nn.Module:
        """Give the layer that computes the logits; the identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, and the pooling where told.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "cls" (timm's "token") or "mean" (timm's "avg").
        """
        if global_pool is not None:
            self._change_pool(TIMM_POOL.get(global_pool, global_pool))
        weight = next(self.parameters())
        self.head = nn.Identity()
        if num_classes:
            head = nn.Linear(self.head_width, num_classes, device=weight.device, dtype=weight.dtype)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self.head = head
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.encoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        names = {name for name, _ in self.named_parameters()}
        return names & {"prefix.class_token", "prefix.registers", "positions.table", "attention_pool.query"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth, as timm's tools read them."""
        return {
            "stem": r"^(?:prefix|positions|patch_embed|pre_norm)\.",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def _change_pool(self, pool: str) -> None:
        """Pool by the class token or by the mean from now on."""
        if pool == self.pool:
            return
        if self.pool == "map" or pool not in ("cls", "mean"):
            raise ValueError(f"pooling cannot change from {self.pool!r} to {pool!r}")
        class_token = self.prefix.class_token is not None
        if pool == "cls" and not class_token:
            raise ValueError("pooling by the class token needs one; the model has none")
        self.pool = pool
        self._record(pool=pool, class_token=class_token)

    def _init_embedding(self) -> None:
        """Start the linear patch projection with variance 1 / fan-in."""
        if isinstance(self.patch_embed, PatchEmbed):
            proj = self.patch_embed.proj
            nn.init.trunc_normal_(proj.weight, std=prod(proj.weight.shape[1:]) ** -0.5)
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)


def _check_options(pool: str, class_token: bool, stem: str, patch_norm: bool, positions: str) -> None:
    for name, value, allowed in (
        ("pool", pool, ("cls", "mean", "map")),
        ("stem", stem, ("linear", "conv")),
        ("positions", positions, ("learned", "sincos", "none")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is one of {', '.join(allowed)}; got {value!r}")
    if pool == "cls" and not class_token:
        raise ValueError("pool='cls' needs a class token, got class_token=False")
    if patch_norm and stem != "linear":
        raise ValueError(f"patch_norm belongs to stem='linear', got stem={stem!r}")
