"""All are Worth Words: A ViT Backbone for Diffusion Models.

F. Bao, S. Nie, K. Xue, Y. Cao, C. Li, H. Su, J. Zhu 2022, arXiv:2209.12152.

Long skips pass the output of each block of the first half to its counterpart in the second half, as in a
U-Net. The time of the diffusion, and the optional label, are tokens like the patches.

Family: plain
Differs from the paper: the classifier is an addition, which has no token for the time; conditioning on texts
is not implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import log, prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import Attention, FusedAttention, Ids, head_dim
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate, is_tracing, layer
from vit_pytorch.layers.init import init_embeddings, init_xavier
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.ssl.backbone import as_backbone


class UViT(IsotropicModel):
    """The U-ViT as a classifier; the backbone of `NoisePredictor`.

    Args:
        depth: number of blocks apart from the one in the middle, as the authors count; an odd number counts
            that one, too.
        pool: "mean" classifies the mean of the patches, "cls" a class token.
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
        pool: Literal["cls", "mean"] = "mean",
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        dim_head: int | None = None,
        qkv_bias: bool = False,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        class_token: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        class_token = class_token or pool == "cls"
        dim_head = head_dim(dim, heads) if dim_head is None else dim_head
        size: dict[str, Any] = {"heads": heads, "dim_head": dim_head}
        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, attn_dropout)
        middle = depth // 2

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            (SkipBlock if index > middle else Block)(
                dim,
                Attention(dim, **size, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel),
                FeedForward(dim, mlp_dim, dropout=dropout),
                norm=norm,
                drop_path=drop_path_rate(drop_path, index, 2 * middle + 1),
            )
            for index in range(2 * middle + 1)
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        return self.encode(self.embed(images))

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b n d"]:
        """Apply the blocks with their long skips, and the final norm; see `IsotropicModel.encode`."""
        middle = len(self.blocks) // 2
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            # The last block has the first for its counterpart, and so on to the middle.
            tokens = block(tokens, skips.pop()) if index > middle else block(tokens)
            if index < middle:
                skips.append(tokens)
        return self.norm(tokens)


class SkipBlock(Block):
    """A block of the second half, which merges the output of its counterpart into its input (section 3.1)."""

    def __init__(self, dim: int, attention: nn.Module, feedforward: nn.Module, **options: Any) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.merge = nn.Linear(2 * dim, dim)
        init_xavier(self.merge)

    @layer
    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b n d"], skip: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """Transform tokens.

        Args:
            skip: those of the block's counterpart.
        """
        x = self.merge(torch.cat([x, skip], dim=-1))
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.feedforward(self.norm2(x)))


def embed_times(times: Real[Tensor, " b"], dim: int) -> Float[Tensor, "b d"]:
    """Compute cosines, then sines, of times at frequencies that fall geometrically from 1 towards 1 / 10,000.

    Args:
        times: a number for each sample, whole or not.
        dim: token dimension; of an odd one the last channel is zero.
    """
    half = dim // 2
    frequencies = torch.exp(
        -log(10_000) * torch.arange(half, device=times.device, dtype=torch.float32) / half
    )
    angles = times[:, None].float() * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class NoisePredictor(nn.Module):
    """A model that predicts the noise in an image, as diffusion models learn it (section 3).

    The time, and the optional label, are tokens before the patches; each patch's output is
    projected to its pixels.

    Args:
        encoder: a `UViT` (without a class token in all of the paper's models), or another model of one
            sequence of tokens (`ssl.backbone.Backbone`); its classifier takes no part.
        num_labels: number of labels; 0 for an unconditional model.
        time_mlp: two linear layers with SiLU between them act on the embedding of the time.
        final_conv: a 3 x 3 convolution acts on the predicted image.

    Raises:
        ValueError: if the encoder is no model of one sequence.
    """

    def __init__(
        self, encoder: nn.Module, *, num_labels: int = 0, time_mlp: bool = False, final_conv: bool = True
    ) -> None:
        super().__init__()
        self.encoder = as_backbone(encoder)
        dim, channels, grid = self.encoder.num_features, self.encoder.channels, self.encoder.grid
        self.num_labels = num_labels
        self.time_mlp = (
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
            if time_mlp
            else nn.Identity()
        )
        self.labels = nn.Embedding(num_labels, dim) if num_labels else None
        self.places = nn.Parameter(torch.empty(1, 2 if num_labels else 1, dim))
        self.to_pixels = nn.Linear(dim, channels * prod(grid.patch))
        self.final_conv = nn.Conv2d(channels, channels, 3, padding=1) if final_conv else nn.Identity()
        init_embeddings(self.places)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        timesteps: Real[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Predict the noise.

        Args:
            timesteps: the time of each; the authors' schedules go from 0 to 1000, whole or not.
            labels: the label of each, from 0 to `num_labels` - 1; required if there are labels.

        Raises:
            ValueError: if the images are not what the encoder takes, there is no time for each, or labels
                are missing or unexpected.
        """
        tokens = self.encoder.embed(images)
        grid = self.encoder.grid.fit(images.shape[2:])
        patches = prod(grid)
        conditions = self.condition(timesteps, labels, batch=images.shape[0]).to(tokens.dtype)
        prefix = tokens.shape[1] - patches
        tokens = torch.cat([tokens[:, :prefix], conditions, tokens[:, prefix:]], dim=1)
        encoded = self.encoder.encode(tokens, grid)
        pixels = self.to_pixels(encoded[:, -patches:])
        return self.final_conv(self.encoder.grid.unpatchify(pixels, grid))

    def condition(
        self, timesteps: Real[Tensor, " b"], labels: Int[Tensor, " b"] | None, *, batch: int
    ) -> Float[Tensor, "b k d"]:
        """Return the tokens of the label, if there are labels, and of the time, with their positions.

        Raises:
            ValueError: if there is none for each image, or labels are missing or unexpected.
        """
        if (labels is None) != (self.labels is None):
            got = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise ValueError(
                f"labels must be passed if num_labels is not 0, and only then; it is {self.num_labels}, "
                f"got {got}"
            )
        for name, given in (("timesteps", timesteps), ("labels", labels)):
            if given is not None and not is_tracing(given) and given.shape != (batch,):
                raise ValueError(
                    f"{name} must be one for each of {batch} images, got shape {tuple(given.shape)}"
                )
        time = embed_times(timesteps, self.places.shape[2]).to(self.places.dtype)
        tokens = [self.time_mlp(time)]
        if self.labels is not None:
            tokens.insert(0, self.labels(labels))
        return torch.stack(tokens, dim=1) + self.places
