"""All are Worth Words: A ViT Backbone for Diffusion Models.

F. Bao, S. Nie, K. Xue, Y. Cao, C. Li, H. Su, J. Zhu 2022, arXiv:2209.12152.

Long skips hand what each block of the first half gives to its counterpart in the second half, as in a U-Net.
The time of the diffusion, and a label where there is one, are tokens like the patches.

Family: plain
Differs from the paper: the classifier is an addition, which has no token for the time; conditioning on texts
is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import log, prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel, has_class_token
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.init import init_linears, init_xavier
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens
from vit_pytorch.ssl.backbone import as_backbone


class SkipBlock(Block):
    """A block of the second half: it merges what it is handed into its input first (section 3.1).

    Args:
        attention: mixes tokens.
        feedforward: transforms every token by itself.
        dim: width of a token.
    """

    def __init__(self, attention: nn.Module, feedforward: nn.Module, dim: int) -> None:
        super().__init__(attention, feedforward)
        self.merge = Linear(2 * dim, dim)
        init_xavier(self.merge)

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Merge, then apply both residual branches.

        Args:
            x: tokens.
            context: those of the block's counterpart, then what attention is handed.
        """
        skip, *rest = context
        return super().forward(self.merge(torch.cat([x, skip], dim=-1)), *rest)


class LongSkipEncoder(Encoder):
    """A stack of blocks, one of them in the middle; those behind it are handed the output of a counterpart.

    The last one has the first for its counterpart, and so on to the middle.

    Args:
        block: makes the block of a layer from its index.
        depth: number of blocks on both sides of the middle together; of an odd number, the middle is one.
    """

    def __init__(self, block: Callable[[int], nn.Module], *, depth: int) -> None:
        super().__init__(block, depth=depth // 2 * 2 + 1)

    def steps(self, x: Any, *context: Any) -> Iterator[Any]:
        """Give the tokens after every block in turn; each block is handed the context, too."""
        middle = len(self.blocks) // 2
        skips: list[Any] = []
        for layer, block in enumerate(self.blocks):
            skip = (skips.pop(),) if layer > middle else ()
            x = self.run(block, x, *skip, *context)
            if layer < middle:
                skips.append(x)
            yield x


class UViT(IsotropicModel):
    """The U-ViT as a classifier; the backbone of `NoisePredictor`.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks without the one in the middle, as the authors count; of an odd number, the
            middle is one.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        pool: "mean" classifies the mean of the patches, "cls" a class token.
        channels: channels of the input.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        dim_head: width of a head; `dim / heads` unless told.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
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
        pool: Literal["cls", "mean"] = "mean",
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        dim_head: int | None = None,
        qkv_bias: bool = False,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        class_token: bool | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        class_token = has_class_token(pool, class_token)
        width = width_of_head(dim, heads) if dim_head is None else dim_head
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=class_token)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)
        middle = depth // 2

        def block(layer: int) -> Block:
            attention = Attention(
                dim,
                heads=heads,
                dim_head=width,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
            tail = partial(make_tail, dim, drop_path=drop_path_rate(drop_path, layer, 2 * middle + 1))
            parts = Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail())
            return SkipBlock(*parts, dim) if layer > middle else Block(*parts)

        self.encoder = LongSkipEncoder(block, depth=depth)
        self.norm = norm()
        self.reset_classifier(num_classes)


def embed_times(times: Real[Tensor, " b"], dim: int) -> Float[Tensor, "b d"]:
    """Compute cosines, then sines, of times by frequencies that fall geometrically from 1 towards 1 / 10,000.

    Args:
        times: a number for each sample, whole or not.
        dim: width of a token; of an odd one the last channel is zero.
    """
    half = dim // 2
    frequencies = torch.exp(
        -log(10_000) * torch.arange(half, device=times.device, dtype=torch.float32) / half
    )
    angles = times[:, None].float() * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class NoisePredictor(nn.Module):
    """A model that tells what noise an image has, as diffusion models learn it (section 3).

    The time, and a label where there is one, stand as tokens in front of the patches; each patch's output is
    projected to its pixels.

    Args:
        encoder: a `UViT` (without a class token in all of the paper's models), or another model of one
            sequence of tokens (`learning.backbone.Backbone`); its classifier takes no part.
        num_labels: number of labels to choose from; 0 for a model without.
        time_mlp: whether two linear layers, SiLU between them, act on the embedding of the time.
        final_conv: whether a 3 x 3 convolution acts on the predicted image.

    Raises:
        ValueError: where the encoder is no model of one sequence.
    """

    def __init__(
        self, encoder: nn.Module, *, num_labels: int = 0, time_mlp: bool = False, final_conv: bool = True
    ) -> None:
        super().__init__()
        self.encoder = as_backbone(encoder)
        dim, channels, grid = self.encoder.num_features, self.encoder.channels, self.encoder.grid
        self.num_labels = num_labels
        self.time_mlp = (
            nn.Sequential(Linear(dim, 4 * dim), nn.SiLU(), Linear(4 * dim, dim))
            if time_mlp
            else nn.Identity()
        )
        self.labels = nn.Embedding(num_labels, dim) if num_labels else None
        self.places = nn.Parameter(torch.empty(1, 2 if num_labels else 1, dim))
        self.to_pixels = Linear(dim, channels * prod(grid.patch))
        self.final_conv = nn.Conv2d(channels, channels, 3, padding=1) if final_conv else nn.Identity()
        nn.init.trunc_normal_(self.places, std=0.02)
        for part in (self.time_mlp, self.to_pixels):
            init_linears(part, partial(nn.init.trunc_normal_, std=0.02))

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        timesteps: Real[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Predict the noise.

        Args:
            images: images with noise.
            timesteps: the time of each; the authors' schedules go from 0 to 1000, whole or not.
            labels: the label of each, from 0 to `num_labels` - 1; to be given where there are labels.

        Raises:
            ValueError: where the images are not what the encoder takes, there is no time for each, or labels
                are missing or not known.
        """
        tokens = self.encoder.embed(images)
        grid = self.encoder.grid.fit(images.shape[2:])
        patches = prod(grid)
        conditions = self.condition(timesteps, labels, batch=len(images)).to(tokens.dtype)
        prefix = tokens.shape[1] - patches
        tokens = torch.cat([tokens[:, :prefix], conditions, tokens[:, prefix:]], dim=1)
        encoded = self.encoder.encode(tokens, grid)
        pixels = self.to_pixels(encoded[:, -patches:])
        return self.final_conv(self.encoder.grid.unpatchify(pixels, grid))

    def condition(
        self, timesteps: Real[Tensor, " b"], labels: Int[Tensor, " b"] | None, *, batch: int
    ) -> Float[Tensor, "b k d"]:
        """Give the tokens of the label, where there are labels, and of the time, with their places.

        Args:
            timesteps: see `forward`.
            labels: see `forward`.
            batch: number of images.

        Raises:
            ValueError: where there is none for each image, or labels are missing or not known.
        """
        if (labels is None) != (self.labels is None):
            got = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise ValueError(
                f"labels are given where num_labels is not 0; it is {self.num_labels}, got {got}"
            )
        for name, given in (("timesteps", timesteps), ("labels", labels)):
            if given is not None and given.shape != (batch,):
                raise ValueError(f"{name} are one for each of {batch} images, got shape {tuple(given.shape)}")
        time = embed_times(timesteps, self.places.shape[2]).to(self.places.dtype)
        tokens = [self.time_mlp(time)]
        if self.labels is not None:
            tokens.insert(0, self.labels(labels))
        return torch.stack(tokens, dim=1) + self.places
