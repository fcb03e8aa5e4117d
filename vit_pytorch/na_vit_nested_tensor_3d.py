"""Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution, for videos and volumes.

M. Dehghani, B. Mustafa, J. Djolonga, J. Heek et al. 2023, arXiv:2307.06304.

NaViT on videos or volumes of any number of frames, height and width, packed one after the other; positions
are the sum of a frame's, a row's and a column's embedding.

Family: plain
Differs from the paper: as `na_vit.NaViT` does; inputs have frames; as in the public vit-pytorch package,
registers (arXiv:2309.16588) stand before each input's patches and are pooled with them, queries and keys have
LayerNorms, and the pooled vector is attention's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from vit_pytorch.layers.patches import pair
from vit_pytorch.na_vit import NaViT as PackedNaViT


class NaViT3D(PackedNaViT):
    """The Native Resolution ViT of videos or volumes (c t h w), in lists, rows, batches or nested tensors.

    `forward_features` returns the tokens of a list as a list.

    Args:
        image_size: the largest height and width, one number or (height, width) in pixels.
        max_frames: the largest number of frames.
        token_dropout_prob: as in `NaViT`; a function returns the share from (frames, height, width).
        num_registers: number of register tokens before each input's patches.
        qk_rmsnorm: normalise queries and keys, by LayerNorms without bias as in the public package.
    """

    rank: ClassVar[int] = 3
    pools_registers: ClassVar[bool] = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        max_frames: int,
        patch_size: int | Sequence[int],
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        num_registers: int = 4,
        qk_rmsnorm: bool = True,
        token_dropout_prob: float | Callable[..., float] | None = None,
    ) -> None:
        super().__init__(
            image_size=(max_frames, *pair(image_size)),
            patch_size=(frame_patch_size, *pair(patch_size)),
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            attn_dropout=dropout,
            emb_dropout=emb_dropout,
            token_dropout_prob=token_dropout_prob,
            num_registers=num_registers,
            qk_norm="layer" if qk_rmsnorm else "none",
            patch_norm=True,
            pool={"kind": "query", "residual": False},
            out_bias=False,
            head_bias=False,
            norm_eps=1e-5,
        )


NaViT = NaViT3D
