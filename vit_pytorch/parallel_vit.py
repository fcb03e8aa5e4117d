"""Three things everyone should know about Vision Transformers.

H. Touvron, M. Cord, A. El-Nouby, J. Verbeek, H. Jégou 2022, arXiv:2203.09795.

Puts residual branches side by side: a block adds several attentions of the same tokens at once, then
several feed-forwards. Half the depth with two branches has the parameters of the sequential model, and
is easier to train when deep (the first of the paper's three things).

Family: plain
Differs from the paper: the other two things are not here, fine-tuning the attention alone and the MLP stem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel, has_class_token
from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens


class Parallel(nn.Module):
    """x + the sum over branches of what each adds (equation 2).

    Every branch keeps its own norm, LayerScale and DropPath. One product for the projections of all of them
    takes as long as one for each, measured on a processor; so they stay apart.

    Args:
        branches: residual branches, all of which see the same input.
    """

    def __init__(self, branches: Iterable[Residual]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Add all branches to their common input."""
        return x + sum(branch.update(x) for branch in cast("Iterable[Residual]", self.branches))


class ParallelViT(IsotropicModel):
    """The Vision Transformer with parallel branches.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks, each of `num_parallel_branches` attentions and as many feed-forwards.
        heads: number of attention heads of a branch.
        mlp_dim: width inside a feed-forward.
        num_parallel_branches: branches side by side; the paper finds two best.
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        channels: channels of the input.
        dim_head: width of a head.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a branch at the last block, in [0, 1); rises linearly from 0. Each
            branch is dropped by itself.
        layer_scale: what LayerScale's factors start at; None for no LayerScale.
        act: activation of the feed-forward: "gelu", "gelu_tanh", "quickgelu", "relu" or "silu".
        norm_eps: epsilon of the LayerNorms.
        class_token: whether there is a class token; None means where `pool` is "cls".
        no_embed_class: whether the class token goes without a position, as in the authors' code.
        fc_norm: whether the final norm acts on the pooled vector instead of on the tokens.

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
        num_parallel_branches: int = 2,
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        class_token: bool | None = None,
        no_embed_class: bool = False,
        fc_norm: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        class_token = has_class_token(pool, class_token)
        if num_parallel_branches < 1:
            raise ValueError(f"there is at least 1 parallel branch, got {num_parallel_branches}")
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token and not no_embed_class))
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> Block:
            drop = drop_path_rate(drop_path, layer, depth)
            tail = partial(make_tail, dim, layer_scale=layer_scale, drop_path=drop)

            def attention() -> Attention:
                return Attention(
                    dim,
                    heads=heads,
                    dim_head=dim_head,
                    qkv_bias=qkv_bias,
                    dropout=dropout,
                    attend=partial(FusedAttention, attn_dropout),
                )

            branches = range(num_parallel_branches)
            return Block(
                Parallel(Residual(attention(), norm(), tail()) for _ in branches),
                Parallel(
                    Residual(FeedForward(dim, mlp_dim, dropout=dropout, act=act), norm(), tail())
                    for _ in branches
                ),
            )

        self.encoder = Encoder(block, depth=depth)
        self.norm = nn.Identity() if fc_norm else norm()
        self.fc_norm = norm() if fc_norm else nn.Identity()
        self.reset_classifier(num_classes)


ViT = ParallelViT
