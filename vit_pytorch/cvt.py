"""CvT: Introducing Convolutions to Vision Transformers.

H. Wu, B. Xiao, N. Codella, M. Liu, X. Dai, L. Yuan, L. Zhang 2021, arXiv:2103.15808.

A pyramid whose patches overlap: a strided convolution embeds the image, and the map of each stage for the
next one. Queries, keys and values are projected by depth-wise convolutions, those of keys and values strided,
so that no positions are needed. A class token joins in the last stage.

Family: pyramid
Differs from the paper: as in the authors' code, scores are divided by the root of the whole dimension instead
of a head's, and the feed-forward's activation is the quick approximation of GELU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import mul
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.attention import (
    BlockInputs,
    FusedAttention,
    Keys,
    Queries,
    head_dim,
    merge_heads,
    split_heads,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate, layer
from vit_pytorch.layers.conv import ConvNorm, OnMap
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import Option, OptionLike, read_option
from vit_pytorch.layers.patches import PrefixTokens, pair
from vit_pytorch.legacy import flat_options


@dataclass(frozen=True)
class Variant(Option):
    """Option: what all published models have alike.

    Args:
        class_token: stages that have a class token of their own; that of the last stage is classified, or the
            mean of the map if it has none.
        act: activation of the feed-forward (see `layers.blocks.ACTIVATIONS`); the authors' weights belong to
            "quickgelu", transformers computes "gelu" with them.

    Raises:
        ValueError: if `class_token` is not one for each stage.
    """

    kind: ClassVar[str] = "authors"
    class_token: Sequence[bool] = (False, False, True)
    qkv_bias: bool = True
    attn_dropout: float = 0.0
    norm_eps: float = 1e-5
    act: str = "quickgelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.class_token) != 3:
            raise ValueError(f"class_token must be one for each of 3 stages, got {tuple(self.class_token)}")


VARIANTS = {"authors": Variant(), "transformers": Variant(act="gelu")}


class CvT(HierarchicalModel):
    """The convolutional vision transformer in three stages.

    Images of any size are taken; `image_size` is only the customary one. Arguments that begin with `s1_`,
    `s2_` or `s3_` belong to that stage.

    Args:
        s1_emb_dim: dimension of the stage.
        s1_emb_kernel: side of a patch.
        s1_emb_stride: distance between neighbouring patches.
        s1_proj_kernel: side of the kernels that project queries, keys and values, odd.
        s1_kv_proj_stride: stride of those of keys and values.
        s1_heads: number of attention heads.
        s1_depth: number of blocks.
        s1_mlp_mult: hidden dimension of the feed-forward, as a multiple of the stage's.
        dropout: dropout on the embedded tokens and after the linear layers of the blocks, in [0, 1).
        image_size: the customary input, one number or (height, width) in pixels.
        drop_path: probability of dropping a residual branch at the last block, in [0, 1); rises
            linearly from 0 over the last stage; the others drop none, as in the paper's models.
        variant: "authors", "transformers", or a `Variant`: class tokens, biases, activation.
    """

    @flat_options
    def __init__(
        self,
        *,
        num_classes: int,
        s1_emb_dim: int = 64,
        s1_emb_kernel: int = 7,
        s1_emb_stride: int = 4,
        s1_proj_kernel: int = 3,
        s1_kv_proj_stride: int = 2,
        s1_heads: int = 1,
        s1_depth: int = 1,
        s1_mlp_mult: int = 4,
        s2_emb_dim: int = 192,
        s2_emb_kernel: int = 3,
        s2_emb_stride: int = 2,
        s2_proj_kernel: int = 3,
        s2_kv_proj_stride: int = 2,
        s2_heads: int = 3,
        s2_depth: int = 2,
        s2_mlp_mult: int = 4,
        s3_emb_dim: int = 384,
        s3_emb_kernel: int = 3,
        s3_emb_stride: int = 2,
        s3_proj_kernel: int = 3,
        s3_kv_proj_stride: int = 2,
        s3_heads: int = 6,
        s3_depth: int = 10,
        s3_mlp_mult: int = 4,
        dropout: float = 0.0,
        channels: int = 3,
        image_size: int | Sequence[int] = 224,
        drop_path: float = 0.0,
        variant: OptionLike = "authors",
    ) -> None:
        dims = (s1_emb_dim, s2_emb_dim, s3_emb_dim)
        kernels = (s1_emb_kernel, s2_emb_kernel, s3_emb_kernel)
        strides = (s1_emb_stride, s2_emb_stride, s3_emb_stride)
        proj_kernels = (s1_proj_kernel, s2_proj_kernel, s3_proj_kernel)
        kv_strides = (s1_kv_proj_stride, s2_kv_proj_stride, s3_kv_proj_stride)
        heads = (s1_heads, s2_heads, s3_heads)
        depths = (s1_depth, s2_depth, s3_depth)
        mlp_mults = (s1_mlp_mult, s2_mlp_mult, s3_mlp_mult)
        variant = read_option("variant", variant, VARIANTS)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=tuple(accumulate(strides, mul)),
            channels=channels,
            min_size=(least_size(kernels, strides),) * 2,
        )
        self.num_prefix_tokens = int(variant.class_token[-1])
        self.pool = "cls" if self.num_prefix_tokens else "mean"
        norm = partial(nn.LayerNorm, eps=variant.norm_eps)

        for i, dim in enumerate(dims):
            embed = ConvEmbed((channels, *dims)[i], dim, kernels[i], strides[i], norm_eps=variant.norm_eps)
            blocks = [
                Block(
                    dim,
                    ConvAttention(
                        dim,
                        heads=heads[i],
                        kernel_size=proj_kernels[i],
                        kv_stride=kv_strides[i],
                        qkv_bias=variant.qkv_bias,
                        dropout=dropout,
                        attn_dropout=variant.attn_dropout,
                    ),
                    FeedForward(dim, mlp_mults[i] * dim, dropout=dropout, act=variant.act),
                    norm=norm,
                    drop_path=drop_path_rate(drop_path, index, depths[i]) if i == 2 else 0.0,
                )
                for index in range(depths[i])
            ]
            # As small as what the linear layers, which start at 0.02, add to it.
            prefix = PrefixTokens(dim, class_token=variant.class_token[i], std=0.02)
            self.stages.append(ConvStage(embed, blocks, prefix=prefix, dropout=dropout))
        self.norm = norm(dims[-1])
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Return the last map after the final norm; with a class token, that and all cells in a row."""
        x = self.embed(images)
        for index, stage in enumerate(self.stages):
            tokens = stage(x)
            x, _ = self.split_prefix(tokens, index, images.shape[2:])
        tokens = self.norm(tokens)
        return tokens if self.num_prefix_tokens else tokens.permute(0, 3, 1, 2)

    def split_prefix(
        self, output: Tensor, stage: int, size: Sequence[int]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b k d"]]:
        """Return the map in the output of a stage, and its class token, if it has one."""
        prefix = len(self.stages[stage].prefix)  # type: ignore[arg-type]
        if not prefix:
            return super().split_prefix(output, stage, size)
        height, width = size
        for part in self.stages[: stage + 1]:
            height, width = part.down.extent(height), part.down.extent(width)  # type: ignore[union-attr, operator]
        return output[:, prefix:].unflatten(1, (height, width)), output[:, :prefix]


class ConvStage(nn.Module):
    """Embed the patches of a map, put the class token before them, if there is one, and apply blocks.

    Args:
        down: returns the map of this stage from that of the one before.
        prefix: the class token, or nothing.
    """

    def __init__(
        self, down: nn.Module, blocks: Iterable[nn.Module], *, prefix: PrefixTokens, dropout: float
    ) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)
        self.prefix = prefix
        self.dropout = nn.Dropout(dropout)

    @layer
    def forward(self, x: Float[Tensor, "b h w c"]) -> Tensor:
        """Return the map of this stage (b y x d), or with a class token the sequence (b 1+n d)."""
        cells = self.down(x)
        height, width = cells.shape[1:3]
        inputs = BlockInputs((height, width), len(self.prefix))
        tokens = self.dropout(self.prefix(cells.flatten(1, 2)))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return tokens if len(self.prefix) else tokens.unflatten(1, (height, width))


