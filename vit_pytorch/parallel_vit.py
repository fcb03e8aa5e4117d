"""Three things everyone should know about Vision Transformers.

H. Touvron, M. Cord, A. El-Nouby, J. Verbeek, H. Jégou 2022, arXiv:2203.09795.

Puts residual branches side by side: a block adds several attentions of the same tokens at once, then
several feed-forwards. Half the depth with two branches has the parameters of the sequential model, and
is easier to train when deep (the first of the paper's three things).

Family: plain
Differs from the paper: the other two things are not here, fine-tuning the attention alone and the MLP stem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention
from vit_pytorch.layers.blocks import DropPath, FeedForward, drop_path_rate, layer, make_scale
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions


class ParallelViT(IsotropicModel):
    """The Vision Transformer with parallel branches.

    Args:
        depth: number of blocks, each of `num_parallel_branches` attentions and as many feed-forwards.
        num_parallel_branches: branches side by side; the paper finds two best.
        drop_path: probability of dropping a branch at the last block, in [0, 1); rises linearly from 0. Each
            branch is dropped on its own.
        no_embed_class: the class token has no position, as in the authors' code.
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
        class_token: bool = False,
        no_embed_class: bool = False,
        fc_norm: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        class_token = class_token or pool == "cls"
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def attention() -> Attention:
            return Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                dropout=dropout,
                kernel=partial(FusedAttention, attn_dropout),
            )

        def branches(index: int, build: Callable[[], nn.Module]) -> list[Branch]:
            make = partial(Branch, dim, norm=norm, layer_scale=layer_scale)
            rate = drop_path_rate(drop_path, index, depth)
            return [make(build(), drop_path=rate) for _ in range(num_parallel_branches)]

        feedforward = partial(FeedForward, dim, mlp_dim, dropout=dropout, act=act)
        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token and not no_embed_class))
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            ParallelBlock(branches(index, attention), branches(index, feedforward)) for index in range(depth)
        )
        self.norm = nn.Identity() if fc_norm else norm(dim)
        self.fc_norm = norm(dim) if fc_norm else nn.Identity()
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class ParallelBlock(nn.Module):
    """A block that adds several attentions of its input at once, then several feed-forwards.

    One product for the projections of all branches takes as long as one for each, measured on a processor; so
    they stay separate.

    Args:
        attention: branches that mix tokens.
        feedforward: branches that transform each token on its own.
    """

    def __init__(self, attention: Iterable[Branch], feedforward: Iterable[Branch]) -> None:
        super().__init__()
        self.attention = nn.ModuleList(attention)
        self.feedforward = nn.ModuleList(feedforward)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens (equation 2).

        Args:
            inputs: not used: nothing acts inside attention.
        """
        x = x + sum(branch(x) for branch in self.attention)
        return x + sum(branch(x) for branch in self.feedforward)


class Branch(nn.Module):
    """What one branch adds to the input of its block; each has its own norm, LayerScale and DropPath.

    Args:
        branch: attention or feed-forward.
    """

    def __init__(
        self,
        dim: int,
        branch: nn.Module,
        *,
        norm: Callable[[int], nn.Module],
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.branch = branch
        self.scale = make_scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return what is added to the tokens."""
        return self.drop_path(self.scale(self.branch(self.norm(x))))


ViT = ParallelViT
