"""LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference.

B. Graham, A. El-Nouby, H. Touvron, P. Stock, A. Joulin, H. Jégou, M. Douze 2021, arXiv:2104.01136.

A pyramid behind four strided convolutions, with batch norm behind every layer instead of LayerNorm in front
of blocks, a learned bias of attention for each absolute offset instead of positions, narrow keys, an
activation behind attention, and attention from a quarter of the cells between two stages. For inference
all batch norms fold into the layers in front of them.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage
from vit_pytorch.layers_v01.attention import FusedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder, Residual, activation, make_tail
from vit_pytorch.layers_v01.conv import ConvNorm, OnMap
from vit_pytorch.layers_v01.init import init_xavier
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import per_stage
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.relative import DistanceBias

STEM = 4


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of vectors; one alone has no statistics, so that in training those of earlier batches serve.

    Args:
        dim: width of a vector.
    """

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Norm each channel over the batch."""
        if self.training and len(x) > 1:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class LinearNorm(nn.Module):
    """A linear layer without bias, and batch norm over all tokens.

    Args:
        dim: width of a token that enters.
        out_dim: width of a token that leaves.
        gain: what the batch norm's factors start at; 0 for a residual branch that starts as nothing.
    """

    def __init__(self, dim: int, out_dim: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = Linear(dim, out_dim, bias=False)
        self.norm: nn.Module = TokenNorm(out_dim)
        init_xavier(self.linear)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Transform every token by itself."""
        x = self.linear(x)
        return self.norm(x.flatten(0, -2)).view_as(x)

    def fuse(self) -> None:
        """Fold the batch norm into the linear layer, for inference alone; a second time changes nothing."""
        if isinstance(self.norm, TokenNorm):
            self.linear, self.norm = fuse_linear_bn_eval(self.linear.eval(), self.norm.eval()), nn.Identity()


class HeadsNorm(LinearNorm):
    """Projections to heads, in one product.

    Args:
        dim: width of a token.
        heads: number of heads.
        widths: width of a head in each projection.
    """

    def __init__(self, dim: int, heads: int, widths: Sequence[int]) -> None:
        super().__init__(dim, heads * sum(widths))
        self.heads = heads
        self.widths = tuple(widths)

    def project(self, x: Float[Tensor, "b h w d"]) -> list[Float[Tensor, "b k n e"]]:
        """Give the projections of a map's cells: views of one product, split in heads."""
        parts = self(x).flatten(1, 2).split([self.heads * width for width in self.widths], dim=2)
        return [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]


class AttentionNorm(nn.Module):
    """Attention over a map, with batch norm and a learned bias for each absolute offset (section 4.2).

    Args:
        dim: width of a cell that enters.
        out_dim: width of a cell that leaves.
        grid: extents of the largest map.
        heads: number of heads.
        widths: width of a head's keys and of its values.
        stride: distance of neighbouring queries, in cells; 2 quarters the map.
        act: name of the activation behind attention.
        attend: makes the kernel that mixes the values.
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
        attend: Callable[[], nn.Module] = FusedAttention,
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
        self.attend = attend()
        self.act = activation(act)
        self.to_out = LinearNorm(heads * value, out_dim, gain=float(stride > 1))

    def project(self, x: Float[Tensor, "b h w d"]) -> list[Float[Tensor, "b k n e"]]:
        """Project cells to queries, keys and values, split in heads."""
        if self.stride == 1:
            return self.to_qkv.project(x)
        queries = x[:, :: self.stride, :: self.stride]
        return self.to_q.project(queries) + self.to_kv.project(x)

    def merge(self, x: Float[Tensor, "b k n e"]) -> Float[Tensor, "b n d"]:
        """Concatenate the heads, activate, and project to the width that leaves."""
        return self.to_out(self.act(x.transpose(1, 2).flatten(2)))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Let every query attend to all cells."""
        grid = tuple(x.shape[1:3])
        mixed = self.attend(*self.project(x), self.bias(*grid))
        return self.merge(mixed).unflatten(1, self.bias.queries(grid))


class FeedForwardNorm(nn.Module):
    """Two linear layers, each with batch norm, and an activation between them (section 4.2).

    Args:
        dim: width of a cell.
        hidden_dim: width between the layers.
        act: name of the activation.
        dropout: dropout after the activation.
    """

    def __init__(self, dim: int, hidden_dim: int, *, act: str = "hardswish", dropout: float = 0.0) -> None:
        super().__init__()
        self.to_hidden = LinearNorm(dim, hidden_dim)
        self.act = activation(act)
        self.dropout = nn.Dropout(dropout)
        self.to_out = LinearNorm(hidden_dim, dim, gain=0.0)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform every cell by itself."""
        return self.to_out(self.dropout(self.act(self.to_hidden(x))))


class Shrink(Block):
    """Attention from a quarter of the cells without a residual, then a feed-forward (section 4.2).

    Args:
        attention: gives the smaller map.
        feedforward: transforms every cell by itself, in a residual.
    """

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Give the map of the next stage."""
        return self.feedforward(self.attention(x))


