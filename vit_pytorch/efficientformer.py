"""EfficientFormer: Vision Transformers at MobileNet Speed.

Y. Li, G. Yuan, Y. Wen, J. Hu, G. Evangelidis, S. Tulyakov, Y. Wang, J. Ren 2022, arXiv:2206.01191.

A pyramid of operations that are fast on a phone. Nearly all blocks are four-dimensional: they mix cells by
the mean of their neighbours, and have batch norm, which folds into the convolutions next to it. Only the last
blocks of the last stage are three-dimensional: they attend, with LayerNorm and with a learned bias for each
absolute offset of two cells, as in LeViT.

Family: pyramid
Differs from the paper: as in the authors' code, the cell itself is taken away from the mean of its
neighbours, instead of being added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, FusedAttention, merge_heads, split_heads
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates
from vit_pytorch.layers.conv import ConvNorm, FeedForwardNorm, MeanOfNeighbours, OnMap, quartering_stem
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import DistanceBias
from vit_pytorch.layers.tokens import OneTokenHead, make_classifier

# Pixels from one cell of the first stage to the next.
STRIDE = 4


class EfficientFormer(HierarchicalModel):
    """The pyramid of pooling and, at its end, attention.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; any size up to it is taken.
        dim: channels of each stage; even in the first.
        depth: number of blocks of each stage.
        attention_depth: number of blocks with attention, the last ones of the last stage.
        heads: number of attention heads.
        dim_key: head dimension of queries and keys.
        dim_value: head dimension of values; default 4 * dim_key.
        mlp_ratio: hidden dimension of the feed-forward, as a multiple of `dim`.
        pool_size: side of the neighbourhood whose mean is taken, in cells, odd.
        distilled: have two classifiers, the second of which is trained on a teacher's outputs; the logits are
            the mean of both, also in training (see `OneTokenHead.separate`).

    Raises:
        ValueError: if the numbers of stages differ, more blocks attend than the last stage has, the first
            stage has an odd number of channels, or the neighbourhood has an even side.
    """

    # All of a stage learns at one rate, as in timm.
    stage_is_layer = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        dim: Sequence[int],
        depth: Sequence[int],
        attention_depth: int = 1,
        heads: int = 8,
        dim_key: int = 32,
        dim_value: int | None = None,
        mlp_ratio: float = 4.0,
        pool_size: int = 3,
        channels: int = 3,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-5,
        distilled: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        if len(dim) != len(depth):
            raise ValueError(f"dim and depth must be one for each stage, got {tuple(dim)} and {tuple(depth)}")
        if attention_depth > depth[-1]:
            raise ValueError(
                f"attention_depth must be at most the blocks of the last stage, got {attention_depth} "
                f"and {depth[-1]}"
            )
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=[STRIDE * 2**stage for stage in range(len(dim))],
            channels=channels,
            any_size=False,
        )
        self.distilled = distilled
        norm = partial(nn.LayerNorm, eps=norm_eps)
        grid = [-(-extent // self.strides[-1]) for extent in self.image_size]

        def pooling(width: int, rate: float) -> Block:
            feedforward = FeedForwardNorm(
                width, int(width * mlp_ratio), act="gelu", dropout=dropout, bias=True
            )
            mixer = MeanOfNeighbours(pool_size)
            return Block(width, mixer, feedforward, norm=nn.Identity, layer_scale=layer_scale, drop_path=rate)

        def attending(width: int, rate: float) -> Block:
            attention = BiasedAttention(
                width,
                grid=grid,
                heads=heads,
                widths=(dim_key, dim_value or 4 * dim_key),
                kernel=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(width, int(width * mlp_ratio), dropout=dropout)
            return Block(width, attention, feedforward, norm=norm, layer_scale=layer_scale, drop_path=rate)

        self.stem = quartering_stem(channels, dim[0], act="relu")
        downs = (OnMap(ConvNorm(*widths, stride=2, bias=True)) for widths in pairwise(dim))
        # How many of the last blocks of each stage attend.
        ends = [0] * (len(dim) - 1) + [attention_depth]
        rates = drop_path_rates(drop_path, depth)
        for width, down, end, drops in zip(dim, (nn.Identity(), *downs), ends, rates, strict=True):
            start = len(drops) - end
            blocks = [pooling(width, rate) for rate in drops[:start]]
            self.stages.append(Stage(down, blocks + [attending(width, rate) for rate in drops[start:]]))
        self.norm = norm(dim[-1])
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, or two if the model is distilled; the identity for no classes."""
        kind = OneTokenHead if self.distilled else nn.Linear
        return make_classifier(self.classifier_dim, num_classes, like=next(self.parameters()), kind=kind)


class BiasedAttention(nn.Module):
    """Attention over a map, with a learned bias for each absolute offset (section 4.1, equation 7).

    Args:
        grid: extents of the largest map.
        widths: head dimension of keys and of values.
    """

    def __init__(
        self,
        dim: int,
        *,
        grid: Sequence[int],
        heads: int,
        widths: tuple[int, int],
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        key, value = widths
        self.heads = heads
        self.widths = (key, key, value)
        self.to_qkv = nn.Linear(dim, heads * sum(self.widths))
        self.bias = DistanceBias(grid, heads)
        self.kernel = kernel()
        self.to_out = nn.Linear(heads * value, dim)
        init_xavier(self.to_qkv, parts=[heads * width for width in self.widths])
        init_xavier(self.to_out)

    def project(self, x: Float[Tensor, "b h w d"]) -> list[Float[Tensor, "b k n e"]]:
        """Project cells to queries, keys and values: views of one product, split into heads."""
        parts = self.to_qkv(x).flatten(1, 2).split([self.heads * width for width in self.widths], dim=2)
        # By index: FX follows no iteration whose length it does not know.
        return [split_heads(parts[index], self.heads) for index in range(len(self.widths))]

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell to all cells."""
        height, width = x.shape[1:3]
        mixed = self.kernel(*self.project(x), self.bias(height, width))
        return self.to_out(merge_heads(mixed)).unflatten(1, (-1, width))
