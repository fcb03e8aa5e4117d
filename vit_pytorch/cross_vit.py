"""CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification.

C.-F. Chen, Q. Fan, R. Panda 2021, arXiv:2103.14899.

Two branches see the image in small and in large patches. After every few blocks the class token of each, as
the agent of its branch, attends to the patches of the other. The logits are the mean of the two branches'.

Family: multi-scale
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.layers.attention import CrossAttention, FusedAttention, head_dim
from vit_pytorch.layers.blocks import DropPath, drop_path_rate, fx_leaf, layer, plain_blocks
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions

Branches = tuple[Float[Tensor, "b n d"], Float[Tensor, "b m e"]]
STRIDES = {12: (4, 3, 1), 16: (4, 2, 2)}


class CrossViT(VisionModel):
    """The two-branch Vision Transformer with cross-attention.

    `forward_features` returns one token, the class tokens of both branches concatenated, which is all that
    the head reads; the patches of either branch come from `forward_intermediates`. Arguments that begin with
    `lg_` are those of the large branch that `sm_` are of the small one.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; what the small branch sees.
        depth: number of multi-scale blocks.
        sm_dim: token dimension of the small branch.
        sm_patch_size: size of its patches, one number or (height, width).
        sm_enc_depth: number of its transformer blocks in a multi-scale block.
        sm_enc_heads: number of its attention heads, each of dimension `sm_dim / sm_enc_heads`.
        sm_enc_mlp_dim: hidden dimension of its feed-forward.
        cross_attn_depth: how often a class token attends to the other branch in a multi-scale block.
        cross_attn_heads: number of heads of the cross-attention.
        lg_image_size: size to which the large branch resizes the largest input, bicubically; a smaller input
            is resized in proportion. None for no resizing.
        stem: "linear" projects patches, "conv" stacks three convolutions (the paper's dagger), for patches of
            12 and of 16.

    Raises:
        ValueError: if sizes do not divide, or the stem does not know the patch.
    """

    pool = "cls"
    # In either branch.
    num_prefix_tokens = 1
    undecayed = r"^branches\.\d\.(prefix\.class_token|positions\.table)$"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        num_classes: int,
        depth: int,
        sm_dim: int,
        sm_patch_size: int | Sequence[int],
        sm_enc_depth: int,
        sm_enc_heads: int,
        sm_enc_mlp_dim: int,
        lg_dim: int,
        lg_patch_size: int | Sequence[int],
        lg_enc_depth: int,
        lg_enc_heads: int,
        lg_enc_mlp_dim: int,
        cross_attn_depth: int = 1,
        cross_attn_heads: int = 8,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        lg_image_size: int | Sequence[int] | None = None,
        stem: str = "linear",
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        small = PatchGrid(pair(image_size), pair(sm_patch_size))
        large = PatchGrid(pair(image_size if lg_image_size is None else lg_image_size), pair(lg_patch_size))
        super().__init__(
            num_classes=num_classes, num_features=sm_dim + lg_dim, channels=channels, image_size=small.size
        )

        longest = max(sm_enc_depth, lg_enc_depth)
        norm = partial(nn.LayerNorm, eps=norm_eps)
        options: dict[str, Any] = {"dropout": dropout, "attn_dropout": attn_dropout, "qkv_bias": qkv_bias}

        def encoder(dim: int, heads: int, mlp_dim: int, rates: Sequence[float]) -> nn.ModuleList:
            size: dict[str, Any] = {"heads": heads, "dim_head": head_dim(dim, heads), "mlp_dim": mlp_dim}
            return plain_blocks(dim, depth=len(rates), **size, drop_path=rates, norm=norm, **options)

        def fusion(dim: int, other: int, rate: float) -> CrossFusion:
            turns = (
                ClassTurn(other, heads=cross_attn_heads, drop_path=rate, norm=norm, **options)
                for _ in range(cross_attn_depth)
            )
            return CrossFusion(dim, other, nn.ModuleList(turns), norm=norm)

        def block(stage: int) -> MultiScaleBlock:
            layers = range(stage * longest, (stage + 1) * longest)
            rates = [drop_path_rate(drop_path, index, depth * longest) for index in layers]
            return MultiScaleBlock(
                encoder(sm_dim, sm_enc_heads, sm_enc_mlp_dim, rates[:sm_enc_depth]),
                encoder(lg_dim, lg_enc_heads, lg_enc_mlp_dim, rates[:lg_enc_depth]),
                nn.ModuleList([fusion(sm_dim, lg_dim, rates[-1]), fusion(lg_dim, sm_dim, rates[-1])]),
            )

        self.branches = nn.ModuleList(
            Branch(grid, channels, dim, full=small.size, stem=stem, dropout=emb_dropout, norm=norm)
            for grid, dim in ((small, sm_dim), (large, lg_dim))
        )
        self.multi_scale_encoder = nn.Sequential(*(block(stage) for stage in range(depth)))
        self.fc_norm = nn.Identity()
        self.pre_logits = nn.Identity()
        self.head = nn.Identity()
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (stride in pixels), branch.

        First those of the small branch (0), by depth, then those of the large branch (1). The stride is that
        of the input, which the large branch may resize.
        """
        return [
            {
                "module": f"multi_scale_encoder.{stage}.fusions.{index}",
                "num_chs": branch.dim,
                "reduction": branch.reduction,
                "branch": index,
            }
            for index, branch in enumerate(self.branches)
            for stage in range(len(self.multi_scale_encoder))
        ]

    def embed(self, images: Float[Tensor, "b c h w"]) -> Branches:
        """Return the tokens of the small and of the large branch, the class token first."""
        self.check_images(images)
        small, large = self._branches()
        return small(images), large(images)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 f"]:
        """Return the class tokens of both branches, each after its norm, concatenated to one token."""
        small, large = self.multi_scale_encoder(self.embed(images))
        small_branch, large_branch = self._branches()
        return torch.cat([small_branch.norm(small[:, :1]), large_branch.norm(large[:, :1])], dim=-1)

    def _branches(self) -> tuple[Branch, Branch]:
        small, large = self.branches
        return small, large  # type: ignore[return-value]

    def collect_layers(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int], *, stop_early: bool = False
    ) -> tuple[Tensor | None, list[Any]]:
        """Compute the final features and the outputs of layers, by the indices of `feature_info`."""
        depth = len(self.multi_scale_encoder)
        # The branches take turns, block by block.
        in_turn = sorted(layers, key=lambda index: (index % depth, index // depth))
        features, outputs = super().collect_layers(images, in_turn, stop_early=stop_early)
        found = dict(zip(in_turn, outputs, strict=False))
        return features, [found[index] for index in layers]

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b 1 d"], Sequence[int]]:
        """Return the patches and the class token of a branch, and the patches' grid."""
        branch: Any = self.branches[layer // len(self.multi_scale_encoder)]
        x = branch.norm(output) if norm else output
        return x[:, 1:], x[:, :1], branch.grid.fit(view_size(size, branch.full, branch.grid.size))

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier of each branch; the identity for no classes."""
        small, large = self._branches()
        head = MeanOfHeads(small.dim, large.dim, num_classes) if num_classes else nn.Identity()
        return head.to(next(self.branches.parameters()))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        return {
            "stem": r"^branches\.\d+\.(?:patch_embed|prefix|positions)\.",
            "blocks": [(r"^multi_scale_encoder\.(\d+)", None), (r"^branches\.\d+\.norm\.", (99999,))],
        }


class Branch(nn.Module):
    """What a branch has of its own: a view of the image, its embedding, and the norm after all blocks.

    Args:
        full: the largest input, (height, width) in pixels, of which `grid.size` is the view.
        stem: "linear" or "conv".
    """

    def __init__(
        self,
        grid: PatchGrid,
        channels: int,
        dim: int,
        *,
        full: Sequence[int],
        stem: str,
        dropout: float,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        check_choice("stem", stem, ("linear", "conv"))
        self.grid = grid
        self.dim = dim
        self.full = tuple(full)
        embed = ThreeConvolutions if stem == "conv" else PatchEmbed
        self.patch_embed = embed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=True)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(dropout)
        self.norm = norm(dim)

    @property
    def reduction(self) -> int:
        """Stride of the patches in pixels of the input, rounded."""
        return max(
            round(p * f / s) for p, f, s in zip(self.grid.patch, self.full, self.grid.size, strict=True)
        )

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images, the class token first."""
        images = resize_view(images, full=self.full, view=self.grid.size)
        grid = self.grid.fit(images.shape[2:])
        tokens = self.prefix(self.patch_embed(images))
        return self.dropout(self.positions(tokens, prefix=1, grid=grid))


def view_size(size: Sequence[int], full: Sequence[int], view: Sequence[int]) -> tuple[int, ...]:
    """Return the size of a branch's view of an input; that of the largest one, `full`, is `view`."""
    return tuple(s * v // f for s, v, f in zip(size, view, full, strict=True))


@fx_leaf
def resize_view(
    images: Float[Tensor, "b c h w"], full: Sequence[int], view: Sequence[int]
) -> Float[Tensor, "b c y x"]:
    """Resize images as a branch sees them, in the proportion of `full` to `view`."""
    if tuple(full) == tuple(view):
        return images
    size = view_size(images.shape[2:], full, view)
    return F.interpolate(images, size, mode="bicubic", align_corners=False)


class ThreeConvolutions(nn.Module):
    """Embed patches of 12 or of 16 pixels by three convolutions (section 4.1, the models with a dagger).

    Raises:
        ValueError: if the patch is of another size.
    """

    def __init__(self, grid: PatchGrid, channels: int, dim: int) -> None:
        super().__init__()
        patch = grid.patch[0]
        if grid.patch != (patch, patch) or patch not in STRIDES:
            raise ValueError(
                f"three convolutions make patches of {' or '.join(map(str, STRIDES))}, got {grid.patch}"
            )
        first, second, third = STRIDES[patch]
        self.proj = nn.Sequential(
            nn.Conv2d(channels, dim // 4, 7, first, 3),
            nn.ReLU(),
            nn.Conv2d(dim // 4, dim // 2, 3, second, padding=0 if second == 3 else 1),
            nn.ReLU(),
            nn.Conv2d(dim // 2, dim, 3, third, 1),
        )

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the grid."""
        return self.proj(images).flatten(2).transpose(1, 2)


class MultiScaleBlock(nn.Module):
    """Transformer blocks in each branch, then an exchange between the branches (figure 2).

    Args:
        small: blocks of the small branch.
        large: blocks of the large branch.
        fusions: what renews the class token of the small branch, and of the large one.
    """

    def __init__(self, small: nn.ModuleList, large: nn.ModuleList, fusions: nn.ModuleList) -> None:
        super().__init__()
        self.small = small
        self.large = large
        self.fusions = fusions

    def forward(self, tokens: Branches) -> Branches:
        """Transform the tokens of both branches."""
        small, large = tokens
        for block in self.small:
            small = block(small)
        for block in self.large:
            large = block(large)
        return self.fusions[0](small, large), self.fusions[1](large, small)


class CrossFusion(nn.Module):
    """Attention from a branch's class token to the other branch's patches (section 3.2, equations 3 to 5).

    The token is projected to the other branch's dimension, attends there, and is projected back.

    Args:
        dim: token dimension of the token's branch.
        other: token dimension of the other branch.
        turns: residual class attention, in the other branch's dimension, each on the patches as they came.
    """

    def __init__(
        self, dim: int, other: int, turns: nn.ModuleList, *, norm: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.project = nn.Sequential(norm(dim), nn.GELU(), nn.Linear(dim, other))
        self.turns = turns
        self.revert = nn.Sequential(norm(other), nn.GELU(), nn.Linear(other, dim))

    @layer
    def forward(
        self, tokens: Float[Tensor, "b n d"], others: Float[Tensor, "b m e"]
    ) -> Float[Tensor, "b n d"]:
        """Return the branch's tokens with the class token renewed."""
        token = self.project(tokens[:, :1])
        for turn in self.turns:
            token = turn(token, others[:, 1:])
        return torch.cat([self.revert(token), tokens[:, 1:]], dim=1)


class ClassTurn(nn.Module):
    """Attention from a class token to itself and to patches, added to the token."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.attention = CrossAttention(
            dim,
            heads=heads,
            dim_head=head_dim(dim, heads),
            qkv_bias=qkv_bias,
            dropout=dropout,
            kernel=partial(FusedAttention, attn_dropout),
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, token: Float[Tensor, "b 1 d"], patches: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b 1 d"]:
        """Return the token, changed."""
        normed = self.norm(torch.cat([token, patches], dim=1))
        return token + self.drop_path(self.attention(normed[:, :1], normed))


class MeanOfHeads(nn.Module):
    """The mean of the logits of two linear layers, one on the class token of each branch.

    Args:
        small_dim: dimension of the small branch's class token.
        large_dim: dimension of the large branch's class token.
    """

    def __init__(self, small_dim: int, large_dim: int, num_classes: int) -> None:
        super().__init__()
        self.dims = (small_dim, large_dim)
        self.small = nn.Linear(small_dim, num_classes)
        self.large = nn.Linear(large_dim, num_classes)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Classify a pair of concatenated class tokens."""
        small, large = x.split(self.dims, dim=-1)
        return (self.small(small) + self.large(large)) / 2
