"""Separable Self-attention for Mobile Vision Transformers.

S. Mehta, M. Rastegari 2022, arXiv:2206.02680.

MobileViT whose attention is linear in the number of tokens: one score for each token, instead of one for each
pair, weighs the keys to a single context vector, by which the values of all tokens are multiplied. Its
convolutions are depth-wise, and nothing of the block's input passes beside it.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, FeedForward, fx_leaf
from vit_pytorch.layers.conv import ConvNorm, OnMap
from vit_pytorch.layers.init import init_convs, init_xavier
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.windows import Partition
from vit_pytorch.mobile_vit import InvertedResidual, round_to_eights


class MobileViTV2(HierarchicalModel):
    """MobileViT with separable self-attention; takes images of any size.

    Args:
        image_size: the customary input, one number or (height, width) in pixels.
        width: factor on the channels of all maps; the paper has 0.5 to 2.
        dims: channels of the stages' maps before that factor.
        stem_dim: channels of the stem before that factor.
        expansion: hidden channels of the inverted bottlenecks, as a multiple of their input channels.
        patch_size: cells of a patch, one number or (height, width).
        depths: number of transformer blocks in each of the last three stages.
        transformer_ratio: token dimension of the transformers, as a part of their map's channels; rounded to
            a multiple of 8.
        mlp_ratio: hidden dimension of the feed-forwards, as a multiple of the token dimension.
        drop_path: probability of dropping a branch of the transformers, in [0, 1); the same in all blocks.

    Raises:
        ValueError: if there are not five dims and three depths.
    """

    stem_is_layer = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        num_classes: int,
        width: float = 1.0,
        channels: int = 3,
        dims: Sequence[int] = (64, 128, 256, 384, 512),
        stem_dim: int = 32,
        expansion: float = 2.0,
        patch_size: int | Sequence[int] = (2, 2),
        depths: Sequence[int] = (2, 4, 3),
        transformer_ratio: float = 0.5,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        if len(dims) != 5 or len(depths) != 3:
            raise ValueError(
                f"dims must be one for each of 5 stages and depths one for each of the last 3, "
                f"got {tuple(dims)} and {tuple(depths)}"
            )
        stem, *widths = (int(dim * width) for dim in (stem_dim, *dims))
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=widths,
            strides=(2, 4, 8, 16, 32),
            channels=channels,
        )
        self.stem = OnMap(ConvNorm(channels, stem, stride=2, act="silu"))

        def norm(dim: int) -> OnMap:
            return OnMap(nn.GroupNorm(1, dim, eps=norm_eps))

        def transformer(dim: int) -> Block:
            return Block(
                dim,
                SeparableAttention(dim, patch=pair(patch_size), dropout=dropout, attn_dropout=attn_dropout),
                FeedForward(dim, int(dim * mlp_ratio), dropout=dropout, act="silu"),
                norm=norm,
                drop_path=drop_path,
            )

        bottleneck = partial(InvertedResidual, expansion=expansion)
        for i, (before, after) in enumerate(zip([stem, *widths], widths, strict=False)):
            blocks: list[nn.Module] = []
            if i == 1:
                blocks = [bottleneck(after, after)]
            elif i > 1:
                dim = round_to_eights(after * transformer_ratio)
                layers = [transformer(dim) for _ in range(depths[i - 2])]
                blocks = [MobileViTV2Block(after, dim, layers, norm(dim), patch=pair(patch_size))]
            self.stages.append(Stage(bottleneck(before, after, stride=1 if i == 0 else 2), blocks))
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


class MobileViTV2Block(nn.Module):
    """Transformers as convolutions, without what MobileViT adds after them (section 3.2, figure 3 c).

    Args:
        transformer: blocks that act on the map.
        norm: acts on the output of the transformer.
        patch: extents of a patch, in cells.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        transformer: Sequence[nn.Module],
        norm: nn.Module,
        *,
        patch: tuple[int, int],
    ) -> None:
        super().__init__()
        self.patch = patch
        self.local = OnMap(ConvNorm(channels, channels, groups=channels, act="silu"))
        self.widen = nn.Linear(channels, dim, bias=False)
        self.transformer = nn.ModuleList(transformer)
        self.norm = norm
        self.narrow = nn.Sequential(nn.Linear(dim, channels, bias=False), OnMap(nn.BatchNorm2d(channels)))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x d"]:
        """Transform the map; one that is no multiple of the patch is stretched to the next, bilinearly."""
        x = self.widen(self.local(stretch_corners(x, self.patch)))
        for block in self.transformer:
            x = block(x)
        return self.narrow(self.norm(x))


class SeparableAttention(nn.Module):
    """Attention with one score for each token, among the cells at one place of all patches (section 3.1).

    Args:
        patch: extents of a patch, in cells.
        attn_dropout: probability of dropping a score.
    """

    def __init__(
        self, dim: int, *, patch: tuple[int, int], dropout: float = 0.0, attn_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dim = dim
        self.partition = Partition((None, None), patch)
        # The score of a token, its key and its value.
        self.to_qkv = nn.Linear(dim, 1 + 2 * dim)
        self.weights = nn.Identity()
        self.attn_dropout = nn.Dropout(attn_dropout)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_qkv, parts=(1, dim, dim))
        init_xavier(self.to_out)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Mix the cells of a map (equation 4).

        Args:
            inputs: not used: nothing acts inside attention.
        """
        scores, k, v = self.to_qkv(self.partition.split(x)).split((1, self.dim, self.dim), dim=2)
        # As one head's map from one query, which a recorder sees.
        weights = self.weights(scores.mT[:, None].softmax(dim=3))
        context = self.attn_dropout(weights)[:, 0] @ k
        mixed = self.to_out(F.relu(v) * context)
        return self.dropout(self.partition.merge(mixed, x.shape[1:3]))


@fx_leaf
def stretch_corners(x: Float[Tensor, "b h w d"], multiple: Sequence[int]) -> Float[Tensor, "b y x d"]:
    """Resize a map bilinearly to the next multiple along each axis; its corners stay where they are."""
    size = [-(-extent // m) * m for extent, m in zip(x.shape[1:3], multiple, strict=True)]
    if list(x.shape[1:3]) == size:
        return x
    resized = F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True)
    return resized.permute(0, 2, 3, 1)