class ConvAttention(nn.Module):
    """Attention whose queries, keys and values come from depth-wise convolutions (section 3.2).

    A class token before the map passes through the linear layers only.

    Args:
        kernel_size: side of the convolutions' kernels, odd.
        kv_stride: stride of the convolutions of keys and values.

    Raises:
        ValueError: if the kernels are even, or `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        kernel_size: int = 3,
        kv_stride: int = 2,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"the kernel of a projection must be odd, got {kernel_size}")
        self.heads = heads
        self.dim_head = head_dim(dim, heads)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.kernel = FusedAttention(attn_dropout, scale=dim**-0.5)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        conv = partial(ConvNorm, dim, dim, kernel_size, groups=dim)
        self.convs = nn.ModuleList(OnMap(conv(stride=stride)) for stride in (1, kv_stride, kv_stride))

    def project(self, x: Float[Tensor, "b n d"], inputs: BlockInputs) -> tuple[Queries, Keys, Keys]:
        """Project the tokens of a grid to queries, and to keys and values, which are fewer."""
        prefix = inputs.num_prefix_tokens
        # After a class token the cells are not contiguous: one copy here instead of one per convolution.
        cells = x[:, prefix:].contiguous().unflatten(1, inputs.grid)
        tokens = [conv(cells).flatten(1, 2) for conv in self.convs]
        if prefix:
            tokens = [torch.cat([x[:, :prefix], part], dim=1) for part in tokens]
        q, k, v = self.to_q(tokens[0]), self.to_k(tokens[1]), self.to_v(tokens[2])
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs) -> Float[Tensor, "b n d"]:
        """Attend from each token to the convolved cells of the grid, and to the class token before them."""
        mixed = self.kernel(*self.project(x, inputs))
        return self.dropout(self.to_out(merge_heads(mixed)))


class ConvEmbed(nn.Module):
    """Embed overlapping patches of a map by a strided convolution and LayerNorm (section 3.1).

    Args:
        kernel: side of a patch.
        stride: distance between neighbouring patches.
    """

    def __init__(self, dim: int, out_dim: int, kernel: int, stride: int, *, norm_eps: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.proj = OnMap(nn.Conv2d(dim, out_dim, kernel, stride, embed_padding(kernel, stride)))
        self.norm = nn.LayerNorm(out_dim, eps=norm_eps)

    def extent(self, extent: int) -> int:
        """Return the height or width of the embedded map from that of the input."""
        return (extent + 2 * embed_padding(self.kernel, self.stride) - self.kernel) // self.stride + 1

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Return the map of the next stage."""
        return self.norm(self.proj(x))


def embed_padding(kernel: int, stride: int) -> int:
    """Return the padding with which a convolution makes n cells of n strides: 2 and 1 in the paper."""
    return max(kernel - stride + 1, 0) // 2


def least_size(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Return the least extent of an image of which each of these convolutions in turn leaves a cell."""
    least = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        least = max((least - 1) * stride + kernel - 2 * embed_padding(kernel, stride), 1)
    return least
