"""XCiT: Cross-Covariance Image Transformers.

A. El-Nouby, H. Touvron, M. Caron, P. Bojanowski, M. Douze, A. Joulin et al. 2021, arXiv:2106.09681.

Attention mixes channels instead of tokens, by the cross-covariance of keys and queries, so that its cost
is linear in the number of tokens; depth-wise convolutions let neighbouring patches interact; a class token
joins after these layers and gathers what it needs by class attention.

Family: plain
Differs from the paper: as in the authors' code, the class attention stage changes the patches, too, and
the temperature multiplies the scores instead of dividing them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    CrossAttention,
    CrossCovariance,
    FusedAttention,
    Ids,
    head_dim,
)
from vit_pytorch.layers.blocks import Block, DropPath, FeedForward, LayerScale, layer
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import ConvStem, PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import FourierPositions, LearnedPositions


class XCiT(IsotropicModel):
    """The cross-covariance image transformer.

    Args:
        depth: number of blocks with cross-covariance attention.
        layer_dropout: probability of dropping a residual branch of the cross-covariance blocks for a sample,
            in training, in [0, 1); the same in all blocks.
        local_patch_kernel_size: kernel size of the local patch interaction, odd.
        eta: initial value of LayerScale's factors; the paper's is 1 at depth 12 and 1e-5 at depth 24.
        tokens_norm: the second norm of a class-attention block acts on the patches, too, as in all of the
            paper's models except the nano ones.
        stem: "conv" stacks 3 x 3 convolutions, for patches that are a power of two; "linear" projects
            patches.
        positions: "fourier", "learned" or "none".
    """

    needs_all = "mixes neighbours"
    undecayed = IsotropicModel.undecayed + r"|^positions\.proj\.weight$"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        cls_depth: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        local_patch_kernel_size: int = 3,
        channels: int = 3,
        dim_head: int | None = None,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        eta: float = 1.0,
        tokens_norm: bool = True,
        norm_eps: float = 1e-6,
        stem: Literal["conv", "linear"] = "conv",
        positions: Literal["fourier", "learned", "none"] = "fourier",
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels)
        check_choice("stem", stem, ("conv", "linear"))
        check_choice("positions", positions, ("fourier", "learned", "none"))
        sizes: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head or head_dim(dim, heads),
            "qkv_bias": qkv_bias,
            "dropout": dropout,
        }
        norm = partial(nn.LayerNorm, eps=norm_eps)

        if stem == "conv":
            self.patch_embed = ConvStem(grid, channels, dim, project=False)
        else:
            self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=True)
        if positions == "fourier":
            self.positions = FourierPositions(grid.shape, dim)
        elif positions == "learned":
            self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            XCiTBlock(
                dim,
                Attention(dim, **sizes, kernel=partial(CrossCovariance, heads, attn_dropout)),
                LocalPatchInteraction(dim, local_patch_kernel_size),
                FeedForward(dim, mlp_dim, dropout=dropout),
                norm=norm,
                layer_scale=eta,
                drop_path=layer_dropout,
            )
            for _ in range(depth)
        )
        self.class_blocks = nn.ModuleList(
            ClassBlock(
                dim,
                CrossAttention(dim, **sizes, kernel=partial(FusedAttention, attn_dropout)),
                FeedForward(dim, mlp_dim, dropout=dropout),
                norm=norm,
                layer_scale=eta,
                tokens_norm=tokens_norm,
            )
            for _ in range(cls_depth)
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """None: the class token comes after the patches' blocks."""
        return 0

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        return self.encode(self.embed(images), self.grid.fit(images.shape[2:]))

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b m d"]:
        """Apply the blocks, class attention and the final norm; see `IsotropicModel.encode`."""
        inputs = self.block_inputs(self.grid.shape if grid is None else grid, ids_keep)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        tokens = self.prefix(tokens)
        for block in self.class_blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, class attention after the patches' blocks."""
        return {
            "stem": r"^(?:prefix|positions|patch_embed)\.",
            "blocks": r"^blocks\.(\d+)",
            "class_blocks": [(r"^class_blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }


class LocalPatchInteraction(nn.Module):
    """Two depth-wise convolutions with GELU and batch norm between them (section 3.3).

    Args:
        kernel_size: size of the kernels, odd.

    Raises:
        ValueError: if the size is even.
    """

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"local_patch_kernel_size must be odd, got {kernel_size}")
        conv = partial(nn.Conv2d, dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.conv_in = conv()
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim)
        self.conv_out = conv()

    def forward(self, x: Float[Tensor, "b n d"], grid: Sequence[int]) -> Float[Tensor, "b n d"]:
        """Mix each token with its neighbours in the grid."""
        x = x.transpose(1, 2).unflatten(2, tuple(grid))
        return self.conv_out(self.norm(self.act(self.conv_in(x)))).flatten(2).transpose(1, 2)


class XCiTBlock(nn.Module):
    """Cross-covariance attention, local patch interaction and a feed-forward, each added to its input.

    Args:
        local: mixes neighbouring tokens.
        layer_scale: initial value of LayerScale's factors.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        local: nn.Module,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module],
        layer_scale: float,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attention = attention
        self.scale1 = LayerScale(dim, layer_scale)
        self.norm3 = norm(dim)
        self.local = local
        self.scale3 = LayerScale(dim, layer_scale)
        self.norm2 = norm(dim)
        self.feedforward = feedforward
        self.scale2 = LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs) -> Float[Tensor, "b n d"]:
        """Transform the tokens of a grid (figure 1)."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x))))
        x = x + self.drop_path(self.scale3(self.local(self.norm3(x), inputs.grid)))
        return x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))


class ClassBlock(Block):
    """Class attention and a feed-forward for the class token; the patches change, too (section 3.3).

    The patches gain their own normed values, scaled, and are doubled after the second norm, as in the
    authors' code, which the published weights need.

    Args:
        attention: from the class token to all tokens.
        tokens_norm: the second norm acts on all tokens instead of on the class token only.
    """

    def __init__(
        self, dim: int, attention: nn.Module, feedforward: nn.Module, *, tokens_norm: bool, **options: Any
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.tokens_norm = tokens_norm

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Update all tokens, the class token first."""
        normed = self.norm1(x)
        token = self.attention(normed[:, :1], normed)
        x = x + self.scale1(torch.cat([token, normed[:, 1:]], dim=1))
        if self.tokens_norm:
            x = self.norm2(x)
        token = x[:, :1] if self.tokens_norm else self.norm2(x[:, :1])
        token = token + self.scale2(self.feedforward(token))
        return torch.cat([token, 2 * x[:, 1:]], dim=1)
