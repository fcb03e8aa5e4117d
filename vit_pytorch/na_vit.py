"""Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution.

M. Dehghani, B. Mustafa, J. Djolonga, J. Heek et al. 2023, arXiv:2307.06304.

Takes images of any size as sequences of their own length, packed one behind the other: positions are the sum
of a row's and a column's embedding, tokens are dropped at random in training, each image attends to itself
alone and is pooled by attention. Queries and keys are normed by head; projections to them and norms go
without biases.

Family: plain
Differs from the paper: rows are not padded to a fixed length, since no token needs another image's; positions
are learned tables, which fractional positions interpolate; LayerNorms subtract the mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.attention import FusedAttention
from vit_pytorch.layers_v01.blocks import Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.packing import (
    HeadNorm,
    PackedAttention,
    PackedBlock,
    PackedPool,
    Packing,
    QueryPool,
    check_lengths,
)
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import FactorisedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens

Images = Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]]
TokenDropout = float | Callable[[int, int], float]
PositionType = Literal["abs", "frac", "aspect"]
Pool = Literal["map", "mean"]
QKNorm = Literal["rms", "layer", "none"]


class NaViT(IsotropicModel):
    """The Native Resolution ViT.

    A call takes a list of images (c h w) of any sizes; a list of such lists, the rows in which somebody has
    packed them; or a batch (b c h w). The logits are in the order of the images.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; with `pos_type` other than
            "abs" what the tables of positions are made for, and images may be larger.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward, and inside that of the attention pool.
        channels: channels of the input.
        dim_head: width of a head.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        token_dropout_prob: part of an image's tokens that training drops, in [0, 1), or a function that
            gives it from (height, width) in pixels, which is not saved with the model; an image keeps one
            token at least.
        pos_type: "abs" counts patches; "frac" is the place as a part of each side; "aspect" as a part of
            the longer side, which keeps the aspect ratio.
        pool: "map" for the attention pool, "mean" for the mean of the patches.
        pool_mlp: whether the attention pool ends with a feed-forward (arXiv:2106.04560); without, it is the
            bare attention, and a norm stands before the classifier.
        pool_residual: whether the bare attention pool adds its query to what that gathers.
        qk_norm: norm of queries and keys: "rms" with a gain a head, "layer", or "none".
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the attention's output projection has a bias.
        norm_bias: whether the LayerNorms have biases.
        head_bias: whether the classifier has a bias.
        norm_eps: epsilon of the LayerNorms.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        layer_scale: what LayerScale's factors start at; None for no LayerScale.
        act: activation of the feed-forward: "gelu", "gelu_tanh", "quickgelu", "relu" or "silu".
        patch_norm: whether LayerNorms stand before and after the patch projection.
        num_registers: number of register tokens in front of each image's patches.
        fc_norm: whether the final norm acts on the pooled vector instead of on the tokens.

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
    """

    patch_embed: PatchEmbed
    positions: FactorisedPositions

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
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        token_dropout_prob: float | Callable[[int, int], float] | None = None,
        pos_type: PositionType = "abs",
        pool: Pool = "map",
        pool_mlp: bool = True,
        pool_residual: bool = True,
        qk_norm: QKNorm = "rms",
        qkv_bias: bool = False,
        out_bias: bool = True,
        norm_bias: bool = False,
        head_bias: bool = True,
        norm_eps: float = 1e-6,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        act: str = "gelu",
        patch_norm: bool = False,
        num_registers: int = 0,
        fc_norm: bool = False,
    ) -> None:
        grid = (PatchGrid if pos_type == "abs" else OpenGrid)(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pos_type", pos_type, get_args(PositionType))
        check_choice("pool", pool, get_args(Pool))
        check_choice("qk_norm", qk_norm, get_args(QKNorm))
        if fc_norm and not pool_mlp:
            raise ValueError("pool_mlp=False has a norm before the classifier by itself, got fc_norm=True")
        self.token_dropout_prob: TokenDropout = 0.0 if token_dropout_prob is None else token_dropout_prob
        if not callable(self.token_dropout_prob):
            _check_share(self.token_dropout_prob)
        norm = partial(nn.LayerNorm, dim, eps=norm_eps, bias=norm_bias)
        head_norm: dict[str, Callable[[int], nn.Module] | None] = {
            "rms": partial(HeadNorm, heads),
            "layer": partial(nn.LayerNorm, eps=norm_eps, bias=norm_bias),
            "none": None,
        }
        shape: dict[str, Any] = {"heads": heads, "dim_head": dim_head, "qk_norm": head_norm[qk_norm]}
        shape |= {"qkv_bias": qkv_bias, "out_bias": out_bias}

        def block(layer: int) -> PackedBlock:
            tail = partial(
                make_tail, dim, layer_scale=layer_scale, drop_path=drop_path_rate(drop_path, layer, depth)
            )
            attention = PackedAttention(
                dim, **shape, dropout=dropout, attend=partial(FusedAttention, attn_dropout)
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout, act=act)
            return PackedBlock(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))

        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None)
        self.prefix = PrefixTokens(dim, class_token=False, registers=num_registers)
        self.positions = FactorisedPositions(grid.shape, dim, kind=pos_type)
        self.dropout = nn.Dropout(emb_dropout)
        self.encoder = Encoder(block, depth=depth)
        bare = pool == "map" and not pool_mlp
        self.norm = nn.Identity() if fc_norm else norm()
        self.fc_norm = norm() if fc_norm or bare else nn.Identity()
        self.attention_pool: PackedPool | QueryPool | None = None
        if bare:
            self.attention_pool = QueryPool(dim, **shape, norm=norm, residual=pool_residual)
        elif pool == "map":
            self.attention_pool = PackedPool(dim, heads=heads, mlp_dim=mlp_dim, norm_eps=norm_eps, act=act)
        self.head_bias = head_bias
        self.reset_classifier(num_classes)

    @property
    def native_patch(self) -> tuple[int, ...]:
        """Patch by which the sizes of images are divisible."""
        return self.grid.patch

    def forward(
        self, images: Images, group_images: bool = False, group_max_seq_len: int = 2048
    ) -> Float[Tensor, "b k"]:
        """Compute logits, or the pooled embedding where `num_classes` is 0.

        What lies in which row changes neither the logits nor the cost, so no rows are formed here:
        grouping holds the images against the length of a row. `layers.packing.group_by_length` forms rows.

        Args:
            images: a list of images (c h w), a list of lists of them, or a batch (b c h w).
            group_images: whether the images shall fit in rows of `group_max_seq_len` tokens.
            group_max_seq_len: tokens of a row at most.

        Raises:
            ValueError: where rank, channels, size or dtype of an image are not what the model takes, or an
                image alone has more tokens than a row.
        """
        return self.forward_head(
            self.forward_features(images, longest=group_max_seq_len if group_images else None)
        )

    def forward_features(self, images: Images, longest: int | None = None) -> Any:
        """Compute the tokens after the final norm.

        Args:
            images: a list of images, a list of lists of them, or a batch.
            longest: tokens that an image may have at most; None for any number.

        Returns:
            Tokens (b n d) of a batch; of a list, the tokens (n d) of each image, in order.
        """
        if isinstance(images, Tensor) and not images.is_nested:
            x = self.embed(images)
            if longest is not None:
                check_lengths([x.shape[1] - self.num_prefix_tokens], longest)
            return self.encode(x)
        x, lengths, order = self._pack(flatten_rows(images), longest)
        x = self.norm(self.encoder(x.unsqueeze(0), Packing(lengths)))[0]
        parts = dict(zip(order, x.split(lengths), strict=True))
        return [parts[index] for index in range(len(order))]

    def forward_head(self, features: Tensor | Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Pool tokens and classify them.

        Args:
            features: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.
        """
        if isinstance(features, Tensor):
            return super().forward_head(features, pre_logits)
        order = sorted(range(len(features)), key=lambda index: len(features[index]))
        packing = Packing(tuple(len(features[index]) for index in order))
        pooled = self.pool_tokens(torch.cat([features[index] for index in order]), packing)
        x = self.to_latent(self.pre_logits(self.fc_norm(pooled[_inverse(order, pooled.device)])))
        return x if pre_logits else self.head(x)

    def embed(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        mask_fn: Callable[[Tensor], Tensor] | None = None,
        add_positions: bool = True,
    ) -> Float[Tensor, "b n d"]:
        """Turn a batch into the tokens that enter the encoder, registers in front; drops in training."""
        if not isinstance(images, Tensor):
            raise ValueError(
                f"expected a batch (b c h w) of images of one size, got a {type(images).__name__}"
            )
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        x = self.patch_embed(images)
        if mask_fn is not None:
            x = mask_fn(x)
        if add_positions:
            x = x + self.positions(grid)
        kept = self._kept(images.shape[2:])
        if kept < x.shape[1]:
            chosen = torch.rand(x.shape[:2], device=x.device).topk(kept, dim=1).indices
            x = x.take_along_dim(chosen.unsqueeze(2), dim=1)
        if self.num_prefix_tokens:
            x = torch.cat([self.prefix().expand(x.shape[0], -1, -1), x], dim=1)
        return self.dropout(x)

    def pool_tokens(
        self, features: Float[Tensor, "*b n d"], packing: Packing | None = None
    ) -> Float[Tensor, "s d"]:
        """Give one vector for each image of a batch, or of a packed tensor."""
        registers = self.num_prefix_tokens
        if packing is None:
            if self.attention_pool is None:
                return super().pool_tokens(features)
            return self.attention_pool(features[:, registers:])
        runs = [run[:, registers:] for run in packing.split(features)] if registers else []
        if self.attention_pool is None:
            return torch.cat([run.mean(dim=1) for run in runs or packing.split(features)])
        if runs:
            features = torch.cat([run.flatten(0, 1) for run in runs])
            packing = Packing(tuple(length - registers for length in packing.lengths))
        return self.attention_pool(features, packing)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: the model's own pooling; it cannot change.
        """
        super().reset_classifier(num_classes, global_pool)
        if not self.head_bias and isinstance(self.head, nn.Linear):
            self.head.register_parameter("bias", None)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        names = {"positions.rows", "positions.columns", "attention_pool.query"}
        return super().no_weight_decay() | (names & {name for name, _ in self.named_parameters()})

    def _save_pretrained(self, save_directory: Path) -> None:
        if callable(self.token_dropout_prob):
            warnings.warn(
                "token_dropout_prob is a function, which no configuration file can hold: "
                "what is loaded drops no tokens in training unless told again",
                stacklevel=2,
            )
        super()._save_pretrained(save_directory)

    def _pack(
        self, images: Sequence[Tensor], longest: int | None
    ) -> tuple[Float[Tensor, "t d"], tuple[int, ...], list[int]]:
        """Embed images of any sizes, one behind the other, equal lengths together.

        Returns:
            The tokens; the number of each image's, registers included; which image is where.
        """
        grids = []
        for image in images:
            if image.ndim != 3:
                raise ValueError(
                    f"expected each image of a list to be ({self.channels} channels, height, width), "
                    f"got shape {tuple(image.shape)}"
                )
            self.check_images(image.unsqueeze(0))
            grids.append(self.grid.fit(image.shape[1:]))
        kept = [self._kept(image.shape[1:]) for image in images]
        if longest is not None:
            check_lengths(kept, longest)
        order = sorted(range(len(images)), key=kept.__getitem__)
        places = {grid: self.positions(grid)[0] for grid in dict.fromkeys(grids)}
        patches, positions = [], []
        for index in order:
            pixels, place = self.grid.patchify(images[index].unsqueeze(0))[0], places[grids[index]]
            if kept[index] < len(pixels):
                chosen = torch.rand(len(pixels), device=pixels.device).topk(kept[index]).indices
                pixels, place = pixels[chosen], place[chosen]
            patches.append(pixels)
            positions.append(place)
        x = self.patch_embed.project(torch.cat(patches)) + torch.cat(positions)
        lengths = tuple(kept[index] for index in order)
        if self.num_prefix_tokens:
            prefix = self.prefix()[0]
            x = torch.cat([part for tokens in x.split(lengths) for part in (prefix, tokens)])
            lengths = tuple(length + len(prefix) for length in lengths)
        return self.dropout(x), lengths, order

    def _kept(self, size: Sequence[int]) -> int:
        """Give the number of tokens of an image of this size that enter the encoder."""
        patches = prod(self.grid.fit(size))
        if not self.training:
            return patches
        share = self.token_dropout_prob
        if callable(share):
            share = share(size[0], size[1])
            _check_share(share)
        return max(1, int(patches * (1 - share)))


class OpenGrid(PatchGrid):
    """A grid of patches that its size does not limit."""

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """Give the grid of an input of this size.

        Raises:
            ValueError: where the input is empty, or the patch does not divide it.
        """
        return PatchGrid(tuple(size), self.patch).shape


def flatten_rows(images: Images) -> list[Tensor]:
    """Read a list of images, or of rows of them, as one list.

    Raises:
        ValueError: where it is empty, or neither of the two.
    """
    rows = list(images.unbind() if isinstance(images, Tensor) else images)
    flat = [image for row in rows for image in ([row] if isinstance(row, Tensor) else row)]
    strangers = [type(image).__name__ for image in flat if not isinstance(image, Tensor)]
    if strangers or not flat or not all(len(row) for row in rows):
        got = f"a {strangers[0]} among them" if strangers else f"{len(flat)} images in {len(rows)} rows"
        raise ValueError(f"expected a list of images, or of rows of at least one image, got {got}")
    return flat


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"the part of an image's tokens that is dropped is in [0, 1), got {share}")


def _inverse(order: Sequence[int], device: torch.device) -> Int64[Tensor, " s"]:
    """Give where each image went."""
    return torch.tensor(order, device=device).argsort()
