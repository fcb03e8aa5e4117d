"""Rethinking Spatial Dimensions of Vision Transformers.

B. Heo, S. Yun, D. Han, S. Chun, J. Choe, S. J. Oh 2021, arXiv:2103.16302.

A ViT in stages like a convolutional network: between two stages a strided depth-wise convolution halves
the map of patches while their width grows, and a linear layer widens the class token alike. Patches overlap.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import Intermediates, VisionModel, resolve_indices
from vit_pytorch.hierarchical_v01 import give_stages, take_stages
from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.init import init_xavier
from vit_pytorch.layers_v01.options import check_choice, per_stage
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import make_classifier, make_distilled_classifier

Grid = tuple[int, ...]
State = tuple[Float[Tensor, "b n d"], Grid]


class HeadPool(nn.Module):
    """Halve the map and widen all tokens (section 3.2, figure 3).

    Args:
        dim: width of a token that enters.
        out_dim: width of a token that leaves, a multiple of `dim`.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        if out_dim % dim:
            raise ValueError(f"the width of a stage is a multiple of the one before; got {dim}, {out_dim}")
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, groups=dim)
        self.fc = nn.Linear(dim, out_dim)
        init_xavier(self.fc)

    def forward(self, x: Float[Tensor, "b n d"], grid: Grid) -> tuple[Float[Tensor, "b m e"], Grid]:
        """Pool the patches by the convolution, and give the tokens in front of them the linear layer."""
        prefix = x.shape[1] - prod(grid)
        patches = self.conv(x[:, prefix:].transpose(1, 2).unflatten(2, grid))
        x = torch.cat([self.fc(x[:, :prefix]), patches.flatten(2).transpose(1, 2)], dim=1)
        return x, tuple(patches.shape[2:])


class Stage(nn.Module):
    """Pooling, except in the first stage, then blocks.

    Args:
        pool: halves the map.
        encoder: the blocks.
    """

    def __init__(self, pool: HeadPool | None, encoder: Encoder) -> None:
        super().__init__()
        self.pool = pool
        self.encoder = encoder

    def forward(self, x: Float[Tensor, "b n d"], grid: Grid) -> tuple[Float[Tensor, "b m e"], Grid]:
        """Give the tokens behind the stage, and the grid of their patches."""
        if self.pool is not None:
            x, grid = self.pool(x, grid)
        return self.encoder(x), grid


