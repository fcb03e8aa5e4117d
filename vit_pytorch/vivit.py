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

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_pytorch.base import Intermediates, resolve_indices
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, MaskedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.space_time import SpaceAndTimeAttention, SpaceAttention, SpaceTimeBlock, TimeAttention
from vit_pytorch.layers_v01.tokens import PrefixTokens
from vit_pytorch.vit_3d import Pool, ViT3D

Variant = Literal["joint", "factorized_encoder", "factorized_self_attention", "factorized_dot_product"]


class FramePositions(LearnedPositions):
    """Learned positions in a frame, which all frames share.

    Args:
        grid: cells along time, height and width, of the largest input.
        dim: width of a token.
        prefix: rows in front for prefix tokens.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, prefix: int = 0) -> None:
        super().__init__(grid[-2:], dim, prefix=prefix)

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Give the embeddings of a grid's cells, of a frame or of all frames."""
        return super().forward(grid[-2:]).repeat(1, prod(grid[:-2]), 1)


class FactorisedEncoder(Encoder):
    """An encoder of every frame by itself, then one of the frames (section 3.3, model 2).

    A frame is what its class token has become, or the mean of its patches.

    Args:
        block: makes the block of a layer from its index, counted through both encoders.
        depth: number of blocks over space.
        temporal_depth: number of blocks over time.
        frames: places in time of the largest input.
        norm: makes the norm behind the blocks over space.
        class_token: whether the frames have a class token in front.
        dropout: dropout on the frames that enter the second encoder.
    """

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        *,
        depth: int,
        temporal_depth: int,
        frames: int,
        norm: Callable[[], nn.LayerNorm],
        class_token: bool,
        dropout: float,
    ) -> None:
        super().__init__(block, depth=depth + temporal_depth)
        self.spatial_depth = depth
        self.norm = norm()
        (dim,) = self.norm.normalized_shape
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions((frames,), dim, prefix=len(self.prefix))
        self.dropout = nn.Dropout(dropout)

    def steps(self, x: Float[Tensor, "b n d"], *context: Any) -> Iterator[Float[Tensor, "b m d"]]:
        """Give the tokens after every block: those of each frame in turn, then those of the frames.

        Args:
            x: patches of a grid (time, height, width).
            context: the grid; the class token of a frame or None; and the keys among the frames, where some
                are padding.
        """
        grid, token, *mask = context
        batch = x.shape[0]
        frames = x.reshape(-1, prod(grid[1:]), x.shape[2])
        if token is not None:
            frames = torch.cat([token.expand(frames.shape[0], -1, -1), frames], dim=1)
        for block in self.blocks[: self.spatial_depth]:
            frames = self.run(block, frames)
            yield frames.unflatten(0, (batch, -1)).flatten(1, 2)
        frames = self.norm(frames)
        pooled = frames.mean(dim=1) if token is None else frames[:, 0]
        frames = pooled.unflatten(0, (batch, -1)) + self.positions(grid[:1])
        if token is not None:
            first = self.prefix() + self.positions.for_prefix(1)
            frames = torch.cat([first.expand(batch, -1, -1), frames], dim=1)
        frames = self.dropout(frames)
        for block in self.blocks[self.spatial_depth :]:
            frames = self.run(block, frames, *mask)
            yield frames


ATTENTION: dict[str, type[Attention]] = {
    "factorized_encoder": MaskedAttention,
    "factorized_self_attention": SpaceAttention,
    "factorized_dot_product": SpaceAndTimeAttention,
}
HAVE_CLASS_TOKEN = ("joint", "factorized_encoder")


