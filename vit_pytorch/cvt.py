"""CvT: Introducing Convolutions to Vision Transformers.

H. Wu, B. Xiao, N. Codella, M. Liu, X. Dai, L. Yuan, L. Zhang 2021, arXiv:2103.15808.

A pyramid whose patches overlap: a strided convolution embeds the image, and the map of every stage for the
next. Queries, keys and values are projected by depth-wise convolutions, those of keys and values strided,
so that no positions are needed. A class token joins in the last stage.

Family: pyramid
Differs from the paper: as in the authors' code, scores are divided by the root of the whole width instead
of a head's, and the feed-forward's activation is the quick approximation of GELU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage, State
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.conv import ConvNorm, OnMap
from vit_pytorch.layers_v01.init import init_linears
from vit_pytorch.layers_v01.linear import linear
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.tokens import PrefixTokens


class ConvAttention(Attention):
    """Attention whose queries, keys and values come from depth-wise convolutions (section 3.2).

    A class token in front of the map is projected by the linear layers alone.

    Args:
        dim: width of a token.
        heads: number of heads; they share the width.
        kernel: side of the convolutions' kernels, odd.
        kv_stride: stride of the convolutions of keys and values.
        qkv_bias: whether queries, keys and values have biases.
        dropout: dropout on the output.
        attn_dropout: dropout on the attention weights.
    """

    # see `ClassAttention`
    reads_weights = ("to_qkv",)

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        kernel: int = 3,
        kv_stride: int = 2,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"the kernel of a projection is odd, got {kernel}")
        super().__init__(
            dim,
            heads=heads,
            dim_head=width_of_head(dim, heads),
            qkv_bias=qkv_bias,
            dropout=dropout,
            attend=partial(FusedAttention, attn_dropout, scale=dim**-0.5),
        )
        conv = partial(ConvNorm, dim, dim, kernel, groups=dim)
        self.convs = nn.ModuleList(OnMap(conv(stride=stride)) for stride in (1, kv_stride, kv_stride))

    def project(
        self, x: Float[Tensor, "b n d"], *grid: int
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h m e"], Float[Tensor, "b h m e"]]:
        """Project the tokens of a grid to queries, and to keys and values, which are fewer."""
        prefix, cells = x.tensor_split((x.shape[1] - prod(grid),), dim=1)
        cells = cells.unflatten(1, grid)
        weights = self.to_qkv.weight.chunk(3)
        biases = (None, None, None) if self.to_qkv.bias is None else self.to_qkv.bias.chunk(3)

        def part(index: int) -> Float[Tensor, "b h m e"]:
            tokens = self.convs[index](cells).flatten(1, 2)
            if prefix.shape[1]:
                tokens = torch.cat([prefix, tokens], dim=1)
            tokens = linear(tokens, weights[index], biases[index])
            return tokens.unflatten(2, (self.heads, self.dim_head)).transpose(1, 2)

        return part(0), part(1), part(2)

    def forward(self, x: Float[Tensor, "b n d"], *grid: int) -> Float[Tensor, "b n d"]:
        """Let every token attend to the convolved cells of a grid, and to the class token in front."""
        return self.merge(self.attend(*self.project(x, *grid)))


class ConvBlock(Block):
    """A block whose attention is told the grid of the tokens.

    Args:
        attention: mixes tokens.
        feedforward: transforms every token by itself.
    """

    def forward(self, x: Float[Tensor, "b n d"], *grid: int) -> Float[Tensor, "b n d"]:
        """Apply both residual branches to the tokens of a grid, perhaps behind a class token."""
        return self.feedforward(self.attention(x, *grid))


class ConvEmbed(nn.Module):
    """Embed overlapping patches of a map by a strided convolution and LayerNorm (section 3.1).

    Args:
        dim: width of a cell that enters.
        out_dim: width of a cell that leaves.
        kernel: side of a patch.
        stride: distance of neighbouring patches.
        norm_eps: epsilon of the LayerNorm.
    """

    def __init__(self, dim: int, out_dim: int, kernel: int, stride: int, *, norm_eps: float) -> None:
        super().__init__()
        self.proj = OnMap(nn.Conv2d(dim, out_dim, kernel, stride, embed_padding(kernel, stride)))
        self.norm = nn.LayerNorm(out_dim, eps=norm_eps)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Give the map of the next stage."""
        return self.norm(self.proj(x))


def embed_padding(kernel: int, stride: int) -> int:
    """Give the padding with which a convolution makes n cells of n strides: 2 and 1 in the paper's models."""
    return max(kernel - stride + 1, 0) // 2


