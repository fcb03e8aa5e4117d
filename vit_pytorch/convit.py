"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases.

S. d'Ascoli, H. Touvron, M. Leavitt, A. Morcos, G. Biroli, L. Sagun 2021, arXiv:2103.10697.

In the first layers a learned gate of each head weighs attention by content against attention by position,
which starts as a convolution: each head looks at one of the neighbours. The class token joins for the last
layers, which are plain.

Family: plain
Differs from the paper: nothing. The weights of attention, which sum to 1, are not divided by their sum, as in
the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isqrt, prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import TIMM_POOL
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import (
    Attention,
    BlockInputs,
    FusedAttention,
    Ids,
    Queries,
    attention_weights,
    head_dim,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate
from vit_pytorch.layers.offsets import cells, offsets
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.relative import CachedBias, crop_pairs


class ConViT(IsotropicModel):
    """ConViT.

    Args:
        local_layers: so many layers at the beginning have gated positional attention; the class token joins
            after them.
        locality_strength: how sharply their heads look at one neighbour at the start.

    Raises:
        ValueError: if there is no layer after those.
    """

    needs_all = "attends to neighbours"

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
        local_layers: int = 10,
        locality_strength: float = 1.0,
        qkv_bias: bool = False,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        if local_layers >= depth:
            raise ValueError(f"local_layers must be below depth={depth}, got {local_layers}")
        self.local_layers = local_layers
        dim_head = head_dim(dim, heads) if dim_head is None else dim_head
        norm = partial(nn.LayerNorm, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        for index in range(depth):
            local = index < local_layers
            attention = Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                dropout=dropout,
                kernel=partial(GatedKernel, heads, attn_dropout)
                if local
                else partial(FusedAttention, attn_dropout),
            )
            weights = OffsetWeights(grid.shape, heads, locality_strength) if local else None
            self.blocks.append(
                Block(
                    dim,
                    attention if weights is None else GatedPositionalAttention(attention, weights),
                    FeedForward(dim, mlp_dim, dropout=dropout),
                    norm=norm,
                    drop_path=drop_path_rate(drop_path, index, depth),
                )
            )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """None: the class token comes after the first layers."""
        return 0

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        return self.encode(self.embed(images), self.grid.fit(images.shape[2:]))

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b m d"]:
        """Apply the blocks and the final norm; see `IsotropicModel.encode`."""
        inputs = self.block_inputs(self.grid.shape if grid is None else grid, ids_keep)
        for block in self.blocks[: self.local_layers]:
            tokens = block(tokens, inputs)
        tokens = self.prefix(tokens)
        for block in self.blocks[self.local_layers :]:
            tokens = block(tokens)
        return self.norm(tokens)

    def split_output(
        self, output: Float[Tensor, "b n d"], layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Return the patches and the class token, if it has joined, in the output of a layer."""
        tokens = self.norm(output) if norm else output
        prefix = int(layer >= self.local_layers)
        return tokens[:, prefix:], tokens[:, :prefix], self.grid.fit(size)

    def change_pool(self, global_pool: str) -> None:
        """Pool by the class token or by the mean from now on."""
        pool = TIMM_POOL.get(global_pool, global_pool)
        check_choice("pool", pool, ("cls", "mean"))
        self.pool = pool
        self._record(pool=pool)


class GatedPositionalAttention(nn.Module):
    """Attention by content and by position, weighed by a gate of each head (section 3, equation 7).

    Values start as the tokens themselves, as those of a convolution.

    Args:
        attention: its kernel is a `GatedKernel`.
        weights: what each patch takes from each other by position.
    """

    def __init__(self, attention: Attention, weights: OffsetWeights) -> None:
        super().__init__()
        self.attention = attention
        self.weights = weights
        nn.init.eye_(attention.to_qkv.weight.data[2 * attention.heads * attention.dim_head :])

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs) -> Float[Tensor, "b n d"]:
        """Attend from each patch to all patches."""
        q, k, v = self.attention.project(x)
        return self.attention.merge(self.attention.kernel(q, k, v, self.weights(*(inputs.grid or ()))))


class OffsetWeights(CachedBias):
    """softmax over all patches of a function of their offset (equation 6): linear in x, y and x² + y².

    Args:
        grid: rows and columns of the largest grid.
        strength: how sharply a head looks at one neighbour at the start.
    """

    index: Tensor
    features: Tensor

    def __init__(self, grid: Sequence[int], heads: int, strength: float) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.linear = nn.Linear(3, heads)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        side = isqrt(heads)
        center = (side - 1) / 2 if side % 2 == 0 else side // 2
        with torch.no_grad():
            for head in range(side**2):
                x, y = 2 * (head // side - center), 2 * (head % side - center)
                # The highest score is that of the neighbour at (x, y) / 2.
                self.linear.weight[head] = torch.tensor([y, x, -1.0])
            self.linear.weight.mul_(strength)
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return x, y and their squares' sum of every offset, and the number of that of each pair."""
        places = cells(self.grid)
        every = cells([2 * extent - 1 for extent in self.grid])
        # from the query to the key
        away = (torch.tensor([extent - 1 for extent in self.grid]) - every).float()
        features = torch.cat([away.flip(1), away.square().sum(dim=1, keepdim=True)], dim=1)
        return {"features": features, "index": offsets(places, places, self.grid).flatten()}

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Compute the weights of all pairs of a grid, the largest or a smaller one."""
        scores = self.linear(self.features).T.index_select(1, self.index)
        scores = scores.unflatten(1, (prod(self.grid), prod(self.grid)))
        return (crop_pairs(scores, self.grid, window, 1) if window else scores).softmax(dim=-1)


class GatedKernel(nn.Module):
    """(1 - gate) softmax(q k^T * scale) + gate * positional weights, applied to the values (equation 7).

    Args:
        heads: number of heads, each with a gate, the sigmoid of a number that starts at 1.
    """

    def __init__(self, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(heads))
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Queries, k: Queries, v: Queries, positional: Float[Tensor, "h n n"]) -> Queries:
        """Attend from each patch to all patches."""
        gate = self.gate.sigmoid()[:, None, None]
        weights = (1 - gate) * attention_weights(q, k) + gate * positional
        return self.dropout(self.weights(weights)) @ v
