"""LocalViT: Bringing Locality to Vision Transformers.

Y. Li, K. Zhang, J. Cao, R. Timofte, L. Van Gool 2021, arXiv:2104.05707.

The feed-forward of the patches is that of MobileNets: a depth-wise convolution stands between its two linear
layers, so that neighbours in the grid mix, and a gate may weigh the channels. The class token passes it by.

Family: plain
Differs from the paper: nothing. As in the authors' code, the feed-forward has batch norms and no LayerNorm,
and what the last one does to the patches is not seen by a class token that is classified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log2, prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel, has_class_token
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.conv import InvertedBottleneck, SqueezeExcite, pool_map
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens

Gate = Literal["se", "eca", "eca_hard", "none"]


class NeighbourGate(nn.Module):
    """Scale each channel by a gate computed from the means of its neighbours among the channels.

    ECA-Net, Wang et al. 2019, arXiv:1910.03151, section 3.2: one convolution along the channels, whose kernel
    is the odd number near (log2 of the width + 1) / 2.

    Args:
        dim: channels of the map.
        hard: whether the gate is the hard sigmoid, relu6(x + 3) / 6.
    """

    def __init__(self, dim: int, *, hard: bool = False) -> None:
        super().__init__()
        near = int((log2(dim) + 1) / 2)
        kernel = near if near % 2 else near + 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.gate = nn.Hardsigmoid() if hard else nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Scale the channels of a channels-first map."""
        gate = self.gate(self.conv(pool_map(x)[:, None]))
        return x * gate.transpose(1, 2)[..., None]


class PatchResidual(Residual):
    """The residual of the patches as a map; prefix tokens stay as they are."""

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Add the branch to the patches.

        Args:
            x: tokens, the patches last.
            context: the grid, patches along each axis.
        """
        (grid,) = context
        prefix = x.shape[1] - prod(grid)
        cells = super().forward(x[:, prefix:].unflatten(1, tuple(grid)))
        return torch.cat([x[:, :prefix], cells.flatten(1, 2)], dim=1)


class LocalBlock(Block):
    """A block whose feed-forward knows the grid, and whose attention does not."""

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Apply both residual branches; the feed-forward is handed the context."""
        return self.feedforward(self.attention(x), *context)


class LocalViT(IsotropicModel):
    """The Vision Transformer with a convolution in its feed-forward.

    The authors number what the feed-forward has: their `act` 1 is `act="relu6", gate="none"`, and 2 to 5 are
    "hardswish" with the gates "none", "se", "eca" and "eca_hard".

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        channels: channels of the input.
        dropout: dropout on the attention's output, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        dim_head: width of a head; `dim / heads` unless told.
        act: activation behind the first linear layer and behind the convolution: "hardswish" or "relu6", or
            any other of a feed-forward.
        gate: what weighs the channels before the last linear layer: "se" for squeeze and excitation, "eca"
            for a convolution along the channels, "eca_hard" for that with the hard sigmoid, or "none".
        reduction: the factor by which the inner width of "se" is smaller than `mlp_dim`.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop the attention of the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.
        class_token: whether there is a class token; None means where `pool` is "cls".

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
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
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pool: Literal["cls", "mean"] = "cls",
        dim_head: int | None = None,
        act: str = "hardswish",
        gate: Gate = "se",
        reduction: int = 4,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        class_token: bool | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        if not 1 <= reduction <= mlp_dim:
            raise ValueError(f"reduction is between 1 and mlp_dim, {mlp_dim}; got {reduction}")
        gates: dict[str, Callable[[int], nn.Module] | None] = {
            "se": partial(SqueezeExcite, hidden_dim=mlp_dim // reduction, act="relu", hard=True),
            "eca": NeighbourGate,
            "eca_hard": partial(NeighbourGate, hard=True),
            "none": None,
        }
        check_choice("gate", gate, gates)
        class_token = has_class_token(pool, class_token)
        width = width_of_head(dim, heads) if dim_head is None else dim_head

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> LocalBlock:
            attention = Attention(
                dim,
                heads=heads,
                dim_head=width,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            local = InvertedBottleneck(
                dim, dim, mlp_dim, depthwise=_convolve_channels, act=act, excite=gates[gate]
            )
            tail = make_tail(dim, drop_path=drop_path_rate(drop_path, layer, depth))
            return LocalBlock(
                Residual(attention, nn.LayerNorm(dim, eps=norm_eps), tail),
                PatchResidual(local, nn.Identity()),
            )

        self.encoder = Encoder(block, depth=depth)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.reset_classifier(num_classes)

    def context(self, grid: Sequence[int], kept: Int[Tensor, "b k"] | None = None) -> tuple[Any, ...]:
        """Give the grid, in which the blocks find neighbours.

        Raises:
            ValueError: where patches are missing.
        """
        if kept is not None:
            raise ValueError(
                f"LocalViT convolves the patches and needs all of them, got {kept.shape[1]} that were kept"
            )
        return (grid,)


def _convolve_channels(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
