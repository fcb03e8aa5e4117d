"""CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification.

C.-F. Chen, Q. Fan, R. Panda 2021, arXiv:2103.14899.

Two branches see the image in small and in large patches. After every few blocks the class token of each, as
the agent of its branch, attends to the patches of the other. The logits are the mean of the two branches'.

Family: multi-scale
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import Intermediates, VisionModel, resolve_indices
from vit_pytorch.layers_v01.attention import Attention, ClassAttention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import (
    Block,
    ClassResidual,
    Encoder,
    FeedForward,
    Residual,
    drop_path_rate,
    make_tail,
)
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens

Branches = tuple[Float[Tensor, "b n d"], Float[Tensor, "b m e"]]
STRIDES = {12: (4, 3, 1), 16: (4, 2, 2)}


class CrossViT(VisionModel):
    """The two-branch Vision Transformer with cross-attention.

    `forward_features` gives one token, the class tokens of both branches side by side, which is all that the
    head reads; the patches of either branch come from `forward_intermediates`.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; what the small branch sees.
        num_classes: number of logits; 0 gives the pooled embedding.
        depth: number of multi-scale blocks.
        sm_dim: width of a token of the small branch.
        sm_patch_size: size of its patches, one number or (height, width).
        sm_enc_depth: number of its transformer blocks in a multi-scale block.
        sm_enc_heads: number of its attention heads, each of width `sm_dim / sm_enc_heads`.
        sm_enc_mlp_dim: width inside its feed-forward.
        lg_dim: the same of the large branch.
        lg_patch_size: the same of the large branch.
        lg_enc_depth: the same of the large branch.
        lg_enc_heads: the same of the large branch.
        lg_enc_mlp_dim: the same of the large branch.
        cross_attn_depth: how often a class token attends to the other branch in a multi-scale block.
        cross_attn_heads: number of heads with which it does.
        channels: channels of the input.
        dropout: dropout after the linear layers of the blocks, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        lg_image_size: what the large branch sees of the largest input, by bicubic resizing; a smaller input
            is resized in proportion. None for no resizing.
        stem: "linear" projects patches, "conv" stacks three convolutions (the paper's dagger), for patches of
            12 and of 16.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide, or the stem does not know the patch.
    """

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

        def encoder(stage: int, dim: int, layers: int, heads: int, mlp_dim: int) -> Encoder:
            def block(layer: int) -> Block:
                attention = Attention(
                    dim,
                    heads=heads,
                    dim_head=width_of_head(dim, heads),
                    qkv_bias=qkv_bias,
                    dropout=dropout,
                    attend=attend,
                )
                feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
                tail = partial(make_tail, dim, drop_path=drop(stage, layer))
                return Block(Residual(attention, norm(dim), tail()), Residual(feedforward, norm(dim), tail()))

            return Encoder(block, depth=layers)

        def fusion(stage: int, dim: int, other: int) -> CrossFusion:
            def turn() -> ClassResidual:
                attention = ClassAttention(
                    other,
                    heads=cross_attn_heads,
                    dim_head=width_of_head(other, cross_attn_heads),
                    qkv_bias=qkv_bias,
                    dropout=dropout,
                    attend=attend,
                )
                tail = make_tail(other, drop_path=drop(stage, blocks - 1))
                return ClassResidual(attention, norm(other), tail)

            return CrossFusion(dim, other, [turn() for _ in range(cross_attn_depth)], norm_eps=norm_eps)

        def multi_scale_block(stage: int) -> MultiScaleBlock:
            return MultiScaleBlock(
                [
                    encoder(stage, sm_dim, sm_enc_depth, sm_enc_heads, sm_enc_mlp_dim),
                    encoder(stage, lg_dim, lg_enc_depth, lg_enc_heads, lg_enc_mlp_dim),
                ],
                [fusion(stage, sm_dim, lg_dim), fusion(stage, lg_dim, sm_dim)],
            )

        blocks = max(sm_enc_depth, lg_enc_depth)
        norm = partial(nn.LayerNorm, eps=norm_eps)
        attend = partial(FusedAttention, attn_dropout)

        def drop(stage: int, layer: int) -> float:
            return drop_path_rate(drop_path, stage * blocks + layer, depth * blocks)

        self.branches = nn.ModuleList(
            Branch(grid, channels, dim, full=small.size, stem=stem, dropout=emb_dropout, norm_eps=norm_eps)
            for grid, dim in ((small, sm_dim), (large, lg_dim))
        )
        self.multi_scale_encoder = Encoder(multi_scale_block, depth=depth)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens in front of the patches, in either branch."""
        return 1

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (stride in pixels), branch.

        First those of the small branch (0), by depth, then those of the large branch (1). The stride is that
        of the input, which the large branch may see resized.
        """
        return [
            {
                "module": f"multi_scale_encoder.blocks.{layer}",
                "num_chs": branch.dim,
                "reduction": branch.reduction,
                "branch": index,
            }
            for index, branch in enumerate(self.branches)
            for layer in range(len(self.multi_scale_encoder.blocks))
        ]

    def embed(self, images: Float[Tensor, "b c h w"]) -> Branches:
        """Turn images into the tokens of the small and of the large branch, the class token in front."""
        self.check_images(images)
        small, large = self.branches
        return small(images), large(images)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 f"]:
        """Compute the class tokens of both branches, each after its norm, side by side as one token."""
        return self.finish(self.multi_scale_encoder(self.embed(images)))

    def finish(self, tokens: Branches) -> Float[Tensor, "b 1 f"]:
        """Norm the class tokens of both branches and put them side by side."""
        branches: Iterable[Any] = self.branches
        return torch.cat([b.norm(x[:, :1]) for b, x in zip(branches, tokens, strict=True)], dim=-1)

    def forward_head(
        self, features: Float[Tensor, "b 1 f"], pre_logits: bool = False
    ) -> Float[Tensor, "b k"]:
        """Classify the pair of class tokens.

        Args:
            features: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.
        """
        return features[:, 0] if pre_logits else self.head(features[:, 0])

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
        """Compute a branch's features after the multi-scale blocks; see `VisionModel.forward_intermediates`.

        Indices are those of `feature_info`: the small branch by depth, then the large branch.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        depth = len(self.multi_scale_encoder.blocks)
        layers = resolve_indices(indices, 2 * depth)
        tokens = self.embed(images)
        taken: dict[int, Tensor] = {}
        for layer, after in enumerate(self.multi_scale_encoder.steps(tokens)):
            tokens = after
            taken |= {i: x for i, x in zip((layer, depth + layer), tokens, strict=True) if i in layers}
            if stop_early and len(taken) == len(layers):
                break
        maps, prefix = [], []
        for index in layers:
            branch: Any = self.branches[index // depth]
            x = branch.norm(taken[index]) if norm else taken[index]
            prefix.append(x[:, :1])
            x = x[:, 1:]
            grid = branch.grid.fit(branch.view_size(images.shape[2:]))
            maps.append(x.transpose(1, 2).unflatten(2, grid) if output_fmt == "NCHW" else x)
        found: Intermediates = list(zip(maps, prefix, strict=True)) if return_prefix_tokens else maps
        return found if intermediates_only else (self.finish(tokens), found)

    def get_classifier(self) -> nn.Module:
        """Give the layer that computes the logits; the identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "cls" (timm's "token"), there being no other.
        """
        if global_pool not in (None, "cls", "token"):
            raise ValueError(f"CrossViT classifies its class tokens, global_pool='cls'; got {global_pool!r}")
        branches: Iterable[Any] = self.branches
        self.head = MeanOfHeads([b.dim for b in branches], num_classes) if num_classes else nn.Identity()
        self.head.to(next(self.branches.parameters()))
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.multi_scale_encoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone."""
        tokens = {
            f"branches.{i}.{name}" for i in (0, 1) for name in ("prefix.class_token", "positions.table")
        }
        return tokens | ({"head.bias"} if self.num_classes else set())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth, as timm's tools read them."""
        return {
            "stem": r"^branches\.\d+\.(?:patch_embed|prefix|positions)\.",
            "blocks": [
                (r"^multi_scale_encoder\.blocks\.(\d+)", None),
                (r"^branches\.\d+\.norm\.", (99999,)),
            ],
        }


class Branch(nn.Module):
    """What a branch has of its own: a view of the image, its embedding, and the norm behind all blocks.

    Args:
        grid: how its view of the image is cut.
        channels: channels of the input.
        dim: width of a token.
        full: the largest input, (height, width) in pixels, of which `grid.size` is the view.
        stem: "linear" or "conv".
        dropout: dropout on the embedded tokens.
        norm_eps: epsilon of the norm.
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
        norm_eps: float,
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
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    @property
    def reduction(self) -> int:
        """Stride of the patches in pixels of the input, rounded."""
        return max(
            round(p * f / s) for p, f, s in zip(self.grid.patch, self.full, self.grid.size, strict=True)
        )

    def view_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Give the size at which an input of this size is seen."""
        return tuple(s * v // f for s, v, f in zip(size, self.grid.size, self.full, strict=True))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images, the class token in front."""
        size = self.view_size(images.shape[2:])
        grid = self.grid.fit(size)
        if size != images.shape[2:]:
            images = F.interpolate(images, size, mode="bicubic", align_corners=False)
        x = self.patch_embed(images) + self.positions(grid)
        token = self.prefix() + self.positions.for_prefix(1)
        return self.dropout(torch.cat([token.expand(x.shape[0], -1, -1), x], dim=1))


class ThreeConvolutions(nn.Module):
    """Embed patches of 12 or of 16 pixels by three convolutions (section 4.1, the models with a dagger).

    Args:
        grid: how the image is cut.
        channels: channels of the image.
        dim: width of a token.
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


class CrossFusion(nn.Module):
    """Let the class token of one branch attend to the patches of the other (section 3.2, equations 3 to 5).

    The token is projected to the other branch's width, gathers there, and is projected back.

    Args:
        dim: width of the token's branch.
        other: width of the other branch.
        turns: residual class attention of the other branch's width, each of which reads the patches anew.
        norm_eps: epsilon of the LayerNorms of the projections.
    """

    def __init__(self, dim: int, other: int, turns: Iterable[nn.Module], *, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(dim, eps=norm_eps), nn.GELU(), nn.Linear(dim, other))
        self.turns = nn.ModuleList(turns)
        self.revert = nn.Sequential(nn.LayerNorm(other, eps=norm_eps), nn.GELU(), nn.Linear(other, dim))

    def forward(
        self, tokens: Float[Tensor, "b n d"], others: Float[Tensor, "b m e"]
    ) -> Float[Tensor, "b n d"]:
        """Give the branch's tokens with the class token renewed."""
        token = self.project(tokens[:, :1])
        for turn in self.turns:
            token = turn(torch.cat([token, others[:, 1:]], dim=1))
        return torch.cat([self.revert(token), tokens[:, 1:]], dim=1)


class MultiScaleBlock(nn.Module):
    """Transformer blocks in each branch, then an exchange between the branches (figure 2).

    Args:
        encoders: the blocks of the small and of the large branch.
        fusions: what renews the class token of the small and of the large branch.
    """

    def __init__(self, encoders: Iterable[nn.Module], fusions: Iterable[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.fusions = nn.ModuleList(fusions)

    def forward(self, tokens: Branches) -> Branches:
        """Apply the blocks and the exchange to the tokens of both branches."""
        small, large = (encoder(x) for encoder, x in zip(self.encoders, tokens, strict=True))
        return self.fusions[0](small, large), self.fusions[1](large, small)


class MeanOfHeads(nn.Module):
    """The mean of the logits of two linear layers, one on the class token of each branch, in one product.

    Args:
        dims: widths of the two class tokens.
        num_classes: number of logits.
    """

    def __init__(self, dims: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.weight = nn.Parameter(torch.empty(num_classes, sum(dims)))
        self.bias = nn.Parameter(torch.zeros(2, num_classes))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Classify class tokens that stand side by side."""
        return F.linear(x, self.weight, self.bias.sum(dim=0)) / 2
