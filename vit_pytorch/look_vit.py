"""LookupViT: Compressing visual information to a limited number of tokens.

R. Koner, G. Jain, P. Jain, V. Tresp, S. Paul 2024, arXiv:2407.12753.

The patches are resized to a few compressed tokens, which alone go through self-attention and the wide
feed-forward of every block. Before that they gather from the patches, and afterwards the patches are given
back what became of it through the same attention weights, transposed; their own feed-forward is narrow.

Family: plain
Differs from the paper: the last block, whose patches nothing reads, neither gives back to them nor transforms
them; the models of videos are not here. The authors publish no code: that the bilinear shrinking has a
low-pass, that the cross-attention has the heads of the self-attention, and that the patches' feed-forward is
half a token wide are choices made here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from math import isqrt, prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel, has_class_token
from vit_pytorch.layers_v01.attention import Attention, CrossAttention, FusedAttention, attention_weights
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.init import init_xavier
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions, resize_table
from vit_pytorch.layers_v01.tokens import PrefixTokens

Streams = tuple[Float[Tensor, "b m d"], Float[Tensor, "b n d"]]


class GatherKernel(nn.Module):
    """softmax(q k^T * scale) v, and what the way back reuses of it.

    Args:
        dropout: probability with which a weight is dropped in training, for both ways alike.
        reuse: "weights" gives the softmax's weights, "logits" the scores before it.
    """

    def __init__(self, dropout: float = 0.0, reuse: str = "weights") -> None:
        super().__init__()
        self.reuse = reuse
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, q: Float[Tensor, "b h m e"], k: Float[Tensor, "b h n e"], v: Float[Tensor, "b h n e"]
    ) -> tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h m n"]]:
        """Attend from every query to all keys; give the mixed values and the map."""
        if self.reuse == "weights":
            weights = self.dropout(self.weights(attention_weights(q, k)))
            return weights @ v, weights
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        return self.dropout(self.weights(scores.softmax(dim=-1))) @ v, scores


class Gather(CrossAttention):
    """Attention from the compressed tokens to the patches ("information gathering", section 3).

    Its kernel gives its map beside the values; see `GatherKernel`.
    """

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b h m n"]]:
        """Give the update of the compressed tokens from the patches, all normed, and the map."""
        mixed, seen = self.attend(*self.project(x, context))
        return self.merge(mixed), seen


class SpreadKernel(nn.Module):
    """softmax(scores^T) v: every patch weighs the compressed tokens anew.

    Args:
        dropout: probability with which a weight is dropped in training.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, scores: Float[Tensor, "b h m n"], v: Float[Tensor, "b h m e"]
    ) -> Float[Tensor, "b h n e"]:
        """Attend from every patch to all compressed tokens."""
        return self.dropout(self.weights(scores.mT.softmax(dim=-1))) @ v


