"""Maps of attention in a given space: as fine as fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np

from vit_pytorch.analysis.report.pack import STEPS, Floats, Packed, merge_cells, pack, quantise_rows
from vit_pytorch.analysis.report.places import Layer, Places

# Cells of a grid at most, where patches must be merged: of the keys first, then of the queries, too.
MOST_CELLS = (None, 1024, 576, 256, 144, 64, 36, 16)
CELLS = [
    (None, None),
    *(pair for last, most in pairwise(MOST_CELLS) for pair in ((last, most), (most, most))),
]
SAMPLE = 4


@dataclass(frozen=True)
class PackedLayer:
    """Attention of one layer, packed.

    Args:
        layer: what was packed.
        packed: heads, queries, keys.
        block: patches of a cell along each side, of the queries and of the keys.
    """

    layer: Layer
    packed: Packed
    block: tuple[int, int]


@dataclass(frozen=True)
class Fitted:
    """The layers of one image, packed.

    Args:
        layers: in their order.
        steps: of the scale of each row; see `pack`.
    """

    layers: list[PackedLayer]
    steps: int

    @property
    def size(self) -> int:
        """Characters of all layers."""
        return sum(len(layer.packed.text) for layer in self.layers)

    @property
    def block(self) -> int:
        """Patches along a side of the largest cell."""
        return max((max(layer.block) for layer in self.layers), default=1)


class RoomError(ValueError):
    """Layers that do not fit, however coarsely they are packed."""


def coarsest_size(layers: Sequence[Layer]) -> int:
    """Return the characters that layers take at the least."""
    return _pack(layers, STEPS[-1], CELLS[-1]).size


def fit_layers(layers: Sequence[Layer], most: int) -> Fitted:
    """Pack layers as finely as they fit: first with fewer steps, then with merged patches.

    Args:
        layers: of one image.
        most: characters at most.

    Raises:
        RoomError: where not even the coarsest fits.
    """
    # Every so many layers tell whether packing all is worth a try.
    sample = layers[:: ceil(len(layers) / SAMPLE)] if layers else []
    share = sum(x.maps.numel() for x in sample) / max(1, sum(x.maps.numel() for x in layers))
    for cells in CELLS:
        for steps in STEPS:
            if _pack(sample, steps, cells).size / max(share, 1e-9) <= 1.05 * most:
                fitted = _pack(layers, steps, cells)
                if fitted.size <= most:
                    return fitted
    raise RoomError(
        f"{len(layers)} layers of attention take {coarsest_size(layers)} characters at the coarsest, "
        f"got {most}"
    )


def _pack(layers: Sequence[Layer], steps: int, cells: tuple[int | None, int | None]) -> Fitted:
    return Fitted([_pack_layer(layer, steps, cells) for layer in layers], steps)


def _pack_layer(layer: Layer, steps: int, cells: tuple[int | None, int | None]) -> PackedLayer:
    maps: Floats = layer.maps.detach().float().cpu().numpy()
    blocks = [_block(places, most) for places, most in zip((layer.queries, layer.keys), cells, strict=True)]
    for axis, places, block in ((1, layer.queries, blocks[0]), (2, layer.keys, blocks[1])):
        maps = merge_cells(maps, axis, (places.rows, places.columns), block, mean=axis == 1)
    return PackedLayer(layer, pack(quantise_rows(np.ascontiguousarray(maps), steps)), (blocks[0], blocks[1]))


def _block(places: Places, most: int | None) -> int:
    """Return the side of the smallest blocks that make at most so many cells."""
    block = 1
    while most is not None and ceil(places.rows / block) * ceil(places.columns / block) > most:
        block += 1
    return block
