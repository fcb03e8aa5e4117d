"""Relative positions: biases for the offset of two cells, which are added to the scores of attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import log2, prod
from operator import is_not
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.attention import BlockInputs, Queries
from vit_pytorch.layers.blocks import fx_leaf, is_tracing
from vit_pytorch.layers.offsets import (
    cells,
    crop_cells,
    distances,
    offsets,
    resize_distances,
    stretch_offsets,
)
from vit_pytorch.layers.options import Option
from vit_pytorch.layers.patches import token_ids
from vit_pytorch.layers.positions import ComputedBuffers


class CachedBias(ComputedBuffers):
    """A bias that depends on parameters alone, and is computed once in inference.

    What was computed serves as long as the parameters hold the same values, which are compared: they are
    small, and no write to them can be missed. On other devices than the processor, where the comparison
    would wait for the device, and in graphs that are traced, the bias is computed anew; and so it is where
    a bias that can be computed for any window is asked for another one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cached: tuple[tuple[int, ...], list[Tensor], list[Tensor], Tensor] | None = None

    @abstractmethod
    def compute(self, *window: int) -> Float[Tensor, h * n]:
        """Compute the bias from the parameters."""

    def forward(self, *window: int) -> Float[Tensor, h * n]:
        """Return the bias of every head for every pair of cells.

        Args:
            window: extents of the window in cells, for a bias that can be computed for any; its own window
                unless told.
        """
        name, parameters = next((n for n, _ in self.named_parameters()), None), list(self.parameters())
        # Quantised layers hold their parameters in another form.
        if name is None:
            return self.compute(*window)
        if (
            torch.is_grad_enabled()
            # FX shows its proxies only to those who ask for an attribute.
            or is_tracing(reduce(getattr, name.split("."), self))
            or any(parameter.device.type != "cpu" for parameter in parameters)
            # Functional calls, as under vmap, put plain tensors in place of the parameters; quantisation,
            # others.
            or not all(type(parameter) is nn.Parameter for parameter in parameters)
            or not all(map(_is_unchanged, self.modules()))
        ):
            return self.compute(*window)
        cached = self._cached
        buffers = list(self.buffers())
        if (
            cached is None
            or cached[0] != window
            or any(map(is_not, cached[1], buffers))
            or not all(map(_same, cached[2], parameters))
        ):
            copies = [parameter.clone() for parameter in parameters]
            cached = self._cached = window, buffers, copies, self.compute(*window)
        return cached[3]

    def __getstate__(self) -> dict[str, object]:
        """Leave what was computed out of copies and files."""
        return {**self.__dict__, "_cached": None}