class ViViT(ViT3D):
    """The Video Vision Transformer, on videos (b c t h w).

    An input may have fewer frames than `frames` and be smaller than `image_size`: tokens have the positions
    of the same places in the full grid. Maps of `forward_intermediates` have the axes (b d t h w); those of
    the encoder of frames in model 2 have one cell in a frame.

    Args:
        image_size: the largest frame, one number or (height, width) in pixels.
        frames: number of frames at most.
        image_patch_size: size of a tubelet in a frame, one number or (height, width); divides the image size.
        frame_patch_size: frames of a tubelet; divides `frames`.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        spatial_depth: number of blocks: over space in model 2, in all otherwise.
        temporal_depth: number of blocks over time in model 2; otherwise `spatial_depth`, or None.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        variant: "joint" (the paper's model 1), "factorized_encoder" (2), "factorized_self_attention" (3) or
            "factorized_dot_product" (4).
        pool: "cls" classifies a class token, "mean" the mean of the patches, or of the frames in model 2,
            where a frame is the mean of its patches then. None for "cls" in models 1 and 2 and "mean" in
            models 3 and 4, which have no class token.
        channels: channels of the input.
        dim_head: width of a head.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0,
            in each of the two encoders of model 2.
        act: activation of the feed-forward; the paper's code uses the tanh approximation of GELU.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
    """

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
        super().__init__(
            image_size=image_size,
            frames=frames,
            image_patch_size=image_patch_size,
            frame_patch_size=frame_patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=spatial_depth if variant == "joint" else 0,
            heads=heads,
            mlp_dim=mlp_dim,
            pool=pool,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            emb_dropout=emb_dropout,
            qkv_bias=qkv_bias,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
            act=act,
            norm_eps=norm_eps,
            positions="none" if variant == "factorized_encoder" else "learned",
        )
        self.variant = variant
        if variant == "joint":
            return
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)
        depth = spatial_depth + (temporal_depth or 0) if variant == "factorized_encoder" else spatial_depth
        attention = partial(
            ATTENTION[variant],
            dim,
            heads=heads,
            dim_head=dim_head,
            qkv_bias=qkv_bias,
            dropout=dropout,
            attend=partial(FusedAttention, attn_dropout),
        )

        def block(layer: int) -> Block:
            place, blocks = layer, spatial_depth
            if layer >= spatial_depth:
                place, blocks = layer - spatial_depth, depth - spatial_depth
            drop = drop_path_rate(drop_path, place, blocks)

            def residual(branch: nn.Module) -> Residual:
                return Residual(branch, norm(), make_tail(dim, drop_path=drop))

            feedforward = residual(FeedForward(dim, mlp_dim, dropout=dropout, act=act))
            if variant == "factorized_self_attention":
                time = TimeAttention(dim, **attention.keywords)
                return SpaceTimeBlock(residual(attention()), residual(time), feedforward)
            return Block(residual(attention()), feedforward)

        if variant == "factorized_encoder":
            self.positions = FramePositions(self.grid.shape, dim, prefix=self.num_prefix_tokens)
            self.encoder = FactorisedEncoder(
                block,
                depth=spatial_depth,
                temporal_depth=depth - spatial_depth,
                frames=self.grid.shape[0],
                norm=norm,
                class_token=pool == "cls",
                dropout=emb_dropout,
            )
        else:
            self.encoder = Encoder(block, depth=depth)

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """Number of prefix tokens in front of the sequence: none in model 2, whose frames have their own."""
        return 0 if self.variant == "factorized_encoder" else self.num_prefix_tokens

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (pixels in space), reductions."""
        infos = super().feature_info
        if isinstance(self.encoder, FactorisedEncoder):
            whole = (self.grid.patch[0], *self.grid.size[1:])
            for info in infos[self.encoder.spatial_depth :]:
                info.update(reduction=max(whole[1:]), reductions=whole)
        return infos

    def context(
        self,
        grid: Sequence[int],
        kept: Int[Tensor, "b k"] | None = None,
        seen: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Any, ...]:
        """Give what every block is handed beside the tokens: the grid, and what is padding.

        Args:
            grid: patches along each axis.
            kept: must be None unless attention is joint: the other models need whole frames.
            seen: which patches along the axis of time are no padding; all of them unless told.

        Raises:
            ValueError: where some patches are left out and attention is factorised.
        """
        if self.variant == "joint":
            return super().context(grid, kept, seen)
        if kept is not None:
            raise ValueError(f"ViViT with variant={self.variant!r} needs the patches of whole frames")
        if self.variant != "factorized_encoder":
            return grid, seen
        assert self.positions is not None
        token = self.prefix() + self.positions.for_prefix(1) if self.num_prefix_tokens else None
        if seen is None:
            return grid, token
        return grid, token, F.pad(seen, (self.num_prefix_tokens, 0), value=True)[:, None, None]

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c t h w"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates]:
        """Compute features between the blocks; see `VisionModel.forward_intermediates`.

        In model 2 the prefix tokens of a block over space are those of all frames, and the norm is the one of
        the block's own encoder.
        """
        encoder = self.encoder
        if not isinstance(encoder, FactorisedEncoder):
            return super().forward_intermediates(
                images, indices, return_prefix_tokens, norm, stop_early, output_fmt, intermediates_only
            )
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        layers = resolve_indices(indices, len(encoder.blocks))
        tokens = self.embed(images)
        grid = self.grid.fit(images.shape[2:])
        last, taken = encoder.intermediates(tokens, layers, *self.context(grid), stop_early=stop_early)
        found: list[Any] = []
        for layer, tokens in zip(layers, taken, strict=True):
            over_space = layer < encoder.spatial_depth
            if norm:
                tokens = encoder.norm(tokens) if over_space else self.norm(tokens)
            parts = tokens.unflatten(1, (grid[0] if over_space else 1, -1))
            prefix, patches = (
                part.flatten(1, 2) for part in parts.tensor_split([self.num_prefix_tokens], dim=2)
            )
            if output_fmt == "NCHW":
                shape = grid if over_space else (grid[0], 1, 1)
                patches = patches.transpose(1, 2).unflatten(2, shape)
            found.append((patches, prefix) if return_prefix_tokens else patches)
        return found if intermediates_only else (self.finish(last), found)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        names = {name for name, _ in self.named_parameters()}
        return super().no_weight_decay() | names & {"encoder.prefix.class_token", "encoder.positions.table"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth, what leads from space to time between their blocks."""
        groups = super().group_matcher(coarse)
        if isinstance(self.encoder, FactorisedEncoder):
            between = (r"^encoder\.(?:norm|prefix|positions)\.", (self.encoder.spatial_depth - 0.5,))
            groups["blocks"] = [groups["blocks"][0], between, *groups["blocks"][1:]]
        return groups

    def _change_pool(self, pool: str) -> None:
        """Refuse another pooling: with it, the model would have other tokens."""
        if pool != self.pool:
            raise ValueError(f"ViViT's pooling is chosen as it is built: {self.pool!r}, not {pool!r}")


def _check_options(variant: str, spatial_depth: int, temporal_depth: int | None, pool: str | None) -> None:
    check_choice("variant", variant, get_args(Variant))
    if variant == "factorized_encoder":
        if temporal_depth is None or min(spatial_depth, temporal_depth) < 1:
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
