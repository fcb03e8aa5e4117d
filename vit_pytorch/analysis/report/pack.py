"""Maps of attention as text that a page can hold: quantised, deflated, in base 64.

A row of a map sums to 1, so that no scale need be stored: a weight p becomes the whole number nearest to
S sqrt(p / largest of the row), and a reader gets it back as the square of that number, divided by the sum of
the row's squares. The root gives small weights, which are most, the finer steps. A larger S errs less; 255
fills a byte, and smaller ones deflate to less.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
STEPS = (255, 127, 63, 31, 15)


@dataclass(frozen=True)
class Packed:
    """Numbers 0 to 255 as text.

    Args:
        shape: axes of the array.
        text: its bytes, deflated (zlib), in base 64.
        differences: whether what is stored is the difference from the row before along the last axis but
            one, modulo 256; the first row of each matrix stands as it is.
    """

    shape: tuple[int, ...]
    text: str
    differences: bool = False

    def unpack(self) -> Bytes:
        """Return the array back."""
        values = np.frombuffer(zlib.decompress(base64.b64decode(self.text)), dtype=np.uint8)
        values = values.reshape(self.shape)
        return values.cumsum(axis=-2, dtype=np.uint8) if self.differences else values


def pack(values: Bytes) -> Packed:
    """Deflate an array, as it is or by differences of rows, whichever is shorter.

    Args:
        values: an array of at least two axes; rows are along the last one.
    """
    differences = values.copy()
    differences[..., 1:, :] -= values[..., :-1, :]
    plain, other = (zlib.compress(array.tobytes(), 6) for array in (values, differences))
    chosen = min(plain, other, key=len)
    return Packed(values.shape, base64.b64encode(chosen).decode(), chosen is not plain)


def quantise_rows(maps: Floats, steps: int) -> Bytes:
    """Write rows that sum to 1 as whole numbers from 0 to `steps`, the largest of each row being that.

    Args:
        maps: weights of attention (... queries keys), at least 0.
        steps: S, 1 to 255.

    Raises:
        ValueError: where a weight is negative, a row holds none, or `steps` is out of range.
    """
    if not 1 <= steps <= 255:
        raise ValueError(f"steps are 1 to 255, got {steps}")
    largest = maps.max(axis=-1, keepdims=True)
    if maps.min() < 0 or largest.min() <= 0:
        raise ValueError(
            "weights of attention are at least 0 and rows sum to 1, got a smallest weight of "
            f"{maps.min():.3g} and a smallest row maximum of {largest.min():.3g}"
        )
    return np.rint(np.sqrt(maps / largest) * np.float32(steps)).astype(np.uint8)


def restore_rows(numbers: Bytes) -> Floats:
    """Return the weights of attention that `quantise_rows` was given, rows summing to 1."""
    squares = numbers.astype(np.float32) ** 2
    restored: Floats = squares / squares.sum(axis=-1, keepdims=True)
    return restored


def quantise(values: Floats) -> Bytes:
    """Scale values linearly from 0 and their largest to 0 and 255; negative ones become 0."""
    largest = max(float(values.max()), np.finfo(np.float32).tiny)
    return np.rint(values.clip(0) / largest * 255).astype(np.uint8)


def merge_cells(maps: Floats, axis: int, grid: tuple[int, int], block: int, *, mean: bool) -> Floats:
    """Merge the patches along one axis of a map to blocks; prefix tokens in front of them stay.

    Args:
        maps: the maps.
        axis: of the tokens, the last `rows * columns` of which are patches.
        grid: rows and columns.
        block: patches of a block along each side; those at the right and lower edges may hold fewer.
        mean: whether a block is the mean of its patches, as for queries, or their sum, as for keys.
    """
    if block == 1:
        return maps
    rows, columns = grid
    moved = np.moveaxis(maps, axis, -1)
    prefix = moved.shape[-1] - rows * columns
    cells = moved[..., prefix:].reshape(*moved.shape[:-1], rows, columns)
    for side in (-2, -1):
        starts = np.arange(0, cells.shape[side], block)
        summed = np.add.reduceat(cells, starts, axis=side)
        if mean:
            counts = np.diff([*starts, cells.shape[side]]).astype(np.float32)
            summed = summed / (counts[:, None] if side == -2 else counts)
        cells = summed
    merged = np.concatenate([moved[..., :prefix], cells.reshape(*cells.shape[:-2], -1)], axis=-1)
    return np.ascontiguousarray(np.moveaxis(merged, -1, axis))
