"""Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet.

L. Yuan, Y. Chen, T. Wang, W. Yu, Y. Shi, Z. Jiang, F. Tay, J. Feng, S. Yan 2021, arXiv:2101.11986.

Embeds overlapping windows instead of patches: unfolds the image, lets narrow tokens attend, puts them
back on the map, unfolds that, and so on; then runs a deep and narrow plain transformer.

Family: plain
Differs from the paper: nothing; where the paper leaves it open, the official code decides (no norm after
a token block, whose residual adds the values; scores scaled by the dimension of the unfolded window).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import Attention, FusedAttention, Keys, Mixed, Queries, Values
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate, fx_leaf
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import SinCosPositions

TokensType = Literal["transformer", "performer"]
Pool = Literal["cls", "mean"]


class T2TViT(IsotropicModel):
    """The Tokens-to-Token Vision Transformer.

    Args:
        t2t_layers: (kernel size, stride) of each soft split; the product of the strides divides the
            image size.
        token_dim: token dimension between two soft splits.
        tokens_type: how these tokens attend: "transformer" by softmax, "performer" by random features,
            in time linear in their number.
        kernel_ratio: random features of the performer, by `token_dim`.
        token_dropout: dropout on both branches of the token blocks, in [0, 1).
        qk_scale: factor on the backbone's attention scores; default 1 / sqrt(`dim_head`). The authors'
            published weights need 1 / sqrt(`dim`).
        num_registers: number of register tokens, which have no position.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_size: int | Sequence[int],
        depth: int,
        heads: int,
        mlp_dim: int,
        num_classes: int,
        t2t_layers: Sequence[Sequence[int]] = ((7, 4), (3, 2), (3, 2)),
        channels: int = 3,
        token_dim: int = 64,
        tokens_type: TokensType = "transformer",
        kernel_ratio: float = 0.5,
        token_dropout: float = 0.0,
        pool: Pool = "cls",
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        dim_head: int = 64,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        norm_eps: float = 1e-5,
        num_registers: int = 0,
    ) -> None:
        if not t2t_layers:
            raise ValueError("t2t_layers must have at least one (kernel size, stride), got none")
        splits = [SoftSplit(kernel, stride) for kernel, stride in t2t_layers]
        stride = prod(split.stride for split in splits)
        grid = PatchGrid(pair(image_size), (stride, stride))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("tokens_type", tokens_type, ("transformer", "performer"))

        def token_block(width: int) -> TokenBlock:
            kernel: Callable[[], nn.Module] = partial(FusedAttention, scale=width**-0.5)
            if tokens_type == "performer":
                kernel = partial(RandomFeatures, token_dim, int(token_dim * kernel_ratio))
            return TokenBlock(
                width,
                token_dim,
                kernel=kernel,
                qkv_bias=tokens_type == "performer",
                dropout=token_dropout,
                norm_eps=norm_eps,
            )

        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, attn_dropout, qk_scale)
        self.patch_embed = TokensToToken(splits, channels, dim, token_dim=token_dim, block=token_block)
        self.prefix = PrefixTokens(dim, registers=num_registers)
        self.positions = SinCosPositions(grid.shape, dim, prefix=1, sequence=True)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                Attention(
                    dim, heads=heads, dim_head=dim_head, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel
                ),
                FeedForward(dim, mlp_dim, dropout=dropout),
                norm=norm,
                drop_path=drop_path_rate(drop_path, index, depth),
            )
            for index in range(depth)
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, prefix tokens first (section 3.2)."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


