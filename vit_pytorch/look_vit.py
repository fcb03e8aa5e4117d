"""LookupViT: Compressing visual information to a limited number of tokens.

R. Koner, G. Jain, P. Jain, V. Tresp, S. Paul 2024, arXiv:2407.12753.

The patches are resized to a few compressed tokens, and only these go through self-attention and the wide
feed-forward of each block. Before that they gather from the patches by cross-attention; afterwards the
patches are updated from them through the same attention weights, transposed, and have a narrow feed-forward.

Family: plain
Differs from the paper: the last block, whose patches nothing reads, leaves them as they are; the models of
videos are not implemented. The authors publish no code: that the bilinear shrinking is antialiased, that the
cross-attention has the heads of the self-attention, and that the patches' feed-forward has a hidden dimension
of half a token's are choices made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isqrt, prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import (
    Attention,
    BlockInputs,
    CrossAttention,
    FusedAttention,
    Ids,
    attention_weights,
    merge_heads,
    split_heads,
)
from vit_pytorch.layers.blocks import DropPath, FeedForward, drop_path_rate, fx_leaf, layer
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions, resize_table


class LookupViT(IsotropicModel):
    """A Vision Transformer that does its work on a few compressed tokens, which look patches up.

    Its features are the class token and the compressed tokens, then the patches if the head reads them;
    intermediate features are maps of the patches. No parameter depends on the number of compressed tokens: by
    `set_num_compressed`, a model may be trained with several numbers, and a trained one run with any.

    Args:
        mlp_dim: hidden dimension of the compressed tokens' feed-forward.
        num_compressed: number of compressed tokens: the square of an integer, or (rows, columns); at most the
            patches of the largest input along each axis.
        lookup_mlp_dim: hidden dimension of the patches' feed-forward; default half of `dim`.
        pool: "cls" classifies the class token, "mean" the mean of the compressed tokens.
        head_on: "compressed" classifies what `pool` says; "both" the sum of that and of the patches' mean, as
            the public vit-pytorch package does.
        reuse: what the way back to the patches reuses: the attention's "weights", or its "logits", of which
            it takes a softmax over the compressed tokens.

    Raises:
        ValueError: if sizes do not divide, or the compressed tokens are no grid within that of the patches.
    """

    needs_last_layers = True

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
        num_compressed: int | Sequence[int] = 100,
        lookup_mlp_dim: int | None = None,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
        pool: Literal["cls", "mean"] = "cls",
        dim_head: int = 64,
        head_on: Literal["compressed", "both"] = "compressed",
        reuse: Literal["weights", "logits"] = "weights",
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        class_token: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("head_on", head_on, ("compressed", "both"))
        check_choice("reuse", reuse, ("weights", "logits"))
        norm = partial(nn.LayerNorm, eps=norm_eps)
        sizes: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head,
            "qkv_bias": qkv_bias,
            "dropout": dropout,
        }
        gather = partial(GatherKernel, attn_dropout, reuse)
        spread = partial(SpreadKernel, attn_dropout) if reuse == "logits" else None
        # The depth at which the patches change for the last time.
        last = depth if head_on == "both" else depth - 1

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token or pool == "cls")
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.compressed = _compressed_grid(num_compressed, grid)
        self.blocks = nn.ModuleList(
            LookupBlock(
                dim,
                Gather(dim, **sizes, kernel=gather),
                Attention(dim, **sizes, kernel=partial(FusedAttention, attn_dropout)),
                FeedForward(dim, mlp_dim, dropout=dropout),
                Infusion(dim, **sizes, kernel=spread) if index < last else None,
                FeedForward(dim, lookup_mlp_dim or dim // 2, dropout=dropout) if index < last else None,
                norm=norm,
                drop_path=drop_path_rate(drop_path, index, depth),
            )
            for index in range(depth)
        )
        self.norm = norm(dim)
        self.lookup_norm = norm(dim) if head_on == "both" else None
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: the map of the patches, of all blocks that change it."""
        return super().feature_info[: None if self.lookup_norm is not None else -1]

    @property
    def num_compressed_tokens(self) -> int:
        """Number of compressed tokens, with the prefix tokens, which go with them."""
        return self.num_prefix_tokens + prod(self.compressed)

    def set_num_compressed(self, num_compressed: int | Sequence[int]) -> None:
        """Work with another number of compressed tokens from now on; the parameters stay.

        Raises:
            ValueError: if it is no grid within that of the patches.
        """
        self.compressed = _compressed_grid(num_compressed, self.grid)
        self._record(num_compressed=num_compressed)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m d"]:
        """Return class token and compressed tokens, then patches if the head reads them, all normed."""
        return self.encode(self.embed(images), self.grid.fit(images.shape[2:]))

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b m d"]:
        """Compress the patches, apply the blocks and the final norms; see `IsotropicModel.encode`."""
        grid = self.grid.shape if grid is None else tuple(grid)
        inputs = self.block_inputs(grid, ids_keep)
        prefix, lookup = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        tokens = torch.cat([prefix, compress(lookup, grid=grid, compressed=self.compressed), lookup], dim=1)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        compressed, lookup = tokens[:, : inputs.num_prefix_tokens], tokens[:, inputs.num_prefix_tokens :]
        if self.lookup_norm is None:
            return self.norm(compressed)
        return torch.cat([self.norm(compressed), self.lookup_norm(lookup)], dim=1)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return how many tokens come before the patches inside the blocks.

        Raises:
            ValueError: if patches are missing.
        """
        if ids_keep is not None:
            raise ValueError(
                f"LookupViT resizes the whole grid of patches, got {ids_keep.shape[1]} of {prod(grid)}"
            )
        return replace(super().block_inputs(grid), num_prefix_tokens=self.num_compressed_tokens)

    def layer_tokens(self, output: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
        """Return the prefix tokens and the patches in the output of a block."""
        few = self.num_compressed_tokens
        return torch.cat([output[:, : self.num_prefix_tokens], output[:, few:]], dim=1)

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Return one vector per image."""
        few = self.num_compressed_tokens
        pooled = super().pool_features(features[:, :few])
        return pooled if self.lookup_norm is None else pooled + features[:, few:].mean(dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        groups = super().group_matcher(coarse)
        groups["blocks"].append((r"^lookup_norm\.", (99999,)))
        return groups


@fx_leaf
def compress(
    lookup: Float[Tensor, "b n d"], *, grid: Sequence[int], compressed: Sequence[int]
) -> Float[Tensor, "b m d"]:
    """Resize the patches of a grid to the grid of compressed tokens."""
    return resize_table(lookup, grid, compressed, mode="bilinear")


class LookupBlock(nn.Module):
    """Compressed tokens gather from the patches, are refined as in a plain block, and give back (section 3).

    Args:
        gather: from the compressed tokens to the patches.
        attention: among the compressed tokens.
        infusion: updates the patches; None to leave them as they are.
        lookup_feedforward: transforms each patch on its own; None without `infusion`.
    """

    def __init__(
        self,
        dim: int,
        gather: Gather,
        attention: Attention,
        feedforward: FeedForward,
        infusion: Infusion | None,
        lookup_feedforward: FeedForward | None,
        *,
        norm: Callable[[int], nn.Module],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.gather_norm = norm(dim)
        self.lookup_norm = norm(dim)
        self.gather = gather
        self.norm1 = norm(dim)
        self.attention = attention
        self.norm2 = norm(dim)
        self.feedforward = feedforward
        self.infusion_norm = None if infusion is None else norm(dim)
        self.infusion = infusion
        self.lookup_feedforward_norm = None if infusion is None else norm(dim)
        self.lookup_feedforward = lookup_feedforward
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "b k d"], inputs: BlockInputs) -> Float[Tensor, "b k d"]:
        """Transform both streams.

        Args:
            x: compressed tokens, with the prefix tokens, then the patches.
            inputs: with the number of tokens before the patches.
        """
        few = inputs.num_prefix_tokens
        compressed, lookup = x[:, :few], x[:, few:]
        update, seen = self.gather(self.gather_norm(compressed), self.lookup_norm(lookup))
        compressed = compressed + self.drop_path(update)
        compressed = compressed + self.drop_path(self.attention(self.norm1(compressed)))
        compressed = compressed + self.drop_path(self.feedforward(self.norm2(compressed)))
        if self.infusion is not None:
            update = self.infusion(self.infusion_norm(compressed), seen)  # type: ignore[misc]
            lookup = lookup + self.drop_path(update)
            update = self.lookup_feedforward(self.lookup_feedforward_norm(lookup))  # type: ignore[misc]
            lookup = lookup + self.drop_path(update)
        return torch.cat([compressed, lookup], dim=1)


