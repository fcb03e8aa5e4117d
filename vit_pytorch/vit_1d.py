"""An Image is Worth 16x16 Words, for signals.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

The ViT on arrays of one axis, such as sound or measurements over time: a patch is a stretch of the signal.

Family: plain
Differs from the paper: patches have one axis.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.vit_v01 import ViT as ViT2D

Pool = Literal["cls", "mean"]
Positions = Literal["learned", "sincos", "none"]


class ViT1D(ViT2D):
    """The Vision Transformer on signals (b c n).

    A signal may be shorter than `seq_len`. Maps of `forward_intermediates` have the axes (b d n).

    Args:
        seq_len: length of the longest signal.
        patch_size: length of a patch; divides `seq_len`.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        channels: channels of the input.
        dim_head: width of a head.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the attention's output projection has a bias.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        act: activation of the feed-forward: "gelu", "gelu_tanh", "quickgelu", "relu" or "silu".
        norm_eps: epsilon of the LayerNorms.
        patch_norm: whether LayerNorms stand before and after the patch projection.
        positions: "learned", "sincos" or "none".
        class_token: whether there is a class token; None means where `pool` is "cls".

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
    """

    rank: ClassVar[int] = 1

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
        positions: Positions = "learned",
        class_token: bool | None = None,
    ) -> None:
        check_choice("pool", pool, ("cls", "mean"))
        super().__init__(
            image_size=seq_len,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dropout=dropout,
            emb_dropout=emb_dropout,
            pool=pool,
            dim_head=dim_head,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
            act=act,
            norm_eps=norm_eps,
            patch_norm=patch_norm,
            positions=positions,
            class_token=class_token,
        )


ViT = ViT1D
