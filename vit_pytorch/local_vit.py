"""LocalViT: Bringing Locality to Vision Transformers.

Y. Li, K. Zhang, J. Cao, R. Timofte, L. Van Gool 2021, arXiv:2104.05707.

The feed-forward of the patches is that of MobileNets: between its two linear layers is a depth-wise
convolution, so that neighbours in the grid mix, and an optional gate of the channels. The class token passes
it by.

Family: plain
Differs from the paper: nothing. As in the authors' code, the feed-forward has batch norms and no LayerNorm,
and a class token that is classified does not see what the last one does to the patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log2, prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import Attention, BlockInputs, FusedAttention, head_dim
from vit_pytorch.layers.blocks import DropPath, drop_path_rate, layer
from vit_pytorch.layers.conv import InvertedBottleneck, SqueezeExcite, pool_map
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions

Gate = Literal["se", "eca", "eca_hard", "none"]


class LocalViT(IsotropicModel):
    """The Vision Transformer with a convolution in its feed-forward.

    The authors number the variants: their `act` 1 is `act="relu6", gate="none"`, and 2 to 5 are
    "hardswish" with the gates "none", "se", "eca" and "eca_hard".

    Args:
        act: activation after the first linear layer and after the convolution: "hardswish", "relu6", or any
            other one of a feed-forward.
        gate: gate of the channels before the last linear layer: "se" for squeeze and excitation, "eca" for a
            convolution along the channels, "eca_hard" for that with the hard sigmoid, or "none".
        reduction: factor by which the hidden dimension of "se" is smaller than `mlp_dim`.
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
        class_token: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        if reduction > mlp_dim:
            raise ValueError(f"reduction must be at most mlp_dim={mlp_dim}, got {reduction}")
        gates: dict[str, Callable[[int], nn.Module] | None] = {
            "se": partial(SqueezeExcite, hidden_dim=mlp_dim // reduction, act="relu", hard=True),
            "eca": NeighbourGate,
            "eca_hard": partial(NeighbourGate, hard=True),
            "none": None,
        }
        check_choice("gate", gate, gates)
        class_token = class_token or pool == "cls"
        dim_head = head_dim(dim, heads) if dim_head is None else dim_head
        size: dict[str, Any] = {"heads": heads, "dim_head": dim_head}
        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, attn_dropout)
        bottleneck = partial(InvertedBottleneck, depthwise=_convolve_channels, act=act, excite=gates[gate])

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            LocalBlock(
                dim,
                Attention(dim, **size, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel),
                bottleneck(dim, dim, mlp_dim),
                norm=norm,
                drop_path=drop_path_rate(drop_path, index, depth),
            )
            for index in range(depth)
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the grid, in which the blocks find neighbours.

        Raises:
            ValueError: if patches are missing.
        """
        if ids_keep is not None:
            raise ValueError(
                f"LocalViT convolves the patches and needs all of them, got {ids_keep.shape[1]} kept ones"
            )
        return super().block_inputs(grid)


class LocalBlock(nn.Module):
    """Attention among all tokens, then a feed-forward on the map of the patches, each added to its input.

    The feed-forward has no norm before it and no stochastic depth. Prefix tokens pass it by.

    Args:
        feedforward: transforms a channels-last map.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attention = attention
        self.feedforward = feedforward
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs) -> Float[Tensor, "b n d"]:
        """Transform tokens, of which the patches are the last."""
        assert inputs.grid is not None
        x = x + self.drop_path(self.attention(self.norm1(x)))
        prefix = x.shape[1] - prod(inputs.grid)
        cells = x[:, prefix:].unflatten(1, inputs.grid)
        cells = cells + self.feedforward(cells)
        return torch.cat([x[:, :prefix], cells.flatten(1, 2)], dim=1)


class NeighbourGate(nn.Module):
    """Scale each channel by a gate computed from the means of its neighbours among the channels.

    ECA-Net, Wang et al. 2019, arXiv:1910.03151, section 3.2: one convolution along the channels, whose kernel
    is the odd number near (log2 of the dimension + 1) / 2.

    Args:
        hard: the gate is the hard sigmoid, relu6(x + 3) / 6.
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


def _convolve_channels(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
