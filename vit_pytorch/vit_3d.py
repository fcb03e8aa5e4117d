"""An Image is Worth 16x16 Words, for videos and volumes.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

The ViT with patches of three axes, "tubelets" of a few frames: all of them are one sequence, in which each
attends to all others, across space and time at once.

Family: plain
Differs from the paper: patches have three axes; frames may be padding, which a mask tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel, MaskedFrames
from vit_pytorch.layers.attention import BlockInputs, Ids
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import OptionLike, check_choice, read_option
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.position_options import position_inputs
from vit_pytorch.layers.positions import Learned, NoPositions, Sequential, SinCos
from vit_pytorch.layers.rotary import Rotary, RotaryOption, TiledRotary
from vit_pytorch.layers.space_time import mask_of_keys, zero_padding
from vit_pytorch.layers.tokens import AttentivePool
from vit_pytorch.legacy import flat_options

Pool = Literal["cls", "mean", "attentive"]
POSITIONS: dict[str, Any] = {
    "learned": Learned,
    "sincos": SinCos,
    "sequence": Sequential,
    "none": NoPositions,
    "rope": Rotary,
    "rope_tiled": TiledRotary,
}


class ViT3D(MaskedFrames, IsotropicModel):
    """The Vision Transformer on videos or volumes (b c t h w).

    An input may have fewer frames than `frames` and be smaller than `image_size`: tokens have the positions
    of the same places in the full grid. Maps of `forward_intermediates` have the axes (b d t h w).

    Args:
        pool: "cls" or "mean", or "attentive" for blocks and a query of their own (`AttentivePool`).
        positions: "learned" (`Learned`), "sincos" of the three axes (`SinCos`), "sequence" (`Sequential`,
            fixed, along the sequence of patches, as in VideoMAE), "rope" (`Rotary`), "rope_tiled"
            (`TiledRotary`, as in V-JEPA 2) or "none".
    """

    @flat_options
    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        frames: int,
        image_patch_size: int | Sequence[int],
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        pool: Pool = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        qkv_bias: bool = True,
        out_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        patch_norm: bool = False,
        positions: OptionLike = "learned",
        class_token: bool = False,
        fc_norm: bool = False,
        head_zero_init: bool = False,
    ) -> None:
        check_choice("pool", pool, ("cls", "mean", "attentive"))
        grid = PatchGrid((frames, *pair(image_size)), (frame_patch_size, *pair(image_patch_size)))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        # The constructor is decorated.
        warn_if_few(grid, stacklevel=4)
        norm = partial(nn.LayerNorm, eps=norm_eps)
        class_token = class_token or pool == "cls"

        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        option = read_option("positions", positions, POSITIONS)
        inside = option if isinstance(option, RotaryOption) else None
        added = NoPositions() if inside else option
        self.positions = added.build(grid.shape, dim, class_token=class_token)
        self.rotary = inside.build(grid.shape, dim_head, heads=heads, depth=depth) if inside else None
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
            out_bias=out_bias,
            act=act,
            norm=norm,
            position=inside.positions if inside else None,
        )
        self.norm = nn.Identity() if fc_norm else norm(dim)
        self.fc_norm = norm(dim) if fc_norm else nn.Identity()
        if pool == "attentive":
            self.attention_pool = AttentivePool(dim, heads=heads, norm_eps=norm_eps, act=act)
        self.reset_classifier(num_classes)
        if head_zero_init:
            init_linears(self.head, nn.init.zeros_)

    def forward_features(
        self, images: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first; no other attends to padding."""
        tokens, inputs = self.embed(images), self.block_inputs(self.grid.fit(images.shape[2:]))
        if mask is not None:
            keys = mask_of_keys(mask, images, self.grid, self.num_prefix_tokens)
            tokens, inputs = zero_padding(tokens, keys), replace(inputs, mask=keys)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Ids | None = None) -> BlockInputs:
        """Return the extra inputs of each block: positions used inside attention."""
        return position_inputs(super().block_inputs(grid, ids_keep), self.rotary, None)


ViT = ViT3D
