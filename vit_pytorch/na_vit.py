"""Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution.

M. Dehghani, B. Mustafa, J. Djolonga, J. Heek et al. 2023, arXiv:2307.06304.

Takes images of any size as sequences of their own length, packed one after the other: positions are the sum
of a row's and a column's embedding, tokens are dropped at random in training, each image attends only to
itself and is pooled by attention. Queries and keys are normalised per head; their projections and the norms
have no biases.

Family: plain
Differs from the paper: rows are not padded to a fixed length, since no token needs another image's; positions
are learned tables, which fractional positions interpolate; LayerNorms subtract the mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeGuard, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.fx import Proxy

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import BlockInputs, FusedAttention, HeadNorm
from vit_pytorch.layers.blocks import FeedForward, drop_path_rate, is_tracing
from vit_pytorch.layers.options import Option, OptionLike, check_choice, read_option
from vit_pytorch.layers.packing import (
    PackedAttention,
    PackedBlock,
    PackedPool,
    Packing,
    QueryPool,
    check_lengths,
)
from vit_pytorch.layers.patches import AXES, MaskFn, PatchEmbed, PatchGrid, PrefixTokens, to_ntuple
from vit_pytorch.layers.positions import FactorisedPositions, Interpolation, LearnedPositions, Positions
from vit_pytorch.layers.tokens import drop_bias
from vit_pytorch.legacy import flat_options

Images = Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]]
TokenDropout = float | Callable[..., float]
PositionType = Literal["abs", "frac", "aspect"]
QKNorm = Literal["rms", "layer", "none"]


@dataclass(frozen=True)
class MapPooling(Option):
    """Option: pool by attention from a learned query, then a feed-forward (arXiv:2106.04560)."""

    kind: ClassVar[str] = "map"


@dataclass(frozen=True)
class QueryPooling(Option):
    """Option: pool by attention from a learned query, then a norm.

    Args:
        residual: add the query to the output of attention.
    """

    kind: ClassVar[str] = "query"
    residual: bool = True


@dataclass(frozen=True)
class MeanPooling(Option):
    """Option: pool by the mean of the patches."""

    kind: ClassVar[str] = "mean"


@dataclass(frozen=True)
class ClassPooling(Option):
    """Option: take a class token, which stands before registers and patches."""

    kind: ClassVar[str] = "cls"


@dataclass(frozen=True)
class TablePositions(Option):
    """Option: an embedding for each place of a grid, interpolated to the grid of each image (NaFlex).

    Args:
        mode: "bicubic" or "bilinear".
        antialias: low-pass before the table shrinks.
        align_corners: corner places of both grids have the same centres, instead of the same outer corners.
        keep_aspect: stretch the table over the square of an image's longer side, of which it takes a part.
    """

    kind: ClassVar[str] = "table"
    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True
    align_corners: bool = False
    keep_aspect: bool = False

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("bicubic", "bilinear"))

    def build(self, grid: Sequence[int], dim: int) -> Positions:
        """Build the table."""
        positions = LearnedPositions(grid, dim)
        positions.interpolates = True
        positions.interpolation = Interpolation(
            self.mode, self.antialias, self.align_corners, self.keep_aspect
        )
        return positions


class NaViT(IsotropicModel):
    """The Native Resolution ViT.

    The input is a list of images (c h w) of any sizes; a list of such lists, which are rows packed by hand;
    or a batch (b c h w). The logits are in the order of the images.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; with `pos_type` other than
            "abs" the size of the position tables, and images may be larger.
        mlp_dim: hidden dimension of the feed-forward, also of the attention pool's.
        token_dropout_prob: share of an image's tokens that is dropped in training, in [0, 1), or a function
            that returns it from (height, width) in pixels, which is not saved with the model; an image keeps
            at least one token.
        pos_type: the sum of a row's and a column's embedding, at "abs", counts of patches, "frac", fractions
            of each side, or "aspect", fractions of the longer side, which keep the aspect ratio; or one
            embedding for each place, "table" (`TablePositions`).
        pool: "map" (`MapPooling`), "query" (`QueryPooling`), "mean" (`MeanPooling`) or "cls"
            (`ClassPooling`).
        qk_norm: norm of queries and keys: "rms" with gains per head, "layer", or "none".
        norm_bias: use biases for the LayerNorms.
        head_bias: use a bias for the classifier.
        num_registers: number of register tokens before each image's patches.
        final_norm: have a norm after the last block, which `fc_norm` puts behind the pooling.
    """

    patch_embed: PatchEmbed
    positions: Positions
    # number of axes of an image, and whether register tokens are pooled, too
    rank: ClassVar[int] = 2
    pools_registers: ClassVar[bool] = False

    @flat_options
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
        token_dropout_prob: float | Callable[..., float] | None = None,
        pos_type: OptionLike = "abs",
        pool: OptionLike = "map",
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
        final_norm: bool = True,
    ) -> None:
        check_choice("qk_norm", qk_norm, get_args(QKNorm))
        pooling = read_option(
            "pool",
            pool,
            {option.kind: option for option in (MapPooling, QueryPooling, MeanPooling, ClassPooling)},
        )
        sizes = (to_ntuple(size, self.rank) for size in (image_size, patch_size))
        grid = PatchGrid(*sizes) if pos_type == "abs" else OpenGrid(*sizes, dynamic=True)
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pooling.kind)
        if fc_norm and isinstance(pooling, QueryPooling):
            raise ValueError("pool='query' has a norm before the classifier already, got fc_norm=True")
        self.token_dropout_prob: TokenDropout = 0.0 if token_dropout_prob is None else token_dropout_prob
        if not callable(self.token_dropout_prob):
            _check_share(self.token_dropout_prob)
        norm = partial(nn.LayerNorm, eps=norm_eps, bias=norm_bias)
        qk_norms: dict[str, Callable[[int], nn.Module] | None] = {
            "rms": partial(HeadNorm, heads),
            "layer": norm,
            "none": None,
        }
        attention: dict[str, Any] = {
            "heads": heads,
            "dim_head": dim_head,
            "qkv_bias": qkv_bias,
            "out_bias": out_bias,
            "qk_norm": qk_norms[qk_norm],
        }

        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None)
        self.prefix = PrefixTokens(dim, class_token=pooling.kind == "cls", registers=num_registers)
        self.positions = make_positions(pos_type, grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            PackedBlock(
                dim,
                PackedAttention(
                    dim, **attention, dropout=dropout, kernel=partial(FusedAttention, attn_dropout)
                ),
                FeedForward(dim, mlp_dim, dropout=dropout, act=act),
                norm=norm,
                layer_scale=layer_scale,
                drop_path=drop_path_rate(drop_path, layer, depth),
            )
            for layer in range(depth)
        )
        self.norm = norm(dim) if final_norm and not fc_norm else nn.Identity()
        self.fc_norm = norm(dim) if fc_norm or isinstance(pooling, QueryPooling) else nn.Identity()
        self.attention_pool: PackedPool | QueryPool | None = None
        if isinstance(pooling, QueryPooling):
            self.attention_pool = QueryPool(dim, **attention, norm=norm, residual=pooling.residual)
        elif isinstance(pooling, MapPooling):
            self.attention_pool = PackedPool(dim, heads=heads, mlp_dim=mlp_dim, norm_eps=norm_eps, act=act)
        self.head_bias = head_bias
        self.reset_classifier(num_classes)

    @property
    def native_patch(self) -> tuple[int, ...]:
        """Patch by which the sizes of images are divisible."""
        return self.grid.patch

    def forward(
        self, images: Images, group_images: bool = False, group_max_seq_len: int = 2048
    ) -> Float[Tensor, "b k ..."]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Rows change neither the logits nor the cost, so none are formed here: grouping only checks the images
        against the length of a row. `layers.packing.group_by_length` forms rows.

        Args:
            images: a list of images (c h w), a list of lists of them, or a batch (b c h w).
            group_images: the images must fit in rows of `group_max_seq_len` tokens.
            group_max_seq_len: largest number of tokens of a row.

        Raises:
            ValueError: if rank, channels, size or dtype of an image are not what the model takes, or an
                image alone has more tokens than a row.
        """
        longest = group_max_seq_len if not is_tracing(images) and group_images else None
        return self.forward_head(self.forward_features(images, longest))

    def forward_features(self, images: Images, longest: int | None = None) -> Any:
        """Return the tokens after the final norm.

        Args:
            images: a list of images, a list of lists of them, or a batch.
            longest: largest number of tokens of an image; None for any number.

        Returns:
            Tokens (b n d) of a batch; of a list, the tokens (n d) of each image, in order.
        """
        packing: Packing | None = None
        order: list[int] = []
        if is_batch(images):
            tokens = self.embed(images)
            if longest is not None:
                check_lengths([tokens.shape[1] - self.prefix.count], longest)
        else:
            tokens, packing, order = self.pack(flatten_rows(images), longest)
        inputs = BlockInputs(num_prefix_tokens=self.prefix.count, packing=packing)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        tokens = self.norm(tokens)
        if packing is None:
            return tokens
        sequences = tokens[0].split(packing.lengths)
        return [sequences[place] for place in inverse(order)]

    def embed(
        self, images: Float[Tensor, "b c *size"], *, mask_fn: MaskFn | None = None, add_positions: bool = True
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens of a batch, registers first; some patches are dropped in training."""
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        x = self.patch_embed(images)
        if mask_fn is not None:
            x = mask_fn(x)
        if add_positions:
            x = self.positions(x, prefix=0, grid=grid)
        if self.training and self.token_dropout_prob:
            count = self.num_kept(images.shape[2:])
            if count < x.shape[1]:
                x = x.take_along_dim(draw(x[..., 0], count).unsqueeze(2), dim=1)
        return self.dropout(self.prefix(x))

    def pack(
        self, images: Sequence[Float[Tensor, "c ..."]], longest: int | None = None
    ) -> tuple[Float[Tensor, "1 t d"], Packing, list[int]]:
        """Embed images of any sizes, one after the other, in the order of their lengths.

        Returns:
            The tokens, each image's registers first; their packing; and the index of each sequence's image.
        """
        for image in images:
            if image.ndim != 1 + self.rank:
                raise ValueError(
                    f"expected each image of a list to be ({self.channels} channels, "
                    f"{', '.join(AXES[-self.rank :])}), "
                    f"got shape {tuple(image.shape)}"
                )
            self.check_images(image.unsqueeze(0))
        grids = [self.grid.fit(image.shape[1:]) for image in images]
        counts = [self.num_kept(image.shape[1:]) for image in images]
        if longest is not None:
            check_lengths(counts, longest)
        order = sorted(range(len(images)), key=counts.__getitem__)
        lengths = tuple(counts[index] for index in order)
        tables = {grid: self.positions.table_for(grid)[0] for grid in dict.fromkeys(grids)}
        patches, positions = [], []
        for index in order:
            pixels, table = self.grid.patchify(images[index].unsqueeze(0))[0], tables[grids[index]]
            if counts[index] < len(pixels):
                chosen = draw(pixels[:, 0], counts[index])
                pixels, table = pixels[chosen], table[chosen]
            patches.append(pixels)
            positions.append(table)
        x = self.patch_embed.project(torch.cat(patches)) + torch.cat(positions)
        if self.prefix.count:
            registers = torch.cat(self.prefix.tokens(), dim=1)[0]
            x = torch.cat([part for tokens in x.split(lengths) for part in (registers, tokens)])
            lengths = tuple(length + self.prefix.count for length in lengths)
        return self.dropout(x.unsqueeze(0)), Packing(lengths), order

    def num_kept(self, size: Sequence[int]) -> int:
        """Return the number of tokens of an image of this size that enter the blocks."""
        patches = prod(self.grid.fit(size))
        if not self.training:
            return patches
        share = self.token_dropout_prob
        if callable(share):
            share = share(*size)
            _check_share(share)
        return max(1, int(patches * (1 - share)))

    def pool_features(self, features: Tensor | Sequence[Tensor]) -> Float[Tensor, "b d"]:
        """Return one vector per image."""
        if self.pool == "cls":
            return features[:, 0] if is_batch(features) else torch.stack([tokens[0] for tokens in features])
        skipped = 0 if self.pools_registers else self.prefix.count
        if is_batch(features):
            patches = features[:, skipped:]
            return patches.mean(dim=1) if self.attention_pool is None else self.attention_pool(patches)
        sequences = [tokens[skipped:] for tokens in features]
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        packing = Packing(tuple(len(sequences[index]) for index in order))
        packed = torch.cat([sequences[index] for index in order])
        if self.attention_pool is None:
            pooled = torch.cat([run.mean(dim=1) for run in packing.split(packed)])
        else:
            pooled = self.attention_pool(packed, packing=packing)
        return pooled[inverse(order)]

    def collect_layers(
        self, images: Float[Tensor, "b c *size"], layers: Sequence[int], *, stop_early: bool = False
    ) -> tuple[Tensor | None, list[Any]]:
        """Compute the final features of a batch and the outputs of some layers.

        Raises:
            ValueError: if the images are not a batch.
        """
        if not is_batch(images):
            raise ValueError(
                f"expected a batch (b c h w) of images of one size, got a {type(images).__name__}"
            )
        return super().collect_layers(images, layers, stop_early=stop_early)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, without a bias if the model has none there; the identity for no classes."""
        return drop_bias(super().make_head(num_classes), self.head_bias)

    def _save_pretrained(self, save_directory: Path) -> None:
        if callable(self.token_dropout_prob):
            warnings.warn(
                "token_dropout_prob is a function, which no configuration file can hold: "
                "the loaded model drops no tokens in training unless it is given again",
                stacklevel=2,
            )
        super()._save_pretrained(save_directory)


def make_positions(pos_type: OptionLike, grid: Sequence[int], dim: int) -> Positions:
    """Build the position embeddings that `NaViT`'s `pos_type` stands for."""
    if isinstance(pos_type, str):
        check_choice("pos_type", pos_type, (*get_args(PositionType), TablePositions.kind))
        if pos_type != TablePositions.kind:
            return FactorisedPositions(grid, dim, kind=pos_type)
    return read_option("pos_type", pos_type, {TablePositions.kind: TablePositions}).build(grid, dim)


class OpenGrid(PatchGrid):
    """A grid of patches without a largest size."""

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the grid of an input of this size.

        Raises:
            ValueError: if the input is empty, or the patch does not divide it.
        """
        if isinstance(size, Proxy):
            return super().fit(size)
        if is_tracing():
            return tuple(s // p for s, p in zip(size, self.patch, strict=True))
        return PatchGrid(tuple(size), self.patch).shape


def is_batch(images: Any) -> TypeGuard[Tensor]:
    """Return whether images, or features, are of one size and in one tensor."""
    return isinstance(images, Proxy) or (isinstance(images, Tensor) and not images.is_nested)


def flatten_rows(images: Images) -> list[Tensor]:
    """Return a list of images, or of rows of them, as one list.

    Raises:
        ValueError: if it is empty, or neither of the two.
    """
    rows: Any = images.unbind() if isinstance(images, Tensor) else images
    rows = rows if isinstance(rows, (list, tuple)) else [rows]
    flat = [image for row in rows for image in (row if isinstance(row, (list, tuple)) else [row])]
    others = [type(image).__name__ for image in flat if not isinstance(image, Tensor)]
    if others or not flat or any(isinstance(row, (list, tuple)) and not row for row in rows):
        got = f"a {others[0]} among them" if others else f"{len(flat)} images in {len(rows)} rows"
        raise ValueError(f"expected a list of images, or of rows of at least one image, got {got}")
    return flat


def draw(x: Float[Tensor, "*b n"], count: int) -> Int64[Tensor, "*b k"]:
    """Draw indices along the last axis without replacement, at random for each row."""
    return torch.rand(x.shape, device=x.device).topk(count).indices


def inverse(order: Sequence[int]) -> list[int]:
    """Return the inverse of a permutation."""
    return sorted(range(len(order)), key=order.__getitem__)


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"the share of an image's tokens that is dropped must be in [0, 1), got {share}")
