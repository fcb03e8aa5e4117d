"""An Image is Worth 16x16 Words, for videos and volumes.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

The ViT with patches of three axes, "tubelets" of a few frames: all of them are one sequence, in which each
attends to all others, across space and time at once.

Family: plain
Differs from the paper: patches have three axes; frames may be padding, which a mask tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_pytorch.layers_v01.attention import Attention, MaskedAttention
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.positions import SequencePositions
from vit_pytorch.vit_v01 import ViT as ViT2D

Pool = Literal["cls", "mean"]
Positions = Literal["learned", "sincos", "sequence", "none"]


class ViT3D(ViT2D):
    """The Vision Transformer on videos or volumes (b c t h w).

    An input may have fewer frames than `frames` and be smaller than `image_size`: tokens have the positions
    of the same places in the full grid. Maps of `forward_intermediates` have the axes (b d t h w).

    Args:
        image_size: the largest frame, one number or (height, width) in pixels.
        frames: number of frames (slices of a volume) at most.
        image_patch_size: size of a patch in a frame, one number or (height, width); divides the image size.
        frame_patch_size: frames of a patch; divides `frames`.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        channels: channels of the input.
        dim_head: width of a head.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the attention's output projection has a bias.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        act: activation of the feed-forward: "gelu", "gelu_tanh", "quickgelu", "relu" or "silu".
        norm_eps: epsilon of the LayerNorms.
        patch_norm: whether LayerNorms stand before and after the patch projection.
        positions: "learned", "sincos" of the three axes, "sequence" (fixed, along the sequence of patches, as
            VideoMAE has them) or "none".
        class_token: whether there is a class token; None means where `pool` is "cls".
        fc_norm: whether the final norm acts on the pooled vector instead of on the tokens.
        head_zero_init: whether the classifier starts at zero.

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
    """

    rank: ClassVar[int] = 3
    attention: ClassVar[type[Attention]] = MaskedAttention

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        frames: int,
        image_patch_size: int | Sequence[int],
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        pool: Pool = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        qkv_bias: bool = True,
        out_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        act: str = "gelu",
        norm_eps: float = 1e-6,
        patch_norm: bool = False,
        positions: Positions = "learned",
        class_token: bool | None = None,
        fc_norm: bool = False,
        head_zero_init: bool = False,
    ) -> None:
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("positions", positions, ("learned", "sincos", "sequence", "none"))
        super().__init__(
            image_size=(frames, *pair(image_size)),
            patch_size=(frame_patch_size, *pair(image_patch_size)),
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dropout=dropout,
            emb_dropout=emb_dropout,
            pool=pool,
            dim_head=dim_head,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
            act=act,
            norm_eps=norm_eps,
            patch_norm=patch_norm,
            positions="none" if positions == "sequence" else positions,
            class_token=class_token,
            fc_norm=fc_norm,
            head_zero_init=head_zero_init,
        )
        if positions == "sequence":
            self.positions = SequencePositions(self.grid.shape, dim)

    def forward(
        self, images: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b k"]:
        """Compute logits, or the pooled embedding where `num_classes` is 0.

        Args:
            images: videos or volumes.
            mask: which frames there are; the others are padding, and have no influence. All of them unless
                told.

        Raises:
            ValueError: where rank, channels, size or dtype of the videos are not what the model takes, or the
                mask is not one of whole patches.
        """
        return self.forward_head(self.forward_features(images, mask), mask=mask)

    def forward_features(
        self, images: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Compute the tokens after the final norm, prefix tokens in front.

        Args:
            images: videos or volumes.
            mask: see `forward`. The tokens of padding are there, and say nothing.
        """
        if mask is None:
            return super().forward_features(images)
        tokens = self.embed(images)
        grid = self.grid.fit(images.shape[2:])
        seen = self.seen(mask, images)
        prefix = tokens.shape[1] - prod(grid)
        # Whatever stands in the padding, also what is no number, ends here.
        tokens = tokens.masked_fill(~_of_tokens(seen, grid, prefix)[..., None], 0)
        return self.finish(self.encoder(tokens, *self.context(grid, seen=seen)))

    def context(
        self,
        grid: Sequence[int],
        kept: Int[Tensor, "b k"] | None = None,
        seen: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Any, ...]:
        """Give what every block is handed beside the tokens of a grid: the keys that it sees, where not all.

        Args:
            grid: patches along each axis.
            kept: see `encode`.
            seen: which patches along the axis of time are no padding; all of them unless told.
        """
        if seen is None:
            return super().context(grid, kept)
        return (_of_tokens(seen, grid, self.num_encoder_prefix_tokens)[:, None, None],)

    def forward_head(
        self,
        features: Float[Tensor, "b n d"],
        pre_logits: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Pool tokens and classify them.

        Args:
            features: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.
            mask: see `forward`.
        """
        if mask is None or self.pool == "cls":
            return super().forward_head(features, pre_logits)
        seen = mask[:, :: self.grid.patch[0]]
        patches = features[:, self.num_prefix_tokens :]
        seen = seen.repeat_interleave(patches.shape[1] // seen.shape[1], dim=1)
        weights = seen / seen.sum(dim=1, keepdim=True)
        x = self.fc_norm((weights[:, None].to(patches) @ patches)[:, 0])
        x = self.to_latent(self.pre_logits(x))
        return x if pre_logits else self.head(x)

    def seen(
        self, mask: Bool[Tensor, "b t"], images: Float[Tensor, "b c t h w"]
    ) -> Bool[Tensor, "b patches"]:
        """Tell from a mask of frames which patches along the axis of time are no padding.

        Raises:
            ValueError: where the mask is not one of these videos' frames, a patch is padding in part, or a
                video has nothing but padding.
        """
        want = (images.shape[0], images.shape[2])
        if mask.dtype != torch.bool or mask.shape != want:
            raise ValueError(
                f"expected a boolean mask of {want} (videos, frames), got {mask.dtype} of {tuple(mask.shape)}"
            )
        patches = mask.unflatten(1, (-1, self.grid.patch[0]))
        seen = patches.all(dim=2)
        # What depends on the numbers in a tensor cannot be asked while a program is traced.
        if not torch.compiler.is_compiling():
            if not seen.equal(patches.any(dim=2)):
                raise ValueError(
                    f"the {self.grid.patch[0]} frames of a patch are masked together; the mask cuts a patch"
                )
            if not seen.any(dim=1).all():
                raise ValueError("a video has a frame at least, got a mask without any")
        return seen


def _of_tokens(seen: Bool[Tensor, "b t"], grid: Sequence[int], prefix: int) -> Bool[Tensor, "b n"]:
    """Tell of every token whether it is no padding; prefix tokens are none."""
    return F.pad(seen.repeat_interleave(prod(grid[1:]), dim=1), (prefix, 0), value=True)


ViT = ViT3D
