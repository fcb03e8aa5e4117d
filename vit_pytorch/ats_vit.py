"""Adaptive Token Sampling for Efficient Vision Transformers.

M. Fayyaz, S. Abbasi Koohpayegani, F. Rezaei Jafari, S. Sengupta et al. 2021, arXiv:2111.15667.

Layers keep the patches that matter to the class token, as many as the image asks for: scores from the class
token's attention and the size of the values are sampled by inverse transform at fixed, even steps, and a
patch sampled twice is kept once. Nothing is learned for it, so the weights are those of a plain ViT or DeiT.

Family: plain
Differs from the paper: follows the authors' code, whose steps run from the lowest score kept up to 1 instead
of between the ends, whose norm is that of all heads' values together, and in which the first sampling never
keeps the lowest score. Their code loses the lowest score again wherever cutting empty slots leaves a sample
none, so that logits depend on the batch; here they do not. There, a maximum below the number of tokens does
not run; here it is the number of steps. The video models are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    Ids,
    Queries,
    attention_weights,
)
from vit_pytorch.layers.blocks import Block, fx_leaf, is_tracing, layer, plain_blocks, static_size
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions


class ATSViT(IsotropicModel):
    """A Vision Transformer that keeps fewer patches from layer to layer, as many as the image asks for.

    Its features are the class token and slots for patches, in the order of score at the last sampling. A slot
    that stays empty (-1 among the sampled ids) has no meaning and nothing sees it.

    Args:
        max_tokens_per_depth: for each block, the most patches that leave it if it samples; at least 1.
        ats_layers: indices of the blocks that sample; default those that more patches enter than their
            maximum. The paper's models sample from block 3 on, at as many steps as there are patches.
        drop_tokens: cut off slots that are empty in the whole batch. It saves time and computes the same
            to rounding. Compiled and exported graphs keep all slots, since their shapes are fixed.

    Raises:
        ValueError: if sizes do not divide, or the layers' maxima do not fit the depth.
    """

    needs_last_layers = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        max_tokens_per_depth: Sequence[int],
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
        dim_head: int = 64,
        ats_layers: Sequence[int] | None = None,
        drop_tokens: bool = False,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels)
        if len(max_tokens_per_depth) != depth:
            raise ValueError(
                f"max_tokens_per_depth must be one number for each of {depth} blocks, "
                f"got {tuple(max_tokens_per_depth)}"
            )
        if max(ats_layers or [0]) >= depth:
            raise ValueError(f"ats_layers must be in [0, {depth - 1}], got {tuple(ats_layers or ())}")
        self.max_tokens = tuple(max_tokens_per_depth)
        self.ats_layers = None if ats_layers is None else tuple(ats_layers)
        norm = partial(nn.LayerNorm, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
            qkv_bias=qkv_bias,
            norm=norm,
            block=partial(SamplingBlock, drop_tokens=drop_tokens),
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m d"]:
        """Return the class token and the slots for patches, after the final norm."""
        return self.encode(self.embed(images), self.grid.fit(images.shape[2:]))

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b m d"]:
        """Apply the blocks and the final norm; see `IsotropicModel.encode`."""
        patches = prod(self.grid.shape if grid is None else grid)
        tokens, _ = self.sample(tokens, patches if ids_keep is None else ids_keep.shape[1])
        return tokens

    def sample(
        self, tokens: Float[Tensor, "b n d"], patches: int
    ) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b m"] | None]:
        """Apply the blocks, some of which sample, and the final norm (section 3).

        Returns:
            The tokens that are kept, and what they are (see `SamplingBlock`); None if no block samples.
        """
        ids, inputs = None, NO_INPUTS
        for block, points in zip(self.blocks, self.plan(patches), strict=True):
            if points is None:
                tokens = block(tokens, inputs)
            else:
                tokens, ids = block(tokens, inputs, ids, points)
                inputs = BlockInputs(mask=(ids >= 0)[:, None, None])
        return self.norm(tokens), ids

    def plan(self, patches: int) -> list[int | None]:
        """Return the number of steps that each block samples at, None for those that keep all tokens.

        Args:
            patches: number of patches that enter the first block; the most steps there are.
        """
        steps: list[int | None] = []
        (patches,) = static_size([patches])
        held = patches
        for index, most in enumerate(self.max_tokens):
            samples = held > most if self.ats_layers is None else index in self.ats_layers
            steps.append(min(most, patches) if samples else None)
            held = min(held, most) if samples else held
        return steps

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is; blocks from the first that samples on have no map."""
        plan = self.plan(self.grid.num_patches)
        whole = next((layer for layer, points in enumerate(plan) if points is not None), len(plan))
        return super().feature_info[:whole]

    @overload
    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]: ...

    @overload
    def forward(
        self, images: Float[Tensor, "b c h w"], return_sampled_token_ids: Literal[True]
    ) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b m"]]: ...

    def forward(self, images: Float[Tensor, "b c h w"], return_sampled_token_ids: bool = False) -> Any:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            return_sampled_token_ids: return the patches that are left, too: their numbers in row-major
                order from 0, in the order of score, then -1 for empty slots.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes.
        """
        # An identity, since FX traces with arguments that have no truth value.
        if return_sampled_token_ids is not True:
            return super().forward(images)
        tokens, ids = self.sample(self.embed(images), prod(self.grid.fit(images.shape[2:])))
        if ids is None:
            ids = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
        return self.forward_head(tokens), (ids[:, 1:] - 1).clamp(min=-1)

    # Only by the class token: the other slots may be empty.
    change_pool = VisionModel.change_pool


class SamplingBlock(Block):
    """A transformer block that may drop tokens: only those sampled get the attention's update.

    Args:
        drop_tokens: cut off slots that are empty in all samples.
    """

    def __init__(
        self, dim: int, attention: Attention, feedforward: nn.Module, *, drop_tokens: bool, **options: Any
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.drop_tokens = drop_tokens

    @layer
    def forward(
        self,
        x: Float[Tensor, "b n d"],
        inputs: BlockInputs = NO_INPUTS,
        ids: Int[Tensor, "b n"] | None = None,
        points: int | None = None,
    ) -> Any:
        """Transform tokens; with `points`, sample them, and return what they are, too.

        Args:
            x: tokens, the class token first.
            ids: what the tokens are: 0 is the class token, patches follow, -1 marks an empty slot; None while
                nothing has been removed.
            points: number of steps to sample at; default none, which keeps all tokens.
        """
        attention: Any = self.attention
        q, k, v = attention.project(self.norm1(x))
        if points is not None:
            places = sample_places(score_tokens(q, k, v, inputs.mask), points, intact=ids is None)
            if self.drop_tokens and not is_tracing(x):
                places = places[:, : int((places >= 0).sum(dim=1).max())]
            # An empty slot holds the class token again, unseen.
            rows = F.pad(places + 1, (1, 0))
            ids = rows if ids is None else ids.gather(1, rows)
            ids = ids.masked_fill(F.pad(places, (1, 0)) < 0, -1)
            x = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
            q = q.gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
        x = x + self.drop_path(self.scale1(attention.merge(attention.attend(q, k, v, inputs))))
        x = x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))
        return x if points is None else (x, ids)


@fx_leaf
def score_tokens(q: Queries, k: Queries, v: Queries, mask: Tensor | None = None) -> Float[Tensor, "b p"]:
    """Score all tokens but the class token: its attention to them times their values' norm (section 3.1).

    The attention is summed over heads, the norm is that of the heads' values together. No gradient flows.

    Args:
        q: queries, the class token's first.
        v: values.
        mask: true where there is a token; the others score 0.
    """
    seen = attention_weights(q[:, :, :1].detach().float(), k.detach().float(), mask=mask)[:, :, 0].sum(dim=1)
    size = v.detach().float().square().sum(dim=(1, 3)).sqrt()
    return (seen * size)[:, 1:]


@fx_leaf
def sample_places(scores: Float[Tensor, "b p"], points: int, *, intact: bool) -> Int[Tensor, "b m"]:
    """Sample by inverse transform, at even steps of the scores' cumulative distribution (section 3.2).

    Args:
        scores: at least 0; 0 where there is no token.
        points: number of steps; the last is at 1.
        intact: nothing has been removed yet. The distribution starts at its lowest entry then, which is
            therefore never sampled, and at 0 afterwards.

    Returns:
        Places in the order of score, each once, then -1 for slots that stay empty; m = min(points, p).
    """
    scores, order = scores.sort(dim=1)
    cdf = scores.cumsum(dim=1)
    start = cdf[:, :1] if intact else torch.zeros_like(cdf[:, :1])
    lowest = cdf.masked_fill(cdf <= start, torch.inf).amin(dim=1, keepdim=True)
    # From the top, so that a single step is at 1.
    steps = torch.linspace(1, 0, points, device=cdf.device).flip(0)
    grid = lowest + steps * (cdf[:, -1:] - lowest)
    middles = (cdf[:, 1:] + cdf[:, :-1]) / 2
    nearest = (middles[:, None] < grid[:, :, None]).sum(dim=2)
    again = F.pad(nearest[:, 1:] == nearest[:, :-1], (1, 0))
    once = nearest.masked_fill(again, cdf.shape[1]).sort(dim=1).values[:, : cdf.shape[1]]
    return F.pad(order, (0, 1), value=-1).gather(1, once)


ViT = ATSViT
