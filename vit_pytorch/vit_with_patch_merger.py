"""Learning to Merge Tokens in Vision Transformers.

C. Renggli, A. Susano Pinto, N. Houlsby, B. Mustafa, J. Puigcerver, C. Riquelme 2022, arXiv:2202.12015.

Halfway through a ViT, one layer merges all patches into a few tokens: each is a convex combination of the
normed patches, by a learned score for each. The blocks after it work on these few.

Family: plain
Differs from the paper: the models with experts are not here; the classifier and the merging scores start
from small random values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import FusedAttention, Ids
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers.positions import LearnedPositions


class PatchMergerViT(IsotropicModel):
    """A Vision Transformer whose patches are merged into a few tokens on the way; the mean is classified.

    Args:
        depth: number of blocks, at least 2.
        patch_merge_layer: number of blocks before the merger, from 1 to depth - 1; default half of them.
        patch_merge_num_tokens: number of merged tokens.
        scale: factor on the merging scores (see `PatchMerger`).

    Raises:
        ValueError: if sizes do not divide, or the merger is not between two blocks.
    """

    undecayed = IsotropicModel.undecayed + r"|^merger\.queries$"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        patch_merge_layer: int | None = None,
        patch_merge_num_tokens: int = 8,
        mlp_dim: int,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
        dim_head: int = 64,
        scale: float = 1.0,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        patch_norm: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        self.merge_layer = depth // 2 if patch_merge_layer is None else patch_merge_layer
        if not 1 <= self.merge_layer < depth:
            raise ValueError(
                f"patch_merge_layer must be in [1, depth - 1] with depth={depth}, got {self.merge_layer}"
            )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None)
        self.positions = LearnedPositions(grid.shape, dim)
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
            norm=norm,
        )
        self.merger = PatchMerger(dim, patch_merge_num_tokens, scale=scale, norm_eps=norm_eps)
        self.norm = norm(dim)
        # Parameters after those of the merger: the states of optimizers go by that order.
        for name in ("norm", "fc_norm", "pre_logits", "head"):
            self._modules[name] = self._modules.pop(name)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m d"]:
        """Return the merged tokens after the final norm."""
        return self.encode(self.embed(images))

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b m d"]:
        """Apply the blocks, with the merger between two of them, and the final norm (section 3)."""
        for index, block in enumerate(self.blocks):
            if index == self.merge_layer:
                tokens = self.merger(tokens)
            tokens = block(tokens)
        return self.norm(tokens)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is; blocks after the merger have no map."""
        return super().feature_info[: self.merge_layer]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth; the merger goes with the block after it."""
        groups = super().group_matcher(coarse)
        groups["blocks"].append((r"^merger\.", (self.merge_layer,)))
        return groups


class PatchMerger(nn.Module):
    """Merge any number of tokens into a few: softmax(scale * W LN(x)^T) LN(x), over the tokens.

    Args:
        scale: factor on the scores; the public vit-pytorch package has 1 / sqrt(dim), the paper none.
    """

    @checks_arguments
    def __init__(self, dim: int, num_tokens_out: int, *, scale: float = 1.0, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.queries = nn.Parameter(torch.empty(num_tokens_out, dim))
        nn.init.trunc_normal_(self.queries, std=dim**-0.5)
        self.kernel = FusedAttention(scale=scale)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Merge the tokens of each sample."""
        x = self.norm(x)[:, None]
        return self.kernel(self.queries.expand(x.shape[0], 1, -1, -1), x, x)[:, 0]


ViT = PatchMergerViT