class Infusion(nn.Module):
    """What the patches are given back, through the map that read them ("infusion", section 3).

    Neither queries nor keys are projected. With the weights reused, a patch gets from each compressed token
    as much as that one took from it; what it gets in all does not sum to 1.

    Args:
        dim: width of a token.
        heads: number of heads.
        dim_head: width of a head.
        bias: whether the projection to values has a bias.
        dropout: dropout on the output.
        attend: makes the kernel that turns transposed scores into weights; None where weights are reused.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        bias: bool = True,
        dropout: float = 0.0,
        attend: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_v = Linear(dim, heads * dim_head, bias=bias)
        self.attend = None if attend is None else attend()
        self.to_out = Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_v)
        init_xavier(self.to_out)

    def forward(
        self, compressed: Float[Tensor, "b m d"], seen: Float[Tensor, "b h m n"]
    ) -> Float[Tensor, "b n d"]:
        """Give the patches' update from normed compressed tokens and the map of `Gather`."""
        v = self.to_v(compressed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = seen.mT @ v if self.attend is None else self.attend(seen, v)
        return self.dropout(self.to_out(mixed.transpose(1, 2).flatten(2)))


class LookupBlock(nn.Module):
    """Compressed tokens gather, are refined as in a plain block, and give back (section 3).

    Args:
        gather: attention from the compressed tokens to the patches.
        refine: block of the compressed tokens.
        infusion: gives back to the patches; None where nothing reads them any more.
        feedforward: residual of every patch by itself; None without `infusion`.
        norm: makes the norms of what enters `gather` and `infusion`.
        tail: makes what stands between these two and their sums.
    """

    def __init__(
        self,
        gather: Gather,
        refine: Block,
        infusion: Infusion | None,
        feedforward: Residual | None,
        *,
        norm: Callable[[], nn.Module],
        tail: Callable[[], list[nn.Module]] = list,
    ) -> None:
        super().__init__()
        self.norm = norm()
        self.lookup_norm = norm()
        self.gather = gather
        self.gather_tail = nn.Sequential(*tail())
        self.refine = refine
        self.infusion_norm = None if infusion is None else norm()
        self.infusion = infusion
        self.infusion_tail = nn.Sequential(*tail())
        self.feedforward = feedforward

    def forward(self, compressed: Float[Tensor, "b m d"], lookup: Float[Tensor, "b n d"]) -> Streams:
        """Give both streams."""
        update, seen = self.gather(self.norm(compressed), self.lookup_norm(lookup))
        compressed = self.refine(compressed + self.gather_tail(update))
        if self.infusion is None or self.infusion_norm is None or self.feedforward is None:
            return compressed, lookup
        update = self.infusion(self.infusion_norm(compressed), seen)
        return compressed, self.feedforward(lookup + self.infusion_tail(update))


class LookupEncoder(Encoder):
    """A stack of blocks over two streams: compressed tokens, prefix tokens in front, and patches.

    Args:
        block: makes the block of a layer from its index.
        depth: number of blocks.
        prefix: number of prefix tokens, which go with the compressed tokens.
        compressed: compressed tokens along each axis.
    """

    def __init__(
        self, block: Callable[[int], LookupBlock], *, depth: int, prefix: int, compressed: tuple[int, int]
    ) -> None:
        super().__init__(block, depth=depth)
        self.prefix = prefix
        self.compressed = compressed

    def steps(self, x: Float[Tensor, "b n d"], grid: Sequence[int]) -> Iterator[Streams]:
        """Give both streams after every block in turn.

        Args:
            x: prefix tokens and patches.
            grid: patches along each axis.
        """
        prefix, lookup = x[:, : self.prefix], x[:, self.prefix :]
        few = resize_table(lookup, grid, self.compressed, mode="bilinear")
        streams = torch.cat([prefix, few], dim=1), lookup
        for block in self.blocks:
            streams = self.run(block, *streams)
            yield streams

    def intermediates(
        self, x: Float[Tensor, "b n d"], layers: Collection[int], *context: Any, stop_early: bool = False
    ) -> tuple[Any, list[Float[Tensor, "b n d"]]]:
        """Give both last streams, and the prefix tokens and patches after the blocks asked for."""
        last, taken = super().intermediates(x, layers, *context, stop_early=stop_early)
        return last, [torch.cat([few[:, : self.prefix], lookup], dim=1) for few, lookup in taken]


class LookupViT(IsotropicModel):
    """A Vision Transformer that does its work on a few compressed tokens, which look patches up.

    Its features are the class token and the compressed tokens, and the patches behind them where the head
    reads them; intermediate features are maps of the patches. The number of compressed tokens has no
    parameters: by `set_num_compressed`, a model may be trained with several, and a trained one run with any.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the compressed tokens' feed-forward.
        num_compressed: number of compressed tokens: the square of a whole number, or (rows, columns); at most
            the largest input's patches along each axis.
        lookup_mlp_dim: width inside the patches' feed-forward; half of `dim` unless told.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        channels: channels of the input.
        pool: "cls" classifies the class token, "mean" the mean of the compressed tokens.
        dim_head: width of a head.
        head_on: "compressed" classifies what `pool` says; "both" the sum of that and of the patches' mean, as
            the public vit-pytorch package does.
        reuse: what the way back to the patches reuses: the attention's "weights", or its "logits", of which
            it takes a softmax over the compressed tokens.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.
        class_token: whether there is a class token; None means where `pool` is "cls".

    Raises:
        ValueError: where sizes do not divide, or the compressed tokens are no grid within the patches'.
    """

    encoder: LookupEncoder

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
        class_token: bool | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("head_on", head_on, ("compressed", "both"))
        check_choice("reuse", reuse, ("weights", "logits"))
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=has_class_token(pool, class_token))
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> LookupBlock:
            sizes: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "dropout": dropout}
            tail = partial(make_tail, dim, drop_path=drop_path_rate(drop_path, layer, depth))
            gather = Gather(
                dim, **sizes, qkv_bias=qkv_bias, attend=partial(GatherKernel, attn_dropout, reuse)
            )
            attention = Attention(
                dim, **sizes, qkv_bias=qkv_bias, attend=partial(FusedAttention, attn_dropout)
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
            refine = Block(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))
            if layer == depth - 1 and head_on == "compressed":
                return LookupBlock(gather, refine, None, None, norm=norm, tail=tail)
            spread = partial(SpreadKernel, attn_dropout) if reuse == "logits" else None
            narrow = FeedForward(dim, lookup_mlp_dim or dim // 2, dropout=dropout)
            return LookupBlock(
                gather,
                refine,
                Infusion(dim, **sizes, bias=qkv_bias, attend=spread),
                Residual(narrow, norm(), tail()),
                norm=norm,
                tail=tail,
            )

        self.encoder = LookupEncoder(
            block, depth=depth, prefix=len(self.prefix), compressed=_compressed_grid(num_compressed, grid)
        )
        self.norm = norm()
        self.lookup_norm = norm() if head_on == "both" else None
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: the map of the patches, of all blocks that change it."""
        return super().feature_info[: None if self.lookup_norm is not None else -1]

    def set_num_compressed(self, num_compressed: int | Sequence[int]) -> None:
        """Work with another number of compressed tokens from now on; the parameters stay.

        Args:
            num_compressed: as the constructor takes it.

        Raises:
            ValueError: where it is no grid within the patches'.
        """
        self.encoder.compressed = _compressed_grid(num_compressed, self.grid)
        self._record(num_compressed=num_compressed)

    def context(self, grid: Sequence[int], kept: Int[Tensor, "b k"] | None = None) -> tuple[Any, ...]:
        """Hand the encoder the grid, which it resizes.

        Raises:
            ValueError: where some patches are left out.
        """
        if kept is not None:
            raise ValueError(
                f"LookupViT resizes the whole grid of patches, got {kept.shape[1]} of {prod(grid)}"
            )
        return (grid,)

    def finish(self, tokens: Any) -> Float[Tensor, "b m d"]:
        """Turn the encoder's streams into the features, by the final norms."""
        compressed, lookup = tokens
        if self.lookup_norm is None:
            return self.norm(compressed)
        return torch.cat([self.norm(compressed), self.lookup_norm(lookup)], dim=1)

    def pool_tokens(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Give one vector for each image."""
        few = self.num_prefix_tokens + prod(self.encoder.compressed)
        pooled = super().pool_tokens(features[:, :few])
        return pooled if self.lookup_norm is None else pooled + features[:, few:].mean(dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth, as timm's tools read them."""
        groups = super().group_matcher(coarse)
        groups["blocks"].append((r"^lookup_norm\.", (99999,)))
        return groups


def _compressed_grid(num_compressed: int | Sequence[int], grid: PatchGrid) -> tuple[int, int]:
    """Read a number of compressed tokens as (rows, columns)."""
    if isinstance(num_compressed, int):
        side = isqrt(max(num_compressed, 0))
        if side * side != num_compressed:
            raise ValueError(
                f"num_compressed is the square of a whole number or (rows, columns), got {num_compressed}"
            )
        num_compressed = side
    compressed = pair(num_compressed)
    if any(not 1 <= few <= most for few, most in zip(compressed, grid.shape, strict=True)):
        raise ValueError(
            f"compressed tokens are 1 to {grid.shape} along each axis, got num_compressed={compressed}"
        )
    return compressed
