"""Rethinking Spatial Dimensions of Vision Transformers.

B. Heo, S. Yun, D. Han, S. Chun, J. Choe, S. J. Oh 2021, arXiv:2103.16302.

A ViT in stages like a convolutional network: between two stages a strided depth-wise convolution halves the
map of patches and multiplies its channels; a linear layer does the latter for the class token. Patches
overlap.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Proxy

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.attention import head_dim
from vit_pytorch.layers.blocks import drop_path_rates, is_tracing, layer, plain_blocks
from vit_pytorch.layers.init import init_embeddings, init_xavier
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.tokens import DistilledHead, classify_pair, make_classifier

Grid = tuple[int, ...]


class PiT(HierarchicalModel):
    """The pooling-based vision transformer.

    `dim`, `heads` and `mlp_dim` are one number for each stage, or that of the first stage, which then
    doubles from stage to stage, as in the paper's models.

    Args:
        stride: distance of neighbouring patches, one number or (height, width), at most a patch; default half
            a patch. The image size is a patch plus a multiple of it.
        dim_head: head dimension of all stages; default `dim / heads`.
        distilled: have a distillation token with a classifier of its own; the logits are the mean of both
            classifiers', in training, too (see `DistilledHead.separate`), and the pooled embedding is the
            mean of both tokens.
    """

    pool = "cls"
    undecayed = r"^(tokens|positions\.table)$"

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
        patch = pair(patch_size)
        stride = pair(stride or tuple(max(extent // 2, 1) for extent in patch))
        if any(step > extent for step, extent in zip(stride, patch, strict=True)):
            raise ValueError(f"stride must be at most patch_size, got {stride} and {patch}")
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[max(stride) * 2**i for i in range(stages)],
            channels=channels,
            size_multiple=stride,
            min_size=patch,
            any_size=False,
        )
        self.patch = patch
        self.stride = stride
        self.num_prefix_tokens = 2 if distilled else 1
        norm = partial(nn.LayerNorm, eps=norm_eps)

        self.patch_embed = nn.Conv2d(channels, dims[0], patch, stride)
        nn.init.trunc_normal_(self.patch_embed.weight, std=(channels * prod(patch)) ** -0.5)
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        self.positions = LearnedPositions(self.fit(self.image_size), dims[0])
        self.tokens = nn.Parameter(torch.empty(1, self.num_prefix_tokens, dims[0]))
        init_embeddings(self.tokens)
        self.dropout = nn.Dropout(emb_dropout)
        for i, rates in enumerate(drop_path_rates(drop_path, depth)):
            blocks = plain_blocks(
                dims[i],
                depth=depth[i],
                heads=all_heads[i],
                dim_head=dim_head or head_dim(dims[i], all_heads[i]),
                mlp_dim=mlp_dims[i],
                dropout=dropout,
                attn_dropout=attn_dropout,
                drop_path=rates,
                qkv_bias=qkv_bias,
                norm=norm,
            )
            self.stages.append(PooledStage(HeadPool(dims[i - 1], dims[i]) if i else None, blocks))
        self.norm = norm(dims[-1])
        self.reset_classifier(num_classes)

    def fit(self, size: Sequence[int]) -> Grid:
        """Return the grid of overlapping patches of an input of this size.

        FX traces with inputs that have no size; what it traces is for the largest one.

        Raises:
            ValueError: see `check_size`.
        """
        if isinstance(size, Proxy):
            return self.positions.grid
        if not is_tracing():
            self.check_size(size)
        axes = zip(size, self.patch, self.stride, strict=True)
        return tuple((extent - patch) // stride + 1 for extent, patch, stride in axes)

    def check_size(self, size: Sequence[int]) -> None:
        """Check the size of an input: a patch plus a multiple of the stride.

        Raises:
            ValueError: if it is smaller or larger than the model takes, or the stride does not divide it.
        """
        if any(s < patch for s, patch in zip(size, self.min_size, strict=True)):
            raise ValueError(f"an image must be at least {self.min_size}, got image size {tuple(size)}")
        if any(s > most for s, most in zip(size, self.image_size, strict=True)):
            raise ValueError(f"image size must be at most {self.image_size}, got {tuple(size)}")
        axes = zip(size, self.min_size, self.size_multiple, strict=True)
        if any((s - patch) % stride for s, patch, stride in axes):
            raise ValueError(
                f"image size must be patch size {self.min_size} plus a multiple of the stride "
                f"{self.size_multiple}, got {tuple(size)}"
            )

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the first stage; only patches have positions."""
        self.check_images(images)
        grid = self.fit(images.shape[2:])
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        patches = self.dropout(self.positions(patches, prefix=0, grid=grid))
        return torch.cat([self.tokens.expand(patches.shape[0], -1, -1), patches], dim=1)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the last stage's tokens after the final norm, class (and distillation) token first."""
        tokens, grid = self.embed(images), self.fit(images.shape[2:])
        for stage in self.stages:
            tokens = stage(tokens, grid)
            grid = stage.grid_after(grid)  # type: ignore[operator]
        return self.norm(tokens)

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Return the class token, and the distillation token if there is one, concatenated."""
        return features[:, : self.num_prefix_tokens].flatten(1)

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k ..."]:
        """Classify the class token, and the distillation token if there is one; see `VisionModel`."""
        if self.unpooled or self.num_prefix_tokens == 1:
            return super().forward_head(features, pre_logits)
        return classify_pair(self.to_latent(self.pool_features(features)), self.head, pre_logits=pre_logits)

    def split_prefix(
        self, output: Float[Tensor, "b n d"], stage: int, size: Sequence[int]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b k d"]]:
        """Return the map in the tokens after a stage, and the tokens before it; see the base class."""
        grid = self.fit(size)
        for pooled in list(self.stages)[: stage + 1]:
            grid = pooled.grid_after(grid)  # type: ignore[operator]
        return output[:, self.num_prefix_tokens :].unflatten(1, grid), output[:, : self.num_prefix_tokens]

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, or two if the model is distilled; the identity for no classes."""
        kind = DistilledHead if self.num_prefix_tokens == 2 else nn.Linear
        return make_classifier(self.num_features, num_classes, like=self.tokens, kind=kind)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth; the coarse ones by stage."""
        return {**super().group_matcher(coarse), "stem": r"^(?:tokens|positions|patch_embed)"}


class HeadPool(nn.Module):
    """Halve the map and multiply the channels of all tokens (section 3.2, figure 3).

    Args:
        out_dim: token dimension after it, a multiple of `dim`.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        if out_dim % dim:
            raise ValueError(f"dim must be a multiple of that of the stage before, got {dim}, {out_dim}")
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, groups=dim)
        self.fc = nn.Linear(dim, out_dim)
        init_xavier(self.fc)

    def forward(self, x: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b m e"]:
        """Apply the convolution to the patches, and the linear layer to the tokens before them."""
        prefix = x.shape[1] - prod(grid)
        patches = self.conv(x[:, prefix:].transpose(1, 2).unflatten(2, grid))
        return torch.cat([self.fc(x[:, :prefix]), patches.flatten(2).transpose(1, 2)], dim=1)


class PooledStage(nn.Module):
    """Pooling, except in the first stage, then blocks.

    Args:
        down: halves the map; None for no pooling.
    """

    def __init__(self, down: HeadPool | None, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b m e"]:
        """Return the tokens after the stage.

        Args:
            grid: patches along each axis among them.
        """
        if self.down is not None:
            x = self.down(x, grid)
        for block in self.blocks:
            x = block(x)
        return x

    def grid_after(self, grid: Grid) -> Grid:
        """Return the patches along each axis after the stage."""
        return grid if self.down is None else tuple((extent + 1) // 2 for extent in grid)