class NormHead(nn.Linear):
    """A linear classifier behind batch norm (section 4.2).

    Args:
        dim: width of what is classified.
        num_classes: number of logits.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes)
        self.norm: nn.Module = TokenNorm(dim)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Give the logits."""
        return super().forward(self.norm(x))

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the batch norm into the layer, for inference alone; a second time changes nothing."""
        if isinstance(self.norm, TokenNorm):
            # In inference the norm is affine: its value at 0, and for each channel a slope.
            ends = torch.stack([torch.zeros_like(self.norm.weight), torch.ones_like(self.norm.weight)])
            shift, top = self.norm.eval()(ends)
            self.bias.add_(self.weight @ shift)
            self.weight.mul_(top - shift)
            self.norm = nn.Identity()


class DistilledNormHead(NormHead):
    """The mean of two classifiers, the second of which, `distilled`, learns from a teacher (section 4.2).

    Args:
        dim: width of what is classified.
        num_classes: number of logits.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes)
        self.distilled = NormHead(dim, num_classes)

    def separate(self, x: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Give the two classifiers' logits apart, as a distillation loss wants them."""
        return super().forward(x), self.distilled(x)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Give the mean logits."""
        labels, teacher = self.separate(x)
        return (labels + teacher) / 2


class LeViT(HierarchicalModel):
    """The pyramid of attention with batch norm.

    `dim`, `depth` and `heads` are one number for each stage, or one for all.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; any size up to it is taken.
        num_classes: number of logits; 0 gives the pooled embedding.
        stages: number of stages.
        dim: width of a cell; a multiple of 8 in the first stage, of `dim_key` in all but the last.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_mult: width inside the feed-forward, as a multiple of the cell's.
        dropout: dropout in the feed-forwards and on what blocks add, in [0, 1).
        dim_key: width of a head's queries and keys.
        dim_value: width of a head's values; twice the keys' unless told.
        channels: channels of the input.
        down_heads: number of heads of the attention between two stages; `dim / dim_key` unless told.
        down_dim_value: width of a head's values between two stages; four times the keys' unless told.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch, in [0, 1); the same in every layer.
        distilled: whether there are two classifiers, one of which learns from a teacher; the logits are the
            mean of both, in training, too (see `DistilledNormHead.separate`).
        act: name of the activation (see `layers.blocks.ACTIVATIONS`).

    Raises:
        ValueError: where sizes do not divide, or an option is none of those above.
    """

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
        distilled: bool = False,
        act: str = "hardswish",
    ) -> None:
        dims, depths, all_heads = (
            per_stage(name, value, stages, growth=1)
            for name, value in (("dim", dim), ("depth", depth), ("heads", heads))
        )
        if dims[0] % 2 ** (STEM - 1):
            raise ValueError(
                f"the width of the first stage is a multiple of {2 ** (STEM - 1)}, got {dims[0]}"
            )
        if down_heads is None:
            if any(width % dim_key for width in dims[:-1]):
                raise ValueError(f"widths {dims[:-1]} are not multiples of the keys' width {dim_key}")
            down_heads = [width // dim_key for width in dims[:-1]]
        if len(down_heads) != stages - 1:
            raise ValueError(
                f"there is one number of down_heads between two of {stages} stages, got {down_heads}"
            )
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[2 ** (STEM + i) for i in range(stages)],
            channels=channels,
            any_size=False,
        )
        self.distilled = distilled
        self.fused = False
        options: dict[str, Any] = {"act": act, "attend": partial(FusedAttention, attn_dropout)}

        def feedforward(width: int) -> Residual:
            branch = FeedForwardNorm(width, mlp_mult * width, act=act, dropout=dropout)
            return Residual(branch, nn.Identity(), tail(width))

        def tail(width: int) -> list[nn.Module]:
            return [*([nn.Dropout(dropout)] if dropout else []), *make_tail(width, drop_path=drop_path)]

        def block(stage: int, layer: int) -> Block:
            width = dims[stage]
            attention = AttentionNorm(
                width,
                width,
                grid=self.grid(stage),
                heads=all_heads[stage],
                widths=(dim_key, dim_value or 2 * dim_key),
                **options,
            )
            return Block(Residual(attention, nn.Identity(), tail(width)), feedforward(width))

        def down(stage: int) -> Shrink:
            attention = AttentionNorm(
                *dims[stage - 1 : stage + 1],
                grid=self.grid(stage - 1),
                heads=down_heads[stage - 1],
                widths=(dim_key, down_dim_value or 4 * dim_key),
                stride=2,
                **options,
            )
            return Shrink(attention, feedforward(dims[stage]))

        widths = [channels, *(dims[0] // 2**i for i in reversed(range(STEM)))]
        self.stem = OnMap(
            *(
                ConvNorm(widths[i], widths[i + 1], stride=2, act=act if i < STEM - 1 else None)
                for i in range(STEM)
            )
        )
        self.stages = nn.ModuleList(
            Stage(down(i) if i else nn.Identity(), Encoder(partial(block, i), depth=depths[i]))
            for i in range(stages)
        )
        self.reset_classifier(num_classes)

    def grid(self, stage: int) -> tuple[int, ...]:
        """Give the extents of a stage's map for the largest input."""
        return tuple(-(-extent // self.strides[stage]) for extent in self.image_size)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, or both where the model is distilled.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "mean" (timm's "avg"), the only pooling.

        Raises:
            ValueError: for another pooling, or a fused model.
        """
        if self.fused:
            raise ValueError("a fused LeViT is for inference; reset the classifier of the model it is from")
        super().reset_classifier(0, global_pool)
        if num_classes:
            head = DistilledNormHead if self.distilled else NormHead
            self.head = head(self.head_width, num_classes).to(next(self.parameters())).train(self.training)
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def fuse(self) -> LeViT:
        """Give a copy for inference whose batch norms are folded into the layers beside them.

        The logits are the same up to rounding. The copy has fewer parameters, for a batch norm's factors
        and offsets become one bias, and none of them has a gradient. It can neither be trained nor saved as
        a model that `from_pretrained` reads.
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
            ValueError: where a fused model is to be trained.
        """
        if mode and self.fused:
            raise ValueError("a fused LeViT is for inference; train the model it is from")
        return super().train(mode)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.fused:
            raise ValueError("a fused LeViT is for inference; save the model it is from")
        super()._save_pretrained(save_directory)
