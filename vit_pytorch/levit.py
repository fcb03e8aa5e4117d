"""LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference.

B. Graham, A. El-Nouby, H. Touvron, P. Stock, A. Joulin, H. Jégou, M. Douze 2021, arXiv:2104.01136.

A pyramid after four strided convolutions, with batch norm after every layer instead of LayerNorm before
blocks, a learned attention bias for each absolute offset instead of positions, narrow keys, an
activation after attention, and attention from a quarter of the cells between two stages. For inference
all batch norms fold into the layers before them.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, FusedAttention, merge_heads, split_heads
from vit_pytorch.layers.blocks import Block, DropPath, activation
from vit_pytorch.layers.conv import ConvNorm, FeedForwardNorm, LinearNorm, NormHead, OnMap
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import DistanceBias


class LeViT(HierarchicalModel):
    """The pyramid of attention with batch norm.

    `dim`, `depth` and `heads` are one number for each stage, or one for all.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; any size up to it is taken.
        stages: number of stages.
        dim: channels; a multiple of 2 ** (stem_depth - 1) in the first stage, of `dim_key` in all but the
            last.
        mlp_mult: hidden dimension of the feed-forward, as a multiple of `dim`.
        dropout: dropout in the feed-forwards and on what blocks add, in [0, 1).
        dim_key: head dimension of queries and keys.
        dim_value: head dimension of values; default 2 * dim_key.
        down_heads: number of heads of the attention between two stages; default dim / dim_key.
        down_dim_value: head dimension of values between two stages; default 4 * dim_key.
        drop_path: probability of dropping a residual branch, in [0, 1); the same in all layers.
        stem_depth: convolutions of the stem, each of which halves the image.
        distilled: have two classifiers, the second of which is trained on a teacher's outputs; the logits are
            the mean of both, also in training (see `DistilledNormHead.separate`).
    """

    # The layer between two stages learns at the rate of the first block after it, as in timm.
    down_in_first_block = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        num_classes: int,
        stages: int = 3,
        dim: int | Sequence[int],
        depth: int | Sequence[int],
        heads: int | Sequence[int],
        mlp_mult: int,
        dropout: float = 0.0,
        dim_key: int = 32,
        dim_value: int | None = None,
        channels: int = 3,
        down_heads: Sequence[int] | None = None,
        down_dim_value: int | None = None,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        stem_depth: int = 4,
        distilled: bool = False,
        act: str = "hardswish",
    ) -> None:
        dims, depths, all_heads = (
            per_stage(name, value, stages, growth=1)
            for name, value in (("dim", dim), ("depth", depth), ("heads", heads))
        )
        if dims[0] % 2 ** (stem_depth - 1):
            multiple = 2 ** (stem_depth - 1)
            raise ValueError(f"dim of the first stage must be a multiple of {multiple}, got {dims[0]}")
        if down_heads is None:
            if any(width % dim_key for width in dims[:-1]):
                raise ValueError(
                    f"dims before a smaller map must be multiples of dim_key, got {dims[:-1]} and {dim_key}"
                )
            down_heads = [width // dim_key for width in dims[:-1]]
        if len(down_heads) != stages - 1:
            raise ValueError(
                f"down_heads must be one number between two of {stages} stages, got {down_heads}"
            )
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[2 ** (stem_depth + i) for i in range(stages)],
            channels=channels,
            any_size=False,
        )
        self.distilled = distilled
        self.fused = False
        kernel = partial(FusedAttention, attn_dropout)

        def feedforward(width: int) -> FeedForwardNorm:
            return FeedForwardNorm(width, mlp_mult * width, act=act, dropout=dropout, gain=0.0)

        def block(stage: int) -> Block:
            width = dims[stage]
            attention = AttentionNorm(
                width,
                width,
                grid=self.grid(stage),
                heads=all_heads[stage],
                widths=(dim_key, dim_value or 2 * dim_key),
                act=act,
                dropout=dropout,
                kernel=kernel,
            )
            return Block(width, attention, feedforward(width), norm=nn.Identity, drop_path=drop_path)

        def down(stage: int) -> nn.Module:
            if stage == 0:
                return nn.Identity()
            attention = AttentionNorm(
                *dims[stage - 1 : stage + 1],
                grid=self.grid(stage - 1),
                heads=down_heads[stage - 1],
                widths=(dim_key, down_dim_value or 4 * dim_key),
                stride=2,
                act=act,
                kernel=kernel,
            )
            return Shrink(attention, feedforward(dims[stage]), drop_path=drop_path)

        widths = [channels, *(dims[0] // 2**i for i in reversed(range(stem_depth)))]
        self.stem = OnMap(
            *(
                ConvNorm(widths[i], widths[i + 1], stride=2, act=act if i < stem_depth - 1 else None)
                for i in range(stem_depth)
            )
        )
        self.stages = nn.ModuleList(
            Stage(down(i), [block(i) for _ in range(depths[i])]) for i in range(stages)
        )
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage (figure 5): no norm is left to apply."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)

    def grid(self, stage: int) -> tuple[int, ...]:
        """Return the extents of a stage's map for the largest input."""
        return tuple(-(-extent // self.strides[stage]) for extent in self.image_size)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, or two if the model is distilled; the identity for no classes.

        Raises:
            ValueError: if the model is fused.
        """
        if self.fused:
            raise ValueError("a fused LeViT is for inference; reset the classifier of the model it is from")
        if not num_classes:
            return nn.Identity()
        head = (DistilledNormHead if self.distilled else NormHead)(self.classifier_dim, num_classes)
        return head.to(next(self.parameters())).train(self.training)

    def fuse(self) -> LeViT:
        """Return a copy for inference whose batch norms are folded into the layers next to them.

        The logits are the same up to rounding. The copy has fewer parameters, since a batch norm's
        factors and offsets become one bias, and none of them has a gradient. It can neither be trained nor
        saved as a model that `from_pretrained` reads.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        for module in fused.modules():
            if isinstance(module, (ConvNorm, LinearNorm, NormHead)):
                module.fuse()
        fused.fused = True
        return fused

    def train(self, mode: bool = True) -> LeViT:
        """Switch between training and inference.

        Raises:
            ValueError: if a fused model is to be trained.
        """
        if mode and self.fused:
            raise ValueError("a fused LeViT is for inference; train the model it is from")
        return super().train(mode)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.fused:
            raise ValueError("a fused LeViT is for inference; save the model it is from")
        super()._save_pretrained(save_directory)


class HeadsNorm(LinearNorm):
    """Projections to heads, in one product.

    Args:
        widths: head dimension of each projection.
    """

    def __init__(self, dim: int, heads: int, widths: Sequence[int]) -> None:
        super().__init__(dim, heads * sum(widths))
        self.heads = heads
        self.widths = tuple(widths)

    def project(self, x: Float[Tensor, "b h w d"]) -> list[Float[Tensor, "b k n e"]]:
        """Return the projections of a map's cells: views of one product, split into heads."""
        parts = self(x).flatten(1, 2).split([self.heads * width for width in self.widths], dim=2)
        # By index: FX follows no iteration whose length it does not know.
        return [split_heads(parts[index], self.heads) for index in range(len(self.widths))]


class AttentionNorm(nn.Module):
    """Attention over a map, with batch norm and a learned bias for each absolute offset (section 4.2).

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
        act: str = "hardswish",
        dropout: float = 0.0,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        key, value = widths
        self.stride = stride
        if stride == 1:
            self.to_qkv = HeadsNorm(dim, heads, (key, key, value))
        else:
            self.to_q = HeadsNorm(dim, heads, (key,))
            self.to_kv = HeadsNorm(dim, heads, (key, value))
        self.bias = DistanceBias(grid, heads, stride=stride)
        self.kernel = kernel()
        self.act = activation(act)
        self.to_out = LinearNorm(heads * value, out_dim, gain=float(stride > 1))
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Float[Tensor, "b h w d"]) -> list[Float[Tensor, "b k n e"]]:
        """Project cells to queries, keys and values, split into heads."""
        if self.stride == 1:
            return self.to_qkv.project(x)
        queries = x[:, :: self.stride, :: self.stride]
        return self.to_q.project(queries) + self.to_kv.project(x)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b y x e"]:
        """Attend from each query to all cells, activate, and project to the output channels."""
        height, width = x.shape[1:3]
        mixed = self.kernel(*self.project(x), self.bias(height, width))
        return self.dropout(self.to_out(self.act(merge_heads(mixed)))).unflatten(
            1, (-1, -(-width // self.stride))
        )


class Shrink(nn.Module):
    """Attention from a quarter of the cells without a residual, then a feed-forward (section 4.2).

    Args:
        attention: returns the smaller map.
    """

    def __init__(self, attention: nn.Module, feedforward: nn.Module, *, drop_path: float) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Return the map of the next stage."""
        x = self.attention(x)
        return x + self.drop_path(self.feedforward(x))


class DistilledNormHead(NormHead):
    """The mean of two classifiers; the second, `distilled`, learns a teacher's outputs (section 4.2)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes)
        self.distilled = NormHead(dim, num_classes)

    def separate(self, x: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return the logits of both classifiers, as a distillation loss needs them."""
        return super().forward(x), self.distilled(x)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Return the mean logits."""
        labels, teacher = self.separate(x)
        return (labels + teacher) / 2