class GatherKernel(nn.Module):
    """softmax(q k^T * scale) v, and the map that the way back reuses.

    Args:
        dropout: probability of dropping an attention weight in training, the same for both ways.
        reuse: the map is the softmax's "weights", or its "logits".
    """

    def __init__(self, dropout: float = 0.0, reuse: str = "weights") -> None:
        super().__init__()
        self.reuse = reuse
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, q: Float[Tensor, "b h m e"], k: Float[Tensor, "b h n e"], v: Float[Tensor, "b h n e"]
    ) -> tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h m n"]]:
        """Attend from each query to all keys; return the mixed values and the map."""
        if self.reuse == "weights":
            weights = self.dropout(self.weights(attention_weights(q, k)))
            return weights @ v, weights
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        return self.dropout(self.weights(scores.softmax(dim=-1))) @ v, scores


class Gather(CrossAttention):
    """Attention from the compressed tokens to the patches ("information gathering", section 3).

    Its kernel returns its map in addition to the values; see `GatherKernel`.
    """

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b h m n"]]:
        """Return the update of the compressed tokens from the patches, all normed, and the map."""
        mixed, seen = self.kernel(*self.project(x, context))
        return self.merge(mixed), seen


class SpreadKernel(nn.Module):
    """softmax(scores^T) v: each patch weighs the compressed tokens anew."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, scores: Float[Tensor, "b h m n"], v: Float[Tensor, "b h m e"]
    ) -> Float[Tensor, "b h n e"]:
        """Attend from each patch to all compressed tokens."""
        return self.dropout(self.weights(scores.mT.softmax(dim=-1))) @ v


class Infusion(nn.Module):
    """Update of the patches, through the map that read them ("infusion", section 3).

    Neither queries nor keys are projected. With the weights reused, a patch gets from each compressed token
    as much as that one took from it; its weights do not sum to 1.

    Args:
        qkv_bias: use a bias for the values.
        kernel: builds the kernel that attends by the transposed scores; None if weights are reused.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        kernel: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_v = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.kernel = None if kernel is None else kernel()
        self.to_out = nn.Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_v)
        init_xavier(self.to_out)

    def forward(
        self, compressed: Float[Tensor, "b m d"], seen: Float[Tensor, "b h m n"]
    ) -> Float[Tensor, "b n d"]:
        """Return the update of the patches from normed compressed tokens and the map of `Gather`."""
        v = split_heads(self.to_v(compressed), self.heads)
        mixed = seen.mT @ v if self.kernel is None else self.kernel(seen, v)
        return self.dropout(self.to_out(merge_heads(mixed)))


def _compressed_grid(num_compressed: int | Sequence[int], grid: PatchGrid) -> tuple[int, int]:
    """Return a number of compressed tokens as (rows, columns)."""
    if isinstance(num_compressed, int):
        side = isqrt(num_compressed)
        if side * side != num_compressed:
            raise ValueError(
                f"num_compressed must be the square of an integer or (rows, columns), got {num_compressed}"
            )
        num_compressed = side
    compressed = pair(num_compressed)
    if any(few > most for few, most in zip(compressed, grid.shape, strict=True)):
        raise ValueError(
            f"compressed tokens must be 1 to {grid.shape} along each axis, got num_compressed={compressed}"
        )
    return compressed
