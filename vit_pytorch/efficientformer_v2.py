"""Rethinking Vision Transformers for MobileNet Size and Speed.

Y. Li, J. Hu, Y. Wen, G. Evangelidis, K. Salahi, Y. Wang, S. Tulyakov, J. Ren 2022, arXiv:2212.08059.

EfficientFormer, searched again for size and speed at once. A depth-wise convolution within the feed-forward
mixes cells in place of pooling, so that most blocks are feed-forwards only. The last blocks of the last two
stages attend: heads talk to each other, and values are convolved, too; on the larger of the two maps,
attention runs at half the resolution. The last stage is entered by a convolution and by attention, side by
side.

Family: pyramid
Differs from the paper: nothing. Attention at half the resolution is stretched back to the size of its map,
which may be odd; timm's program doubles it, and takes even sizes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.efficientformer import STRIDE
from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    BlockInputs,
    FusedAttention,
    TalkingHeads,
    merge_heads,
    split_heads,
)
from vit_pytorch.layers.blocks import Block, DropPath, drop_path_rates, layer, make_scale
from vit_pytorch.layers.conv import (
    ConvNorm,
    FeedForwardNorm,
    LinearNorm,
    MapBatchNorm,
    OnMap,
    quartering_stem,
    stretch,
)
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import DistanceBias
from vit_pytorch.layers.tokens import OneTokenHead, make_classifier

Ratios = float | Sequence[float | Sequence[float]]


class EfficientFormerV2(HierarchicalModel):
    """The pyramid of feed-forwards with convolutions and, in its last two stages, attention.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; any size up to it is taken.
        dim: channels of each stage; even in the first.
        depth: number of blocks of each stage, of which there are at least two.
        attention_depth: number of blocks with attention, the last ones of each of the last two stages.
        heads: number of attention heads.
        dim_key: head dimension of queries and keys.
        down_dim_key: that of the attention that enters the last stage.
        value_ratio: head dimension of values, as a multiple of that of keys.
        mlp_ratio: hidden dimension of the feed-forward, as a multiple of `dim`: one number, or for each stage
            one or one for each block.
        norm_eps: epsilon of the norms outside attention, as in timm; inside it is 1e-5.
        distilled: have two classifiers, the second of which is trained on a teacher's outputs; the logits are
            the mean of both, also in training (see `OneTokenHead.separate`).

    Raises:
        ValueError: if the numbers of stages or blocks differ, more blocks attend than a stage has, or the
            first stage has an odd number of channels.
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
        attention_depth: int = 2,
        heads: int = 8,
        dim_key: int = 32,
        down_dim_key: int = 16,
        value_ratio: int = 4,
        mlp_ratio: Ratios = 4.0,
        channels: int = 3,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-5,
        distilled: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        count = len(dim)
        if count != len(depth) or count < 2:
            raise ValueError(
                "dim and depth must be one for each of at least two stages, got "
                f"{tuple(dim)} and {tuple(depth)}"
            )
        if attention_depth > min(depth[-2:]):
            raise ValueError(
                "attention_depth must be at most the blocks of each of the last two stages, got "
                f"{attention_depth} and {tuple(depth[-2:])}"
            )
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=[STRIDE * 2**stage for stage in range(count)],
            channels=channels,
            any_size=False,
        )
        self.distilled = distilled
        last = count - 1
        talking = partial(TalkingHeads, heads, attn_dropout)

        def block(stage: int, ratio: float, rate: float, *, attends: bool) -> nn.Module:
            width = dim[stage]
            feedforward = FeedForwardConv(width, int(width * ratio), act="gelu", dropout=dropout, bias=True)
            if not attends:
                return FeedForwardBlock(width, feedforward, layer_scale=layer_scale, drop_path=rate)
            kind = ConvolvedAttention if stage == last else HalvedAttention
            attention = kind(
                width,
                width,
                grid=self.grid(stage),
                heads=heads,
                widths=(dim_key, value_ratio * dim_key),
                kernel=talking,
            )
            return Block(
                width, attention, feedforward, norm=nn.Identity, layer_scale=layer_scale, drop_path=rate
            )

        def down(stage: int) -> nn.Module:
            if stage == 0:
                return nn.Identity()
            widths = dim[stage - 1], dim[stage]
            if stage < last:
                return Down(*widths)
            attention = ConvolvedAttention(
                *widths,
                grid=self.grid(stage - 1),
                heads=heads,
                widths=(down_dim_key, value_ratio * down_dim_key),
                stride=2,
                kernel=partial(FusedAttention, attn_dropout),
            )
            return Down(*widths, attention)

        self.stem = quartering_stem(channels, dim[0], act="gelu")
        ratios = ratios_of_blocks(mlp_ratio, depth)
        rates = drop_path_rates(drop_path, depth)
        for stage in range(count):
            start = depth[stage] - (attention_depth if stage >= last - 1 else 0)
            blocks = [
                block(stage, *settings, attends=index >= start)
                for index, settings in enumerate(zip(ratios[stage], rates[stage], strict=True))
            ]
            self.stages.append(Stage(down(stage), blocks))
        self.norm = MapBatchNorm(dim[-1])
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and "attention" not in name:
                module.eps = norm_eps
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def grid(self, stage: int) -> tuple[int, ...]:
        """Return the extents of a stage's map for the largest input."""
        return tuple(-(-extent // self.strides[stage]) for extent in self.image_size)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, or two if the model is distilled; the identity for no classes."""
        kind = OneTokenHead if self.distilled else nn.Linear
        return make_classifier(self.classifier_dim, num_classes, like=next(self.parameters()), kind=kind)


def ratios_of_blocks(mlp_ratio: Ratios, depth: Sequence[int]) -> list[Sequence[float]]:
    """Return the hidden dimension of each block of each stage, as a multiple.

    Raises:
        ValueError: if there are other numbers of them than of stages, or of blocks.
    """
    stages = [mlp_ratio] * len(depth) if isinstance(mlp_ratio, (int, float)) else mlp_ratio
    found = [
        [ratio] * blocks if isinstance(ratio, (int, float)) else ratio
        for ratio, blocks in zip(stages, depth, strict=False)
    ]
    if len(stages) != len(depth) or [len(ratios) for ratios in found] != list(depth):
        raise ValueError(
            "mlp_ratio must be one number, or for each stage one or one for each block, got "
            f"{mlp_ratio} for {tuple(depth)} blocks"
        )
    return found


class FeedForwardConv(FeedForwardNorm):
    """A feed-forward with a depth-wise convolution of the hidden channels (section 3.1)."""

    def __init__(
        self, dim: int, hidden_dim: int, *, act: str, dropout: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__(dim, hidden_dim, act=act, dropout=dropout, bias=bias)
        self.conv = OnMap(ConvNorm(hidden_dim, hidden_dim, groups=hidden_dim, act=act, bias=bias))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform each cell with those around it."""
        hidden = self.conv(self.act(self.to_hidden(x)))
        return self.dropout(self.to_out(self.dropout(hidden)))


class FeedForwardBlock(nn.Module):
    """A residual block of a feed-forward only."""

    def __init__(
        self, dim: int, feedforward: nn.Module, *, layer_scale: float | None, drop_path: float
    ) -> None:
        super().__init__()
        self.feedforward = feedforward
        self.scale2 = make_scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform a map."""
        return x + self.drop_path(self.scale2(self.feedforward(x)))


class ConvolvedAttention(nn.Module):
    """Attention over a map whose values are convolved, too (section 3.3), or to a smaller map (3.5).

    Scores have a learned bias for each absolute offset, and every projection has batch norm.

    Args:
        grid: extents of the largest map.
        widths: head dimension of keys and of values.
        stride: distance between neighbouring queries, in cells; 2 quarters the map.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        grid: Sequence[int],
        heads: int,
        widths: tuple[int, int],
        stride: int = 1,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        key, value = (heads * width for width in widths)
        self.heads = heads
        self.to_q = LinearNorm(dim, key, bias=True) if stride == 1 else LocalGlobalQuery(dim, key, stride)
        self.to_k = LinearNorm(dim, key, bias=True)
        self.to_v = LinearNorm(dim, value, bias=True)
        self.conv = OnMap(ConvNorm(value, value, stride=stride, groups=value, bias=True))
        self.bias = DistanceBias(grid, heads, stride=stride)
        self.kernel = kernel()
        self.act = nn.GELU()
        self.to_out = LinearNorm(value, out_dim, bias=True)

    def mix(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Attend from each query to all cells, and add the convolution of the values."""
        height, width = x.shape[1:3]
        values = self.to_v(x)
        q, k, v = (
            split_heads(part.flatten(1, 2), self.heads) for part in (self.to_q(x), self.to_k(x), values)
        )
        local = self.conv(values)
        return local + merge_heads(self.kernel(q, k, v, self.bias(height, width))).view_as(local)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b y x e"]:
        """Mix the cells, activate, and project."""
        return self.to_out(self.act(self.mix(x)))


class HalvedAttention(ConvolvedAttention):
    """Attention at half the resolution, stretched to the map's size before the activation (section 3.4).

    Args:
        grid: extents of the largest map, before it is halved.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        grid: Sequence[int],
        heads: int,
        widths: tuple[int, int],
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        half = [-(-extent // 2) for extent in grid]
        super().__init__(dim, out_dim, grid=half, heads=heads, widths=widths, kernel=kernel)
        self.halve = OnMap(ConvNorm(dim, dim, stride=2, groups=dim, bias=True))

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w e"]:
        """Mix the cells of the smaller map, stretch it, activate, and project."""
        return self.to_out(self.act(stretch(self.mix(self.halve(x)), x.shape[1:3])))


class LocalGlobalQuery(nn.Module):
    """Queries of a smaller map: its cells and a depth-wise convolution around them (section 3.5).

    Args:
        stride: distance of the smaller map's cells.
    """

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = OnMap(nn.Conv2d(dim, dim, 3, stride, 1, groups=dim))
        self.to_out = LinearNorm(dim, out_dim, bias=True)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Return the queries, their heads not split yet."""
        return self.to_out(self.conv(x) + x[:, :: self.stride, :: self.stride])


class Down(nn.Module):
    """A convolution that halves the map; with attention, the sum of both (the dual path of section 3.5).

    Args:
        attention: returns the smaller map, too; default none.
    """

    def __init__(self, dim: int, out_dim: int, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = OnMap(ConvNorm(dim, out_dim, stride=2, bias=True))
        self.attention = attention

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Return the map of the next stage."""
        smaller = self.conv(x)
        return smaller if self.attention is None else smaller + self.attention(x)