def _is_unchanged(module: nn.Module) -> bool:
    """Return whether a module computes by its parameters alone: not pruned, adapted, hooked or quantised."""
    known = type(module).__module__.startswith(("torch.nn.modules.", "vit_pytorch."))
    return known and not module._forward_pre_hooks and not module._forward_hooks


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class RelativeBias(CachedBias):
    """A learned bias for each head and each offset within a window (Swin, arXiv:2103.14030, equation 4)."""

    index: Tensor

    def __init__(self, window: Sequence[int], heads: int) -> None:
        super().__init__()
        self.window = tuple(window)
        self.table = nn.Parameter(torch.empty(prod(2 * extent - 1 for extent in window), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the number of the offset of each pair of cells."""
        places = cells(self.window)
        return {"index": offsets(places, places, self.window).flatten()}

    def resized(self, like: RelativeBias, *, antialias: bool = True) -> dict[str, Tensor]:
        """Return the table for another window."""
        return {"table": stretch_offsets(self.table, self.window, like.window)}

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Look up the offset of every pair of cells; only its own window has a table.

        Raises:
            ValueError: where another window is asked for.
        """
        if window and window != self.window:
            raise ValueError(f"the table belongs to a window of {self.window} cells, got {window}")
        return _look_up(self.table, self.index, prod(self.window))


class TokenBias(CachedBias):
    """A learned bias for each head and each offset on a grid, and for pairs with tokens in front of them.

    The latter are one number each for a prefix token that looks at a patch, a patch that looks at a prefix
    token, and two prefix tokens (BEiT, arXiv:2106.08254; the authors' program); or zero.

    Args:
        prefix: have biases for pairs with prefix tokens.
        dim: hidden dimension of the network that computes the biases of patches (`LogBias`), where those of
            prefix tokens are zero; default a table.
    """

    def __init__(self, grid: Sequence[int], heads: int, *, prefix: bool, dim: int | None = None) -> None:
        super().__init__()
        self.patches = RelativeBias(grid, heads) if dim is None else LogBias(grid, heads, dim=dim)
        self.prefix = nn.Parameter(torch.empty(3, heads)) if prefix and dim is None else None
        if self.prefix is not None:
            nn.init.trunc_normal_(self.prefix, std=0.02)

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Compute the bias of every pair of tokens.

        Args:
            window: number of prefix tokens, then cells along each axis: those of the largest grid, or fewer.

        Raises:
            ValueError: where there are prefix tokens and the bias was made without.
        """
        prefix, *grid = window
        if prefix and self.prefix is None and isinstance(self.patches, RelativeBias):
            raise ValueError(f"this bias knows no prefix tokens, got {prefix}")
        bias = self.patches.compute()
        for axis in (1, 2):
            bias = crop_cells(bias, self.patches.window, grid, dim=axis)
        if self.prefix is None:
            return F.pad(bias, (prefix, 0, prefix, 0))
        heads, n, _ = bias.shape
        to_patch, from_patch, within = self.prefix[..., None, None].unbind(0)
        above = torch.cat([within.expand(heads, prefix, prefix), to_patch.expand(heads, prefix, n)], dim=2)
        return torch.cat([above, torch.cat([from_patch.expand(heads, n, prefix), bias], dim=2)], dim=1)

    def mask(
        self, grid: Sequence[int] | None, prefix: int = 0, ids_keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b h n n"]:
        """Return what is added to the scores."""
        bias = self(prefix, *(self.patches.window if grid is None else grid))
        if ids_keep is None:
            return bias[None]
        ids = token_ids(ids_keep, prefix)
        return bias[:, ids[:, :, None], ids[:, None, :]].transpose(0, 1)


@fx_leaf
def hide_keys(keys: Bool[Tensor, "_ 1 1 n"] | None, bias: Float[Tensor, "_ h n n"]) -> Tensor:
    """Return biases, minus infinity for keys that are not seen; as they are if all are."""
    return bias if keys is None else bias.masked_fill(~keys, -float("inf"))


class RelativePositions(nn.Module):
    """Positions inside attention: a bias of this layer's own for each pair of tokens."""

    def __init__(self, bias: TokenBias) -> None:
        super().__init__()
        self.bias = bias

    def forward(
        self, q: Queries, k: Queries, inputs: BlockInputs
    ) -> tuple[Queries, Queries, Float[Tensor, "*b h n n"]]:
        """Return queries and keys as they are, and the bias, of keys that are seen."""
        bias = self.bias.mask(inputs.grid, inputs.num_prefix_tokens, inputs.ids_keep)
        return q, k, bias if inputs.mask is None else hide_keys(inputs.mask, bias)


@dataclass(frozen=True)
class Relative(Option):
    """Option: a learned bias for each offset and head is added to the scores (BEiT, arXiv:2106.08254).

    Args:
        per_layer: each layer has biases of its own, instead of all layers sharing them.
    """

    kind: ClassVar[str] = "relative"
    per_layer: bool = False

    def build(self, grid: Sequence[int], heads: int, *, prefix: bool) -> TokenBias:
        """Build the biases for a grid.

        Args:
            prefix: whether there are prefix tokens.
        """
        return TokenBias(grid, heads, prefix=prefix)


@dataclass(frozen=True)
class LogRelative(Relative):
    """Option: a network computes biases from the logarithms of offsets (`LogBias`).

    Pairs with prefix tokens have none.

    Args:
        per_layer: each layer has a network of its own, instead of all layers sharing one.
        dim: hidden dimension of the network.
    """

    kind: ClassVar[str] = "relative_log"
    dim: int = 128

    def build(self, grid: Sequence[int], heads: int, *, prefix: bool) -> TokenBias:
        """Build the biases for a grid; see `Relative.build`."""
        return TokenBias(grid, heads, prefix=prefix, dim=self.dim)


class DistanceBias(CachedBias):
    """A learned bias for each head and each absolute offset on a grid (LeViT, arXiv:2104.01136, section 4.2).

    Args:
        stride: distance of neighbouring queries, in cells; keys are all cells.
    """

    index: Tensor

    def __init__(self, grid: Sequence[int], heads: int, *, stride: int = 1) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.stride = stride
        self.table = nn.Parameter(torch.zeros(heads, prod(grid)))
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the number of the absolute offset of each query and cell."""
        queries = cells(self.queries(self.grid)) * self.stride
        return {"index": distances(queries, cells(self.grid), self.grid).flatten()[None]}

    def resized(self, like: DistanceBias, *, antialias: bool = True) -> dict[str, Tensor]:
        """Return the table for another grid."""
        return {"table": resize_distances(self.table, self.grid, like.grid)}

    def queries(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Return the queries along each axis of a grid."""
        return tuple(-(-extent // self.stride) for extent in grid)

    def compute(self, *window: int) -> Float[Tensor, "h n m"]:
        """Look up the offset of every query and cell of a grid, the largest or a smaller one."""
        bias = _look_up(self.table.T, self.index, prod(self.grid))
        return crop_pairs(bias, self.grid, window, self.stride) if window else bias


@fx_leaf
def crop_pairs(
    bias: Float[Tensor, "h n m"], grid: Sequence[int], wanted: Sequence[int], stride: int
) -> Float[Tensor, "h k l"]:
    """Take the pairs of a query and a cell that a smaller grid shares with a larger one."""
    if tuple(wanted) == tuple(grid):
        return bias
    old, new = ([-(-extent // stride) for extent in extents] for extents in (grid, wanted))
    return crop_cells(crop_cells(bias, grid, wanted, dim=2), old, new, dim=1)


class DynamicBias(CachedBias):
    """A bias for each head that a small network computes from the offset (CrossFormer, arXiv:2108.00154).

    Since nothing in it belongs to a window, it gives the bias of any (section 3.3).

    Args:
        window: extents of the customary window, in cells.
        dim: width of the network.
        depth: number of hidden layers, each behind a LayerNorm and a ReLU.
    """

    index: Tensor
    places: Tensor

    def __init__(self, window: Sequence[int], heads: int, *, dim: int, depth: int = 2) -> None:
        super().__init__()
        self.window = tuple(window)
        widths = [dim] * (depth + 1)
        self.embed = nn.Linear(len(window), dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(before), nn.ReLU(), nn.Linear(before, after))
            for before, after in pairwise([*widths, heads])
        )
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return all offsets within the window, and the number of that of each pair of cells."""
        every, inside = _places(self.window)
        # In floating point, so that they have the model's dtype.
        return {"places": every.float(), "index": inside}

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Compute the bias of every offset, then look up that of every pair of cells."""
        places, index = window_offsets(self.places, self.index, self.window, *window)
        x = self.embed(places)
        for layer in self.layers:
            x = layer(x)
        return _look_up(x, index, prod(window or self.window))


class LogSpacedBias(CachedBias):
    """A bias for each head that a small network computes from the logarithm of the offset.

    Swin V2, arXiv:2111.09883, section 3.3: since offsets of a larger window lie hardly outside those that the
    network has seen, it serves windows of other sizes.

    Args:
        window: extents of the window, in cells.
        pretrained: extents of the window that the network was trained with, which offsets are measured by;
            default the window's own.
        dim: hidden dimension of the network.
    """

    index: Tensor
    places: Tensor

    def __init__(
        self, window: Sequence[int], heads: int, *, pretrained: Sequence[int] | None = None, dim: int = 512
    ) -> None:
        super().__init__()
        self.window = tuple(window)
        self.pretrained = self.window if pretrained is None else tuple(pretrained)
        self.network = nn.Sequential(
            nn.Linear(len(self.window), dim), nn.ReLU(), nn.Linear(dim, heads, bias=False)
        )
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the coordinates of all offsets within the window, and the number of that of each pair."""
        every, inside = _places(self.window)
        # The authors map offsets within the pretrained window to [-8, 8] before the logarithm of base 8.
        scaled = 8 * every / torch.tensor([max(extent - 1, 1) for extent in self.pretrained])
        return {"places": scaled.sign() * torch.log2(scaled.abs() + 1) / log2(8), "index": inside}

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Compute the bias of every offset, in (0, 16), then look up that of every pair of cells."""
        return 16 * _look_up(self.network(self.places), self.index, prod(self.window)).sigmoid()


class LogBias(CachedBias):
    """A bias for each head that a small network computes from the logarithm of the offset, without bounds.

    timm's form of the biases of Swin V2: offsets are cells, whatever the window, and the biases are what the
    network gives. timm drops hidden channels in training, in addition.

    Args:
        window: extents of the window, in cells.
        dim: hidden dimension of the network.
    """

    index: Tensor
    places: Tensor

    def __init__(self, window: Sequence[int], heads: int, *, dim: int = 128) -> None:
        super().__init__()
        self.window = tuple(window)
        self.network = nn.Sequential(nn.Linear(len(self.window), dim), nn.ReLU(), nn.Linear(dim, heads))
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the logarithms of all offsets within the window, and the number of that of each pair."""
        every, inside = _places(self.window)
        return {"places": every.sign() * every.abs().add(1).log(), "index": inside}

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Compute the bias of every offset, then look up that of every pair of cells."""
        return _look_up(self.network(self.places), self.index, prod(self.window))


@fx_leaf
def window_offsets(
    places: Float[Tensor, "k r"], index: Int[Tensor, " m"], own: tuple[int, ...], *window: int
) -> tuple[Float[Tensor, "l r"], Int[Tensor, " p"]]:
    """Return all offsets within a window, and the number of that of each pair of cells.

    Args:
        places: offsets of a window.
        index: numbers of that window.
        own: extents of that window.
        window: extents of the window wanted; default the same.
    """
    if not window or window == own:
        return places, index
    every, inside = _places(window)
    return every.to(places), inside.to(places.device)


def _places(window: Sequence[int]) -> tuple[Int[Tensor, "k r"], Int[Tensor, " m"]]:
    """Return all offsets within a window, and the number of that of every pair of cells."""
    inside = cells(window)
    every = cells([2 * extent - 1 for extent in window]) - torch.tensor([extent - 1 for extent in window])
    return every, offsets(inside, inside, window).flatten()


@fx_leaf
def _look_up(table: Float[Tensor, "k h"], index: Int[Tensor, "*_ p"], keys: int) -> Float[Tensor, "h n m"]:
    """Return each head's row of the table for each pair of cells; a gather is the fastest way."""
    table = table.T.contiguous()
    return table.gather(1, index.expand(table.shape[0], -1)).unflatten(1, (-1, keys))
