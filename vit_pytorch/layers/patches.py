"""From an array to tokens: cutting it into patches, embedding them, and tokens before them.

One description serves signals (1-D), images (2-D), videos and volumes (3-D).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import log2, prod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.fx import Proxy

from vit_pytorch.layers.attention import jit_is_tracing
from vit_pytorch.layers.blocks import fx_leaf, is_tracing, static_size
from vit_pytorch.layers.init import EMBEDDING_STD, init_embeddings
from vit_pytorch.layers.options import Option

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONV: dict[int, Callable[..., Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Acts on the embedded patches (b n d).
MaskFn = Callable[[Tensor], Tensor]
AXES = ("frames", "height", "width")


def to_ntuple(size: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Return the size of an array of one to three axes, given as one number for all or one for each."""
    if isinstance(size, int):
        return (size,) * rank
    if len(size) != rank:
        raise ValueError(f"a size must be one number or ({', '.join(AXES[-rank:])}), got {tuple(size)}")
    return tuple(size)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a size given as one number, for a square, or as a pair."""
    height, width = to_ntuple(size, 2)
    return height, width


@dataclass(frozen=True)
class PatchGrid:
    """The grid of patches that an array of at most `size` is cut into; of any size, if it is dynamic.

    Args:
        size: size of the array along each axis, in pixels (frames for time).
        patch: size of a patch along each axis; divides `size`.
        dynamic: arrays may be larger than `size`.
        crop: patches need not divide the size; what is left over at the end of an axis is no part of any.

    Raises:
        ValueError: if a patch does not divide the size, or the two differ in rank.
    """

    size: tuple[int, ...]
    patch: tuple[int, ...]
    dynamic: bool = field(default=False, kw_only=True)
    crop: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.size) != len(self.patch):
            raise ValueError(
                f"image size and patch size must have the same rank, got {self.size} and {self.patch}"
            )
        if min(self.size) < 1 or min(self.patch) < 1:
            raise ValueError(
                f"sizes must be at least 1, got image size {self.size} and patch size {self.patch}"
            )
        self.fit(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Patches along each axis, of the largest input."""
        return tuple(s // p for s, p in zip(self.size, self.patch, strict=True))

    @property
    def num_patches(self) -> int:
        """Patches of the largest input."""
        return prod(self.shape)

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the grid of an input of this size.

        FX traces with inputs that have no size; what it traces is for the largest one, or, if the grid is
        dynamic, for any.

        Raises:
            ValueError: if the input is empty or larger than the grid, or the patch does not divide it.
        """
        if isinstance(size, Proxy):
            # By index: FX follows no iteration over sizes.
            open_size = tuple(size[axis] // patch for axis, patch in enumerate(self.patch))
            return open_size if self.dynamic else self.shape
        if jit_is_tracing():
            size = static_size(size)
        elif not torch.compiler.is_compiling():
            if min(size) < 1 or (self.crop and any(s < p for s, p in zip(size, self.patch, strict=True))):
                raise ValueError(f"an image must be at least {self.patch}, got image size {tuple(size)}")
            larger = any(s > largest for s, largest in zip(size, self.size, strict=True))
            if larger and not self.dynamic:
                raise ValueError(
                    f"image size must be at most {self.size}, got {tuple(size)}; "
                    "set_input_size makes it larger; a ViT with "
                    "positions=Learned(dynamic_img_size=True) takes any size"
                )
            if not self.crop and any(s % p for s, p in zip(size, self.patch, strict=True)):
                raise ValueError(
                    f"image size must be a multiple of patch size {self.patch}, got {tuple(size)}"
                )
        return tuple(s // p for s, p in zip(size, self.patch, strict=True))

    @fx_leaf
    def patchify(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n p"]:
        """Flatten each patch to a vector in the order (axes of the patch …, channel)."""
        grid = self.fit(x.shape[2:])
        axes = range(len(grid))
        if self.crop:
            for axis, (cells, patch) in enumerate(zip(grid, self.patch, strict=True)):
                x = x.narrow(2 + axis, 0, cells * patch)
        x = x.reshape(x.shape[0], x.shape[1], *chain(*zip(grid, self.patch, strict=True)))
        x = x.permute(0, *(2 + 2 * i for i in axes), *(3 + 2 * i for i in axes), 1)
        return x.reshape(x.shape[0], prod(grid), -1)

    def unpatchify(
        self, patches: Float[Tensor, "b n p"], grid: Sequence[int] | None = None
    ) -> Float[Tensor, "b c *size"]:
        """Put flattened patches back in their places; the inverse of `patchify`.

        Args:
            patches: vectors in the order (axes of the patch …, channel).
            grid: patches along each axis; default that of the largest input.
        """
        grid = self.shape if grid is None else tuple(grid)
        if prod(grid) != patches.shape[1]:
            raise ValueError(f"a grid of {grid} has {prod(grid)} patches, got {patches.shape[1]}")
        rank = len(grid)
        x = patches.reshape(patches.shape[0], *grid, *self.patch, -1)
        x = x.permute(0, 1 + 2 * rank, *chain(*((1 + i, 1 + rank + i) for i in range(rank))))
        return x.reshape(*x.shape[:2], *(g * p for g, p in zip(grid, self.patch, strict=True)))


def warn_if_few(grid: PatchGrid, *, stacklevel: int = 3) -> None:
    """Warn of a grid of 16 patches or fewer, in the name of the caller of the constructor."""
    if grid.num_patches <= 16:
        warnings.warn(
            f"{grid.num_patches} patches are few for attention to work with: "
            f"make the patch smaller than {grid.patch}, so that there are more than 16",
            stacklevel=stacklevel,
        )


class PatchEmbed(nn.Module):
    """Project each patch linearly to the token dimension (ViT, equation 1).

    The projection is stored as the convolution that it equals, kernel and stride being the patch; it
    starts with variance 1 / fan-in.

    Args:
        norm_eps: epsilon of a LayerNorm before and one after the projection (Dual PatchNorm,
            arXiv:2302.01327); None for no norms.
        norm_out: builds a norm after the projection alone; default none.
    """

    def __init__(
        self,
        grid: PatchGrid,
        channels: int,
        dim: int,
        *,
        norm_eps: float | None = None,
        bias: bool = True,
        norm_out: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.proj = CONV[len(grid.patch)](channels, dim, grid.patch, grid.patch, bias=bias)
        self.norm_in: nn.LayerNorm | None = None
        self.norm_out: nn.Module | None = None if norm_out is None else norm_out(dim)
        if norm_eps is not None:
            self.norm_in = nn.LayerNorm(channels * prod(grid.patch), eps=norm_eps)
            self.norm_out = nn.LayerNorm(dim, eps=norm_eps)
        nn.init.trunc_normal_(self.proj.weight, std=(channels * prod(grid.patch)) ** -0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        if self.norm_in is None:
            x = self.proj(x).flatten(2).transpose(1, 2)
            return x if self.norm_out is None else self.norm_out(x)
        return self.project(self.grid.patchify(x))

    def project(self, patches: Float[Tensor, "*b p"]) -> Float[Tensor, "*b d"]:
        """Embed patches that are flattened already, as by `PatchGrid.patchify`."""
        if self.norm_in is not None:
            patches = self.norm_in(patches)
        # Each patch is an image of its own to the convolution, whose kernel covers it.
        channels_last = patches.reshape(-1, *self.grid.patch, self.proj.in_channels)
        x = self.proj(channels_last.movedim(-1, 1))
        # FX cannot unpack the sizes, but add to them.
        x = x.reshape(patches.shape[:-1] + (-1,))  # noqa: RUF005
        return x if self.norm_out is None else self.norm_out(x)


class ConvStem(nn.Module):
    """Embed patches with a stack of 3 x 3 convolutions instead of one large one.

    Halves the map until a cell is a patch, then projects by 1 x 1 (Xiao et al. 2021, arXiv:2106.14881,
    section 3.1). A patch of 1 keeps the size and has two convolutions of stride 1.

    Args:
        grid: how the input is cut; 2-D, its patch square and a power of two.
        dim: width of a token. Channels double up to `dim` with each convolution.
        project: whether the 1 x 1 projection stands at the end; without it the last convolution gives
            the tokens, and no activation follows it.
    """

    def __init__(self, grid: PatchGrid, channels: int, dim: int, *, project: bool = True) -> None:
        super().__init__()
        patch = grid.patch[0]
        if len(grid.patch) != 2 or grid.patch[1] != patch or patch & (patch - 1):
            raise ValueError(f"a convolutional stem needs a square patch, a power of two; got {grid.patch}")
        self.grid = grid
        strides = [2] * int(log2(patch)) or [1, 1]
        widths = [channels, *(max(dim >> i, min(dim, 8)) for i in reversed(range(len(strides))))]
        layers: list[nn.Module] = []
        for stride, before, after in zip(strides, widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.convs = nn.Sequential(*(layers if project else layers[:-1]))
        self.proj = nn.Conv2d(dim, dim, 1) if project else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the grid."""
        return self.proj(self.convs(x)).flatten(2).transpose(1, 2)


class PrefixTokens(nn.Module):
    """Learned tokens before the patches, in the order of the arguments.

    Args:
        class_token: have a class token (ViT, section 3.1).
        distillation_token: have a distillation token (Touvron et al. 2020, arXiv:2012.12877).
        registers: number of register tokens (Darcet et al. 2023, arXiv:2309.16588).
        std: standard deviation at the start.
    """

    def __init__(
        self,
        dim: int,
        *,
        class_token: bool = True,
        distillation_token: bool = False,
        registers: int = 0,
        std: float = EMBEDDING_STD,
    ) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.distillation_token = nn.Parameter(torch.empty(1, 1, dim)) if distillation_token else None
        self.registers = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        self.count = sum(token.shape[1] for token in self.parameters())
        init_embeddings(*self.parameters(), std=std)

    def __len__(self) -> int:
        """Return the number of prefix tokens."""
        return self.count

    def tokens(self) -> list[Float[Tensor, "1 _ d"]]:
        """Return the tokens, the class token first."""
        tokens = (self.class_token, self.distillation_token, self.registers)
        return [token for token in tokens if token is not None]

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        """Put the tokens before the patches."""
        tokens = (self.class_token, self.distillation_token, self.registers)
        before = [token.expand(x.shape[0], -1, -1) for token in tokens if token is not None]
        return torch.cat([*before, x], dim=1) if before else x


class PatchDropout(nn.Module):
    """Drop patches in training, other ones of each sample (Liu et al. 2022, arXiv:2208.07220, section 3).

    What stays keeps its order. Prefix tokens always stay.

    Args:
        p: share of the patches that is dropped, in [0, 1); of n patches max(1, int(n (1 - p))) stay.

    Raises:
        ValueError: if the share is out of range.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"patch_dropout must be in [0, 1), got {p}")
        self.p = p

    def forward(
        self, tokens: Float[Tensor, "b n d"], prefix: int = 0, seen: Bool[Tensor, "b p"] | None = None
    ) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b k"] | None]:
        """Return the tokens that stay, and their patches' positions in the grid; all and None in eval.

        Args:
            tokens: prefix tokens, then patches.
            prefix: number of prefix tokens.
            seen: patches that are no padding, which is dropped first; default all.
        """
        if not self.training or self.p == 0:
            return tokens, None
        ids_keep = draw_patches(tokens, prefix, self.p, seen)
        return tokens.take_along_dim(token_ids(ids_keep, prefix)[..., None], dim=1), ids_keep

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"p={self.p}"


@fx_leaf
def draw_patches(
    tokens: Float[Tensor, "b n d"], prefix: int, p: float, seen: Bool[Tensor, "b p"] | None = None
) -> Int[Tensor, "b k"]:
    """Draw the patches of each sample that stay when a share `p` is dropped, in order; see `PatchDropout`."""
    patches = tokens.shape[1] - prefix
    count = max(1, int(patches * (1 - p)))
    drawn = torch.rand(tokens.shape[0], patches, device=tokens.device)
    if seen is not None:
        drawn = drawn + seen
    return drawn.topk(count, dim=1, sorted=False).indices.sort(dim=1).values


@fx_leaf
def token_ids(ids_keep: Int[Tensor, "b k"], prefix: int) -> Int[Tensor, "b m"]:
    """Return the positions, in the sequence, of prefix tokens and of the patches that are kept."""
    first = torch.arange(prefix, device=ids_keep.device).expand(ids_keep.shape[0], -1)
    return torch.cat([first, prefix + ids_keep], dim=1)


# What FX traces as a mask may turn out to be None later, in which case there is no padding.


@fx_leaf
def refuse_mask(mask: Tensor | None, reason: str) -> None:
    """Refuse a mask that a model cannot take.

    Raises:
        ValueError: if there is one.
    """
    if mask is not None:
        raise ValueError(f"a mask cannot be taken: {reason}")


@fx_leaf
def blank(images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"] | None) -> Float[Tensor, "b c h w"]:
    """Return images whose padding is zero, whatever it was, also NaN."""
    return images if mask is None else images.masked_fill(~mask[:, None], 0)


@fx_leaf
def seen_patches(
    mask: Bool[Tensor, "b h w"] | None, images: Float[Tensor, "b c h w"], grid: PatchGrid
) -> Bool[Tensor, "b n"] | None:
    """Return which patches are image, by a mask of pixels; None for all of them.

    Raises:
        ValueError: if the mask is not one of these pixels, cuts a patch, or leaves nothing of an image.
    """
    if mask is None:
        return None
    cells, checked = grid.fit(images.shape[2:]), not is_tracing(mask)
    want = (images.shape[0], *images.shape[2:])
    if checked and (mask.dtype != torch.bool or mask.shape != want):
        raise ValueError(
            f"expected a boolean mask of {want} (images, height, width), "
            f"got {mask.dtype} of {tuple(mask.shape)}"
        )
    blocks = mask.unflatten(2, (cells[1], -1)).unflatten(1, (cells[0], -1))
    if checked:
        if not blocks.all(dim=(2, 4)).equal(blocks.any(dim=(2, 4))):
            raise ValueError(f"the {grid.patch} pixels of a patch are masked together; the mask cuts a patch")
        if not mask.any(dim=(1, 2)).all():
            raise ValueError("an image must have at least one patch, got a mask without any")
    return blocks[:, :, 0, :, 0].flatten(1)


@fx_leaf
def seen_tokens(
    seen: Bool[Tensor, "b n"] | None, prefix: int, ids_keep: Int[Tensor, "b k"] | None = None
) -> Bool[Tensor, "b 1 1 m"] | None:
    """Return which tokens are seen as keys: prefix tokens, and the patches that are seen, of those kept."""
    if seen is None:
        return None
    if ids_keep is not None:
        seen = seen.take_along_dim(ids_keep, dim=1)
    return F.pad(seen, (prefix, 0), value=True)[:, None, None]


@fx_leaf
def mean_of_seen(tokens: Float[Tensor, "b n d"], seen: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b d"]:
    """Return the mean of the tokens that are seen, or of all."""
    if seen is None:
        return tokens.mean(dim=1)
    weights = seen / seen.sum(dim=1, keepdim=True)
    return (weights[:, None].to(tokens) @ tokens)[:, 0]


@dataclass(frozen=True)
class LinearStem(Option):
    """Option: patches are projected linearly.

    Args:
        patch_norm: LayerNorms before and after the projection (Dual PatchNorm); "after" for a norm of the
            model's kind after it alone (AIMv2, arXiv:2411.14402).
        pre_norm: a LayerNorm on all tokens before the blocks; the projection has no bias then (CLIP).
        crop: the patch need not divide the image: what is left over at the right and below is not seen.
    """

    kind: ClassVar[str] = "linear"
    patch_norm: bool | Literal["after"] = False
    pre_norm: bool = False
    crop: bool = False


@dataclass(frozen=True)
class ConvolutionalStem(Option):
    """Option: patches are embedded by small convolutions (see `ConvStem`).

    Args:
        pre_norm: a LayerNorm on all tokens before the blocks.
    """

    kind: ClassVar[str] = "conv"
    pre_norm: bool = False