@dataclass(frozen=True)
class SoftSplit:
    """Overlapping windows of a map, a token each (section 3.1).

    Zeros pad the map so that there are as many windows as its extent divided by the stride.

    Args:
        kernel: extent of a window along both axes, at least the stride.
        stride: distance of windows.

    Raises:
        ValueError: if there cannot be that many windows.
    """

    kernel: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.kernel or (self.stride == 1 and self.kernel % 2 == 0):
            raise ValueError(
                "the kernel of a soft split must be at least its stride, and odd for a stride of 1; "
                f"got kernel {self.kernel} and stride {self.stride}"
            )

    @property
    def padding(self) -> int:
        """Zeros on every side of the map."""
        return (self.kernel - self.stride + 1) // 2

    def unfold(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x p"]:
        """Return the map of windows, each flattened in the order (channel, row, column)."""
        x = F.pad(x, (0, 0) + 4 * (self.padding,))
        return x.unfold(1, self.kernel, self.stride).unfold(2, self.kernel, self.stride).flatten(3)


class TokensToToken(nn.Module):
    """Embed images by soft splits with a token block between any two (section 3.1).

    The last split and the projection after it are stored as the convolution that they equal.

    Args:
        splits: the soft splits.
        token_dim: token dimension between two splits.
        block: builds the token block for windows of a dimension.
    """

    def __init__(
        self,
        splits: Sequence[SoftSplit],
        channels: int,
        dim: int,
        *,
        token_dim: int,
        block: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        *before, last = splits
        widths = [channels, *(token_dim for _ in before)]
        self.splits = tuple(before)
        self.blocks = nn.ModuleList(
            block(width * split.kernel**2) for width, split in zip(widths, before, strict=False)
        )
        self.proj = nn.Conv2d(widths[-1], dim, last.kernel, last.stride, last.padding)
        nn.init.trunc_normal_(self.proj.weight, std=(widths[-1] * last.kernel**2) ** -0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the grid."""
        x = images.permute(0, 2, 3, 1)
        for split, block in zip(self.splits, self.blocks, strict=True):
            windows = split.unfold(x)
            height, width = windows.shape[1:3]
            x = block(windows.flatten(1, 2)).unflatten(1, (height, width))
        # Contiguous: what reads the input of a convolution by strides, as Opacus does, expects that.
        return self.proj(x.permute(0, 3, 1, 2).contiguous()).flatten(2).transpose(1, 2)


class TokenBlock(nn.Module):
    """A transformer block of one head that narrows tokens; its first residual adds the values.

    Args:
        token_dim: dimension of the tokens that leave.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        *,
        kernel: Callable[[], nn.Module],
        qkv_bias: bool,
        dropout: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.to_qkv = nn.Linear(dim, 3 * token_dim, bias=qkv_bias)
        self.kernel = kernel()
        self.to_out = nn.Linear(token_dim, token_dim)
        self.norm2 = nn.LayerNorm(token_dim, eps=norm_eps)
        self.feedforward = FeedForward(token_dim, token_dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_qkv, parts=3)
        init_xavier(self.to_out)

    def forward(self, x: Float[Tensor, "b n p"]) -> Float[Tensor, "b n d"]:
        """Mix and narrow the tokens."""
        q, k, v = self.to_qkv(self.norm1(x)).unsqueeze(1).chunk(3, dim=-1)
        x = (v + self.dropout(self.to_out(self.kernel(q, k, v)))).squeeze(1)
        return x + self.dropout(self.feedforward(self.norm2(x)))


class RandomFeatures(nn.Module):
    """Attention by positive random features of the softmax kernel (Performer, arXiv:2009.14794).

    With f(x) = exp(w x - x x / 2) over m orthogonal directions w of length sqrt(m), the mean of f(q) f(k)
    stands for exp(q k). Scores are not scaled. Time and memory are linear in the number of tokens.

    Args:
        dim: dimension of queries and keys.
        features: number m of directions, drawn once.
        eps: added to the sum of the weights.
    """

    directions: Tensor

    def __init__(self, dim: int, features: int, eps: float = 1e-8) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"the performer needs at least 1 random feature, got {features}")
        self.features = features
        self.eps = eps
        directions = nn.init.orthogonal_(torch.empty(features, dim)) * features**0.5
        self.register_buffer("directions", directions)

    def forward(self, q: Queries, k: Keys, v: Values) -> Mixed:
        """Attend from each query to all keys."""
        q, k = random_features(q, self.directions), random_features(k, self.directions)
        total = q @ k.sum(dim=-2, keepdim=True).mT
        # The mean over the features is a factor of both sums, which leaves it at eps.
        mixed = (q @ (k.mT @ v.to(k.dtype))) / (total + self.features * self.eps)
        return mixed.to(v.dtype)


@fx_leaf
def random_features(x: Queries, directions: Float[Tensor, "r e"]) -> Float[Tensor, "b h n r"]:
    """Compute exp(w x - x x / 2) for each direction w, in single precision at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x @ directions.to(x.dtype).mT - x.square().sum(dim=-1, keepdim=True) / 2).exp()
