"""ViViT: A Video Vision Transformer, with multi-order self-similarity.

A. Arnab, M. Dehghani, G. Heigold, C. Sun, M. Lučić, C. Schmid 2021, arXiv:2103.15691.

ViViT's factorised encoder, in which a layer between space and time tells how patches move: the similarity of
each patch with those around it, in neighbouring frames too, is encoded, and so is the similarity of these
encodings (MOSS, openreview.net/forum?id=Co6SCyBIjo; used in arXiv:2605.03269).

Family: plain
Differs from the paper: the paper of MOSS was not compared; the function is the public vit-pytorch package's.
There, with causal frames, the class token sees only itself, so that logits do not depend on the video; here
it sees all frames, and no frame sees it. Padding has no influence here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel, MaskedFrames
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import BlockInputs, use_explicit_kernels
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.space_time import mask_in_time, mask_of_keys
from vit_pytorch.vit_nd import causal_mask


class MossViViT(MaskedFrames, IsotropicModel):
    """ViViT's factorised encoder with a layer of self-similarities between space and time.

    Args:
        spatial_depth: number of blocks over the patches of a frame.
        temporal_depth: number of blocks over frames.
        pool: "cls" has class tokens of the frames and of the video, "mean" takes means of patches and frames.
        use_flash_attn: attend by the fused kernel; otherwise by one whose weights can be seen.
        moss_local_time: frames among which a patch is compared, an odd number; likewise rows and columns in
            `moss_local_height` and `moss_local_width`.
        moss_hidden_dim: channels inside the encoders of similarities.
        moss_orders: number of encoders, each of the similarities of the one before it.
        moss_causal: frames see themselves and earlier ones only.

    Raises:
        ValueError: if a number of frames, rows or columns is even.
    """

    undecayed = IsotropicModel.undecayed + r"|^temporal_prefix\.class_token$"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        image_patch_size: int | Sequence[int],
        frames: int,
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        spatial_depth: int,
        temporal_depth: int,
        heads: int,
        mlp_dim: int,
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        use_flash_attn: bool = True,
        moss_local_time: int = 3,
        moss_local_height: int = 3,
        moss_local_width: int = 3,
        moss_hidden_dim: int = 64,
        moss_orders: int = 2,
        moss_causal: bool = True,
    ) -> None:
        grid = PatchGrid((frames, *pair(image_size)), (frame_patch_size, *pair(image_patch_size)))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        warn_if_few(grid)
        options: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head,
            "mlp_dim": mlp_dim,
            "dropout": dropout,
            "attn_dropout": dropout,
            "qkv_bias": False,
        }
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.prefix = PrefixTokens(dim, class_token=pool == "cls")
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = plain_blocks(dim, depth=spatial_depth, **options)
        self.spatial_norm = nn.LayerNorm(dim)
        self.moss = MOSS(
            dim,
            local_time=moss_local_time,
            local_height=moss_local_height,
            local_width=moss_local_width,
            hidden_dim=moss_hidden_dim,
            orders=moss_orders,
            causal=moss_causal,
        )
        self.temporal_prefix = PrefixTokens(dim, class_token=pool == "cls")
        self.temporal_blocks = plain_blocks(dim, depth=temporal_depth, **options)
        self.norm = nn.LayerNorm(dim)
        self.fc_norm = nn.LayerNorm(dim)
        if not use_flash_attn:
            use_explicit_kernels(self)
        self.reset_classifier(num_classes)

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """Number of prefix tokens before all patches: none, since each frame has its own."""
        return 0

    def forward_features(
        self, images: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens of the frames after the final norm, the class token first.

        Args:
            images: videos.
            mask: true for frames, false for padding, which has no influence; default no padding.
        """
        keys = None if mask is None else mask_of_keys(mask, images, self.grid)
        return self.encode_frames(self.embed(images), self.grid.fit(images.shape[2:]), keys)

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Tensor | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Apply the blocks and the final norm; see `IsotropicModel.encode`.

        Raises:
            ValueError: if patches are missing.
        """
        if ids_keep is not None:
            raise ValueError("similarities of patches need all patches of a video")
        return self.encode_frames(tokens, self.grid.shape if grid is None else tuple(grid))

    def encode_frames(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int],
        mask: Bool[Tensor, "b 1 1 n"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Encode each frame, compare its patches, then encode the sequence of frames."""
        time, prefix = grid[0], self.num_prefix_tokens
        x = self.prefix(tokens.unflatten(1, (time, -1)).flatten(0, 1))
        for block in self.blocks:
            x = block(x)
        x = self.spatial_norm(x).unflatten(0, (-1, time))
        seen = mask_in_time(mask, prod(grid[1:]))
        patches = x[:, :, prefix:].unflatten(2, tuple(grid[1:]))
        frames = self.moss(patches, None if seen is None else seen[:, 0, 0]).mean(dim=(2, 3))
        frames = self.temporal_prefix(frames + x[:, :, 0] if prefix else frames)
        inputs = BlockInputs(mask=self.mask_of_frames(time, seen, frames.device))
        for block in self.temporal_blocks:
            frames = block(frames, inputs)
        return self.norm(frames)

    def mask_of_frames(
        self, time: int, seen: Bool[Tensor, "b 1 1 t"] | None, device: torch.device
    ) -> Tensor | None:
        """Return which tokens of the sequence of frames each of them sees; None for all."""
        prefix = self.num_prefix_tokens
        seen = None if seen is None else F.pad(seen, (prefix, 0), value=True)
        if not self.moss.causal:
            return seen
        causal = causal_mask((time,), (0,), prefix=prefix, device=device)
        return causal if seen is None else causal & seen

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Return the patches and the class tokens of all frames in the output of a block, and their grid."""
        grid = self.grid.fit(size)
        x = (self.spatial_norm(output) if norm else output).unflatten(0, (-1, grid[0]))
        prefix, patches = (part.flatten(1, 2) for part in x.tensor_split([self.num_prefix_tokens], dim=2))
        return patches, prefix, grid

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        return {
            "stem": r"^(?:prefix|positions|patch_embed)\.",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^(?:spatial_norm|moss|temporal_prefix)\.", (99999,))],
            "temporal_blocks": [(r"^temporal_blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def change_pool(self, global_pool: str) -> None:
        """Refuse another pooling: with it, the model would have other tokens."""
        raise ValueError(f"pooling is chosen at construction: {self.pool!r}, not {global_pool!r}")


class MOSS(nn.Module):
    """Add to patches their encoded similarities with the patches around them, and the similarities of those.

    Args:
        local_time: frames among which a patch is compared, an odd number; likewise rows and columns.
        hidden_dim: channels inside the encoders of similarities.
        orders: number of encoders, each of the similarities of the one before it.
        causal: patches are compared with those of their own frame and of earlier ones.

    Raises:
        ValueError: if a number of frames, rows or columns is even.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        local_time: int = 3,
        local_height: int = 3,
        local_width: int = 3,
        hidden_dim: int = 64,
        orders: int = 2,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.window = (local_time, local_height, local_width)
        if any(extent % 2 == 0 for extent in self.window):
            raise ValueError(f"local time, height and width must be odd, got {self.window}")
        self.causal = causal
        self.encoders = nn.ModuleList(SimilarityEncoder(dim, self.window, hidden_dim) for _ in range(orders))
        self.to_order_out = nn.ModuleList(nn.Linear(dim, dim) for _ in range(orders))
        self.to_out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "b t h w d"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t h w d"]:
        """Transform patches.

        Args:
            mask: true for frames, false for padding, with which nothing is alike; default no padding.
        """
        out = self.to_out(x)
        for encoder, to_out in zip(self.encoders, self.to_order_out, strict=True):
            x = encoder(self.similarities(x, mask))
            out = out + to_out(x)
        return out

    def similarities(
        self, x: Float[Tensor, "b t h w d"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t h w k"]:
        """Return the cosine of each patch with each of those around it; 0 outside the video."""
        x = F.normalize(x, dim=-1)
        if mask is not None:
            x = x * mask[:, :, None, None, None]
        before = [extent // 2 for extent in self.window]
        if self.causal:
            before[0] = self.window[0] - 1
        after = [extent - 1 - first for extent, first in zip(self.window, before, strict=True)]
        sides = [side for axis in (2, 1, 0) for side in (before[axis], after[axis])]
        around = F.pad(x, (0, 0, *sides))
        time, height, width = x.shape[1:4]
        return torch.stack(
            [
                (x * around[:, t : t + time, i : i + height, j : j + width]).sum(dim=-1)
                for t, i, j in product(*(range(extent) for extent in self.window))
            ],
            dim=-1,
        )


class SimilarityEncoder(nn.Module):
    """Encode the similarities of each patch with those around it, by convolutions over space.

    Args:
        window: frames, rows and columns that patches are compared with.
    """

    def __init__(self, dim: int, window: tuple[int, int, int], hidden_dim: int) -> None:
        super().__init__()
        self.frames = window[0]
        self.to_hidden = nn.Linear(window[1] * window[2], hidden_dim)
        self.convs = nn.ModuleList(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim, bias=False) for _ in range(2))
        self.to_out = nn.Linear(self.frames * hidden_dim, dim)

    def forward(self, x: Float[Tensor, "b t h w k"]) -> Float[Tensor, "b t h w d"]:
        """Encode the similarities with the patches of each frame, then those of all frames together."""
        x = self.to_hidden(x.unflatten(-1, (self.frames, -1)))
        sizes = (*x.shape[:2], self.frames)
        # each frame that is compared with is a map of its own
        x = x.permute(0, 1, 4, 2, 3, 5).flatten(0, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.gelu(norm(conv(x.movedim(-1, 1)).movedim(1, -1)))
        return self.to_out(x.unflatten(0, sizes).permute(0, 1, 3, 4, 2, 5).flatten(-2))


ViViT = MossViViT
