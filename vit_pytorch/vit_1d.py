"""An Image is Worth 16x16 Words, for signals.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

The ViT on arrays of one axis, such as sound or measurements over time: a patch is a stretch of the signal.

Family: plain
Differs from the paper: patches have one axis.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.options import OptionLike, check_choice, read_option
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, warn_if_few
from vit_pytorch.layers.positions import Learned, NoPositions, SinCos
from vit_pytorch.legacy import flat_options

Pool = Literal["cls", "mean"]
POSITIONS: dict[str, Any] = {"learned": Learned, "sincos": SinCos, "none": NoPositions}


class ViT1D(IsotropicModel):
    """The Vision Transformer on signals (b c n).

    A signal may be shorter than `seq_len`. Maps of `forward_intermediates` have the axes (b d n).

    Args:
        seq_len: length of the longest signal.
        patch_size: length of a patch; divides `seq_len`.
        positions: "learned" (`Learned`), "sincos" (`SinCos`) or "none".
    """

    @flat_options
    def __init__(
        self,
        *,
        seq_len: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pool: Pool = "cls",
        qkv_bias: bool = True,
        out_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        patch_norm: bool = False,
        positions: OptionLike = "learned",
        class_token: bool = False,
    ) -> None:
        check_choice("pool", pool, ("cls", "mean"))
        grid = PatchGrid((seq_len,), (patch_size,))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        # The constructor is decorated.
        warn_if_few(grid, stacklevel=4)
        norm = partial(nn.LayerNorm, eps=norm_eps)
        class_token = class_token or pool == "cls"

        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = read_option("positions", positions, POSITIONS).build(
            grid.shape, dim, class_token=class_token
        )
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
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c n"]) -> Float[Tensor, "b m d"]:
        """Return all tokens after the final norm, the class token first (section 3.1)."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


ViT = ViT1D