class PiT(VisionModel):
    """The pooling-based vision transformer.

    `dim`, `heads` and `mlp_dim` are one number for each stage, or that of the first stage, which then
    doubles from stage to stage, as in the paper's models.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width).
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks of each stage.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        dropout: dropout after the linear layers of the blocks, in [0, 1).
        emb_dropout: dropout on the embedded patches, in [0, 1).
        channels: channels of the input.
        stride: distance of neighbouring patches, one number or (height, width); half a patch unless told.
            The image size is a patch and a multiple of it.
        dim_head: width of a head in all stages; `dim / heads` unless told.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        distilled: whether there is a distillation token with a classifier of its own; the logits are the
            mean of both classifiers', in training, too (see `DistilledHead.separate`), and the pooled
            embedding is both tokens, one after the other.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide.
    """

    head: nn.Module

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int | Sequence[int],
        depth: Sequence[int],
        heads: int | Sequence[int],
        mlp_dim: int | Sequence[int],
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
        stride: int | Sequence[int] | None = None,
        dim_head: int | None = None,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        distilled: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        stages = len(depth)
        dims, all_heads, mlp_dims = (
            per_stage(name, value, stages)
            for name, value in (("dim", dim), ("heads", heads), ("mlp_dim", mlp_dim))
        )
        if dim_head is None and any(d % h for d, h in zip(dims, all_heads, strict=True)):
            raise ValueError(f"widths {dims} are not multiples of {all_heads} heads")
        super().__init__(
            num_classes=num_classes, num_features=dims[-1], channels=channels, image_size=pair(image_size)
        )
        self.patch = pair(patch_size)
        self.stride = pair(stride or tuple(max(extent // 2, 1) for extent in self.patch))
        self.dims = dims
        self.num_prefix_tokens = 2 if distilled else 1

        self.patch_embed = nn.Conv2d(channels, dims[0], self.patch, self.stride)
        nn.init.trunc_normal_(self.patch_embed.weight, std=(channels * prod(self.patch)) ** -0.5)
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        self.positions = LearnedPositions(self.fit(self.image_size), dims[0])
        self.tokens = nn.Parameter(torch.empty(1, self.num_prefix_tokens, dims[0]))
        nn.init.trunc_normal_(self.tokens, std=0.02)
        self.dropout = nn.Dropout(emb_dropout)

        def block(stage: int, layer: int) -> Block:
            width = dims[stage]
            attention = Attention(
                width,
                heads=all_heads[stage],
                dim_head=dim_head or width // all_heads[stage],
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(width, mlp_dims[stage], dropout=dropout)
            norm = partial(nn.LayerNorm, width, eps=norm_eps)
            drop = drop_path_rate(drop_path, sum(depth[:stage]) + layer, sum(depth))
            tail = partial(make_tail, width, drop_path=drop)
            return Block(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))

        pools = [None, *(HeadPool(dims[i - 1], dims[i]) for i in range(1, stages))]
        self.stages = nn.ModuleList(
            Stage(pools[i], Encoder(partial(block, i), depth=depth[i])) for i in range(stages)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What the feature of each stage is: module, num_chs, reduction (stride in pixels)."""
        return [
            {"module": f"stages.{i}", "num_chs": dim, "reduction": max(self.stride) * 2**i}
            for i, dim in enumerate(self.dims)
        ]

    @property
    def head_hidden_size(self) -> int:
        """Width of what enters the classifier."""
        return self.num_prefix_tokens * self.num_features

    def fit(self, size: Sequence[int]) -> Grid:
        """Give the grid of overlapping patches of an input of this size.

        Raises:
            ValueError: where the input is smaller than a patch or larger than the model takes, or the
                stride does not divide what it has beyond a patch.
        """
        if any(s < p for s, p in zip(size, self.patch, strict=True)):
            raise ValueError(f"an image is at least {self.patch}, got image size {tuple(size)}")
        if any(s > largest for s, largest in zip(size, self.image_size, strict=True)):
            raise ValueError(
                f"image size {tuple(size)} exceeds the largest that the model takes, {self.image_size}"
            )
        beyond = [s - p for s, p in zip(size, self.patch, strict=True)]
        if any(b % s for b, s in zip(beyond, self.stride, strict=True)):
            raise ValueError(
                f"image size {tuple(size)} is not patch size {self.patch} and a multiple of the stride, "
                f"{self.stride}"
            )
        return tuple(b // s + 1 for b, s in zip(beyond, self.stride, strict=True))

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Turn images into the tokens that enter the first stage; patches alone have positions."""
        self.check_images(images)
        grid = self.fit(images.shape[2:])
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = self.dropout(x + self.positions(grid))
        return torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Compute the last stage's tokens after the final norm, class (and distillation) token in front."""
        (x, _), _ = take_stages(self.steps(images), (), len(self.stages), self.finish)
        return x

    def steps(self, images: Float[Tensor, "b c h w"]) -> Iterator[State]:
        """Give the tokens that leave every stage in turn, and the grid of those that are patches."""
        state = self.embed(images), self.fit(images.shape[2:])
        for stage in self.stages:
            state = stage(*state)
            yield state

    def finish(self, state: State) -> State:
        """Apply the final norm to what leaves the last stage."""
        x, grid = state
        return self.norm(x), grid

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k"]:
        """Classify the class token, and the distillation token where there is one.

        Args:
            features: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.
        """
        x = features[:, : self.num_prefix_tokens].flatten(1)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates]:
        """Compute the map of every stage; see `VisionModel.forward_intermediates`.

        The final norm has the last stage's width and acts on no other.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        layers = resolve_indices(indices, len(self.stages))
        (last, _), taken = take_stages(
            self.steps(images), layers, len(self.stages), self.finish, norm=norm, stop_early=stop_early
        )
        k = self.num_prefix_tokens
        parts = [(x[:, k:].unflatten(1, grid), x[:, :k]) for x, grid in taken]
        found = give_stages(parts, output_fmt, return_prefix_tokens)
        return found if intermediates_only else (last, found)

    def get_classifier(self) -> nn.Module:
        """Give the layer that computes the logits; the identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, or both where the model is distilled.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "cls" (timm's "token"), the only pooling.
        """
        if global_pool not in (None, "cls", "token"):
            raise ValueError(f"PiT classifies the class token; pooling cannot be {global_pool!r}")
        make = make_distilled_classifier if self.num_prefix_tokens == 2 else make_classifier
        self.head = make(self.num_features, num_classes, like=self.tokens)
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for module in self.stages.modules():
            if isinstance(module, Encoder):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        return {"tokens", "positions.table"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth; the coarse ones by stage."""
        stage, block = (r"^stages\.(\d+)\.", None), (r"^stages\.(\d+)\.encoder\.blocks\.(\d+)", None)
        return {
            "stem": r"^(?:tokens|positions|patch_embed)",
            "blocks": [*([] if coarse else [block]), stage, (r"^norm\.", (99999,))],
        }
