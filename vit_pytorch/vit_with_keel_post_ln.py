"""Post-LayerNorm Is Back: Stable, ExpressivE, and Deep.

C. Chen, L. Wei 2026, arXiv:2601.19895.

"Keel": the sum of a branch and its input is normed, as in the first transformers, but the input counts many
times as much as the branch, whose own input is normed, too. Gradients reach the first layers so.

Family: plain
Differs from the paper: it is a ViT (arXiv:2010.11929) instead of a language model; norms are LayerNorms,
patches are normed before and after their projection, and queries, keys and values have no biases, as in the
public vit-pytorch package. The norms of blocks have biases; those of that package's weights are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, layer, plain_blocks
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions


class KeelViT(IsotropicModel):
    """The Vision Transformer with Keel's norms.

    Args:
        keel_residual_scale: factor on the input of every layer but the first; default the number of layers,
            attention and feed-forward counted by themselves.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        keel_residual_scale: float | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.prefix = PrefixTokens(dim, class_token=pool == "cls")
        self.positions = LearnedPositions(grid.shape, dim, prefix=len(self.prefix))
        self.dropout = nn.Dropout(emb_dropout)
        scale = 2 * depth if keel_residual_scale is None else keel_residual_scale
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            attn_dropout=dropout,
            qkv_bias=False,
            block=partial(KeelBlock, residual_scale=scale),
        )
        # The first layer of all is an ordinary one.
        first = self.blocks[0]
        assert isinstance(first, KeelBlock)
        first.post_norm1 = None
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens, the class token first; the last block has normed them."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class KeelBlock(Block):
    """A block whose sums are normed: x = norm(scale x + branch(norm(x))).

    Args:
        residual_scale: factor on the input.
    """

    post_norm1: nn.Module | None

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        residual_scale: float,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        **options: Any,
    ) -> None:
        super().__init__(dim, attention, feedforward, norm=norm, **options)
        self.residual_scale = residual_scale
        self.post_norm1 = norm(dim)
        self.post_norm2 = norm(dim)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens."""
        update = self.drop_path(self.attention(self.norm1(x), inputs))
        x = x + update if self.post_norm1 is None else self.post_norm1(self.residual_scale * x + update)
        return self.post_norm2(self.residual_scale * x + self.drop_path(self.feedforward(self.norm2(x))))


ViT = KeelViT