def least_size(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Give the least extent of an image of which each of these convolutions in turn leaves a cell."""
    least = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        least = max((least - 1) * stride + kernel - 2 * embed_padding(kernel, stride), 1)
    return least


class ConvStage(Stage):
    """A stage whose tokens are a sequence, perhaps with a class token in front, which comes new.

    Args:
        down: gives the map of this stage from that of the one before.
        encoder: the blocks, which take the grid, too.
        prefix: the class token, where there is one.
        dropout: dropout on the embedded tokens.
    """

    def __init__(
        self, down: nn.Module, encoder: Encoder, *, prefix: PrefixTokens | None, dropout: float
    ) -> None:
        super().__init__(down, encoder)
        self.prefix = prefix
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: State) -> State:
        """Give the map behind the stage, and the class token."""
        cells: Tensor = self.down(x[0] if isinstance(x, tuple) else x)
        grid = tuple(cells.shape[1:3])
        tokens = cells.flatten(1, 2)
        if self.prefix is None:
            tokens = self.encoder(self.dropout(tokens), *grid)
            return tokens.unflatten(1, grid)
        tokens = torch.cat([self.prefix().expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.encoder(self.dropout(tokens), *grid)
        return tokens[:, 1:].unflatten(1, grid), tokens[:, :1]


class CvT(HierarchicalModel):
    """The convolutional vision transformer in three stages.

    Images of any size are taken, `image_size` being only the customary one.

    Args:
        num_classes: number of logits; 0 gives the pooled embedding.
        s1_emb_dim: width of a cell in the first stage.
        s1_emb_kernel: side of a patch.
        s1_emb_stride: distance of neighbouring patches.
        s1_proj_kernel: side of the kernels that project queries, keys and values, odd.
        s1_kv_proj_stride: stride of those of keys and values.
        s1_heads: number of attention heads.
        s1_depth: number of blocks.
        s1_mlp_mult: width inside the feed-forward, as a multiple of the cell's.
        s2_emb_dim: the same of the second stage, and so on.
        s2_emb_kernel: see above.
        s2_emb_stride: see above.
        s2_proj_kernel: see above.
        s2_kv_proj_stride: see above.
        s2_heads: see above.
        s2_depth: see above.
        s2_mlp_mult: see above.
        s3_emb_dim: the same of the third stage, and so on.
        s3_emb_kernel: see above.
        s3_emb_stride: see above.
        s3_proj_kernel: see above.
        s3_kv_proj_stride: see above.
        s3_heads: see above.
        s3_depth: see above.
        s3_mlp_mult: see above.
        dropout: dropout on the embedded tokens and after the linear layers of the blocks, in [0, 1).
        channels: channels of the input.
        image_size: the customary input, one number or (height, width) in pixels.
        class_token: which stages have a class token of their own; that of the last stage is classified, or
            the mean of the map where it has none.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0
            over the last stage, and the others drop none, as in the paper's models.
        norm_eps: epsilon of the LayerNorms.
        act: name of the feed-forward's activation (see `layers.blocks.ACTIVATIONS`); the authors' weights
            belong to "quickgelu", transformers computes "gelu" with them.

    Raises:
        ValueError: where sizes do not divide, or an option is none of those above.
    """

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
        class_token: Sequence[bool] = (False, False, True),
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        act: str = "quickgelu",
    ) -> None:
        dims = (s1_emb_dim, s2_emb_dim, s3_emb_dim)
        kernels = (s1_emb_kernel, s2_emb_kernel, s3_emb_kernel)
        steps = (s1_emb_stride, s2_emb_stride, s3_emb_stride)
        proj_kernels = (s1_proj_kernel, s2_proj_kernel, s3_proj_kernel)
        kv_strides = (s1_kv_proj_stride, s2_kv_proj_stride, s3_kv_proj_stride)
        heads = (s1_heads, s2_heads, s3_heads)
        depths = (s1_depth, s2_depth, s3_depth)
        mlp_mults = (s1_mlp_mult, s2_mlp_mult, s3_mlp_mult)
        if len(class_token) != len(dims):
            raise ValueError(f"class_token is told for each of {len(dims)} stages, got {tuple(class_token)}")
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=(steps[0], steps[0] * steps[1], steps[0] * steps[1] * steps[2]),
            channels=channels,
            min_size=(least_size(kernels, steps),) * 2,
        )
        self.num_prefix_tokens = int(class_token[-1])

        def block(stage: int, layer: int) -> ConvBlock:
            width = dims[stage]
            attention = ConvAttention(
                width,
                heads=heads[stage],
                kernel=proj_kernels[stage],
                kv_stride=kv_strides[stage],
                qkv_bias=qkv_bias,
                dropout=dropout,
                attn_dropout=attn_dropout,
            )
            feedforward = FeedForward(width, mlp_mults[stage] * width, dropout=dropout, act=act)
            norm = partial(nn.LayerNorm, width, eps=norm_eps)
            last = stage == len(dims) - 1
            tail = partial(
                make_tail, width, drop_path=drop_path_rate(drop_path, layer, depths[stage]) if last else 0.0
            )
            return ConvBlock(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))

        self.stages = nn.ModuleList(
            ConvStage(
                ConvEmbed((channels, *dims)[i], dims[i], kernels[i], steps[i], norm_eps=norm_eps),
                Encoder(partial(block, i), depth=depths[i]),
                prefix=PrefixTokens(dims[i]) if class_token[i] else None,
                dropout=dropout,
            )
            for i in range(len(dims))
        )
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "cls" (timm's "token") where the last stage has a class token, "mean" ("avg")
                otherwise; the only pooling.
        """
        known = ("cls", "token") if self.num_prefix_tokens else ("mean", "avg")
        if global_pool is not None and global_pool not in known:
            raise ValueError(f"this CvT pools by {known[0]!r}; pooling cannot be {global_pool!r}")
        super().reset_classifier(num_classes)
