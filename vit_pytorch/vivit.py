"""ViViT: A Video Vision Transformer.

A. Arnab, M. Dehghani, G. Heigold, C. Sun, M. Lučić, C. Schmid 2021, arXiv:2103.15691.

Cuts a video into tubelets of a few frames, and factorises attention over space and time in three ways: first
an encoder of each frame, then one of the frames (model 2); in each block first over space, then over time
(model 3); or in half of the heads over space and in the other half over time (model 4). Model 1 does neither.

Family: plain
Differs from the paper: nothing; where it leaves a choice, its code's is taken: models 3 and 4 have no class
token, and in model 2 the encoders of space and of time each have a class token, positions and a final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel, MaskedFrames
from vit_pytorch.layers.attention import Attention, BlockInputs, FusedAttention
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import MaskFn, PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.space_time import (
    SpaceAndTimeAttention,
    SpaceAttention,
    SpaceTimeBlock,
    TimeAttention,
    mask_in_time,
    mask_of_keys,
    zero_padding,
)

Pool = Literal["cls", "mean"]
Variant = Literal["joint", "factorized_encoder", "factorized_self_attention", "factorized_dot_product"]
# What attends in a block; in model 2, in one over space.
ATTENTION: dict[str, tuple[type[Attention], ...]] = {
    "joint": (Attention,),
    "factorized_encoder": (SpaceAttention,),
    "factorized_self_attention": (SpaceAttention, TimeAttention),
    "factorized_dot_product": (SpaceAndTimeAttention,),
}
HAVE_CLASS_TOKEN = ("joint", "factorized_encoder")


class ViViT(MaskedFrames, IsotropicModel):
    """The Video Vision Transformer, on videos (b c t h w).

    An input may have fewer frames than `frames` and be smaller than `image_size`: tokens have the positions
    of the same places in the full grid. Maps of `forward_intermediates` have the axes (b d t h w); those of
    the encoder of frames in model 2 have one cell per frame.

    Args:
        spatial_depth: number of blocks: over space in model 2, in all otherwise.
        temporal_depth: number of blocks over time in model 2; otherwise `spatial_depth`, or None.
        variant: "joint" (the paper's model 1), "factorized_encoder" (2), "factorized_self_attention" (3) or
            "factorized_dot_product" (4).
        pool: "cls" classifies a class token, "mean" the mean of the patches, or of the frames in model 2,
            where a frame is the mean of its patches then; default "cls" in models 1 and 2 and "mean" in
            models 3 and 4, which have no class token.
        drop_path: probability of dropping a residual branch at the last block, in [0, 1); rises linearly
            from 0, in each of the two encoders of model 2.
        act: activation of the feed-forward; the paper's code uses the tanh approximation of GELU.

    Attributes:
        blocks: the layers; in model 2 those over space, then those over time.
        spatial_depth: number of blocks before `temporal_embed`, or of all blocks.
        temporal_embed: leads from space to time in model 2; None in the other models.
    """

    undecayed = IsotropicModel.undecayed + r"|^temporal_embed\.(prefix\.class_token|positions\.table)$"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        frames: int,
        image_patch_size: int | Sequence[int],
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        spatial_depth: int,
        temporal_depth: int | None = None,
        heads: int,
        mlp_dim: int,
        variant: Variant = "factorized_encoder",
        pool: Pool | None = None,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        act: str = "gelu_tanh",
        norm_eps: float = 1e-6,
    ) -> None:
        _check_options(variant, spatial_depth, temporal_depth, pool)
        if pool is None:
            pool = "cls" if variant in HAVE_CLASS_TOKEN else "mean"
        check_choice("pool", pool, ("cls", "mean"))
        grid = PatchGrid((frames, *pair(image_size)), (frame_patch_size, *pair(image_patch_size)))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        warn_if_few(grid)
        self.variant = variant
        self.spatial_depth = spatial_depth
        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, attn_dropout)
        heads_of: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "qkv_bias": qkv_bias}

        def build(kinds: Sequence[type[Attention]], depth: int) -> nn.ModuleList:
            blocks = nn.ModuleList()
            for index in range(depth):
                parts = [kind(dim, **heads_of, dropout=dropout, kernel=kernel) for kind in kinds]
                feedforward = FeedForward(dim, mlp_dim, dropout=dropout, act=act)
                rate = drop_path_rate(drop_path, index, depth)
                block: Any = Block if len(parts) == 1 else SpaceTimeBlock
                blocks.append(block(dim, *parts, feedforward, norm=norm, drop_path=rate))
            return blocks

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=pool == "cls")
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = build(ATTENTION[variant], spatial_depth)
        self.temporal_embed: TemporalEmbed | None = None
        if variant == "factorized_encoder":
            self.blocks += build((Attention,), temporal_depth or 0)
            # The order of parameters, by which optimizer states name them, is that of version 0.1.
            del self.norm, self.head
            self.temporal_embed = TemporalEmbed(
                dim, grid.shape[0], norm=norm, class_token=pool == "cls", dropout=emb_dropout
            )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)
        cells = grid.shape[1:] if variant == "factorized_encoder" else grid.shape
        self.positions = LearnedPositions(cells, dim, prefix=len(self.prefix))

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """Number of prefix tokens before the sequence: none in model 2, whose frames have their own."""
        return 0 if self.variant == "factorized_encoder" else self.num_prefix_tokens

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (pixels in space), reductions."""
        infos = super().feature_info
        whole = (self.grid.patch[0], *self.grid.size[1:])
        for info in infos[self.spatial_depth :]:
            info.update(reduction=max(whole[1:]), reductions=whole)
        return infos

    def forward_features(
        self, images: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first; those of the frames in model 2.

        The tokens of padding are there, and no other token attends to them.
        """
        tokens, keys = self.embed(images), None
        if mask is not None:
            keys = mask_of_keys(mask, images, self.grid, self.num_encoder_prefix_tokens)
            tokens = zero_padding(tokens, keys)
        return self.encode(tokens, self.grid.fit(images.shape[2:]), mask=keys)

    def embed(
        self, images: Float[Tensor, "b c t h w"], *, mask_fn: MaskFn | None = None, add_positions: bool = True
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the blocks; see `IsotropicModel.embed`.

        In model 2 all frames share their positions, and class tokens come later.
        """
        if self.temporal_embed is None:
            return super().embed(images, mask_fn=mask_fn, add_positions=add_positions)
        self.check_images(images)
        cells = self.grid.fit(images.shape[2:])[1:]
        x = self.patch_embed(images)
        if mask_fn is not None:
            x = mask_fn(x)
        if add_positions:
            assert self.positions is not None
            frames = x.unflatten(1, (-1, prod(cells)))
            x = self.positions(frames, prefix=0, grid=cells).flatten(1, 2)
        return self.dropout(x)

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Int[Tensor, "b k"] | None = None,
        mask: Bool[Tensor, "b 1 1 n"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Apply the blocks and the final norm (section 3.3).

        Args:
            ids_keep: see `IsotropicModel.encode`; None unless attention is joint.
            mask: true for tokens that are no padding; default all of them.
        """
        inputs = replace(self.block_inputs(grid or self.grid.shape, ids_keep), mask=mask)
        if self.temporal_embed is not None:
            return self.encode_frames(tokens, grid or self.grid.shape, mask)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def encode_frames(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int], mask: Bool[Tensor, "b 1 1 n"] | None
    ) -> Float[Tensor, "b m d"]:
        """Encode each frame, then the sequence of frames (model 2)."""
        assert self.temporal_embed is not None
        assert self.positions is not None
        time, places, prefix = grid[0], prod(grid[1:]), self.num_prefix_tokens
        first = self.prefix(tokens[:, :0]) + self.positions.for_prefix(prefix)
        frames = tokens.unflatten(1, (time, places))
        frames = torch.cat([first[:, None].expand(-1, time, -1, -1), frames], dim=2).flatten(1, 2)
        for block in self.blocks[: self.spatial_depth]:
            frames = block(frames, BlockInputs((time, prefix + places)))
        frames = self.temporal_embed(frames.unflatten(1, (time, -1)), grid=(time,))
        for block in self.blocks[self.spatial_depth :]:
            frames = block(frames, BlockInputs(mask=mask_in_time(mask, places, prefix=prefix)))
        return self.norm(frames)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block; see `IsotropicModel.block_inputs`.

        Raises:
            ValueError: if some patches are left out and attention is factorised.
        """
        if ids_keep is not None and self.variant != "joint":
            raise ValueError(f"ViViT with variant={self.variant!r} needs the patches of whole frames")
        return super().block_inputs(grid, ids_keep)

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Return the patches and the prefix tokens in the output of a block, and the patches' grid.

        In model 2 the prefix tokens of a block over space are those of all frames, and the norm is the one of
        the block's own encoder.
        """
        if self.temporal_embed is None:
            return super().split_output(output, layer, size, norm=norm)
        over_space, grid = layer < self.spatial_depth, self.grid.fit(size)
        if norm:
            output = self.temporal_embed.norm(output) if over_space else self.norm(output)
        sequences = output.unflatten(1, (grid[0] if over_space else 1, -1))
        prefix, patches = (
            part.flatten(1, 2) for part in sequences.tensor_split([self.num_prefix_tokens], dim=2)
        )
        return patches, prefix, grid if over_space else (grid[0], 1, 1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, `temporal_embed` between space and time."""
        groups = super().group_matcher(coarse)
        between = (r"^temporal_embed\.", (self.spatial_depth - 0.5,))
        groups["blocks"] = [groups["blocks"][0], between, *groups["blocks"][1:]]
        return groups

    def change_pool(self, global_pool: str) -> None:
        """Refuse another pooling: with it, the model would have other tokens."""
        raise ValueError(f"ViViT's pooling is chosen at construction: {self.pool!r}, not {global_pool!r}")


class TemporalEmbed(nn.Module):
    """From the tokens of frames to one token per frame, with positions in time (section 3.3, model 2).

    A frame is what its class token has become, or the mean of its patches.

    Args:
        frames: places in time of the largest input.
        class_token: the tokens of a frame, and those of the frames, have a class token.
    """

    def __init__(
        self, dim: int, frames: int, *, norm: Callable[[int], nn.Module], class_token: bool, dropout: float
    ) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions((frames,), dim, prefix=len(self.prefix))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b t n d"], *, grid: tuple[int]) -> Float[Tensor, "b m d"]:
        """Return the tokens that enter the encoder of frames, the class token first.

        Args:
            x: tokens of each frame.
            grid: places in time.
        """
        x = self.norm(x)
        prefix = len(self.prefix)
        frames = x[:, :, 0] if prefix else x.mean(dim=2)
        return self.dropout(self.positions(self.prefix(frames), prefix=prefix, grid=grid))


def _check_options(variant: str, spatial_depth: int, temporal_depth: int | None, pool: str | None) -> None:
    check_choice("variant", variant, get_args(Variant))
    if variant == "factorized_encoder":
        if temporal_depth is None:
            raise ValueError(
                f"variant='factorized_encoder' has blocks over space and over time; got spatial_depth="
                f"{spatial_depth} and temporal_depth={temporal_depth}"
            )
    elif temporal_depth not in (None, spatial_depth):
        raise ValueError(
            f"every block of variant={variant!r} acts on space and time; got spatial_depth={spatial_depth} "
            f"and temporal_depth={temporal_depth}"
        )
    if pool == "cls" and variant not in HAVE_CLASS_TOKEN:
        raise ValueError(f"variant={variant!r} has no class token to pool by, got pool='cls'")


ViT = ViViT
