import math
from itertools import product

import pytest
import torch

from vit_pytorch.layers.offsets import crop_cells
from vit_pytorch.layers.positions import (
    FactorisedPositions,
    LearnedPositions,
    SinCosPositions,
    resize_table,
    sincos_table,
)
from vit_pytorch.layers.rotary import rotate, turns


def test_sincos_formula():
    table = sincos_table((3, 5), 12, temperature=100.0)
    assert table.shape == (1, 15, 12)
    for y in range(3):
        for x in range(5):
            frequencies = [100.0 ** (-i / 2) for i in range(3)]
            want = [wave(axis * w) for axis in (x, y) for wave in (math.sin, math.cos) for w in frequencies]
            torch.testing.assert_close(table[0, 5 * y + x], torch.tensor(want))


def test_sincos_without_endpoint():
    frequencies = [100.0 ** (-i / 3) for i in range(3)]
    want = [wave(axis * w) for axis in (4, 2) for wave in (math.sin, math.cos) for w in frequencies]
    table = sincos_table((3, 5), 12, temperature=100.0, endpoint=False)
    torch.testing.assert_close(table[0, 14], torch.tensor(want))


@pytest.mark.parametrize("dim", [4, 6, 10])
def test_sincos_width(dim):
    with pytest.raises(ValueError, match=f"multiple of 4 from 8 on, got {dim}"):
        sincos_table((2, 2), dim)


@pytest.mark.parametrize("dim", [18, 20, 22])
def test_sincos_of_three_axes(dim):
    """The last axis has the first channels; what three axes cannot share is zero."""
    table = sincos_table((2, 3, 5), dim, temperature=100.0).unflatten(1, (2, 3, 5))
    frequencies = [100.0 ** (-i / 2) for i in range(3)]
    for place in product(range(2), range(3), range(5)):
        axes = reversed(place)
        want = [wave(axis * w) for axis in axes for wave in (math.sin, math.cos) for w in frequencies]
        torch.testing.assert_close(table[0][place], torch.tensor([*want, *[0.0] * (dim - 18)]))


def test_sincos_of_one_axis():
    frequencies = [100.0 ** (-i / 2) for i in range(3)]
    for place, found in enumerate(sincos_table((7,), 6, temperature=100.0)[0]):
        want = [wave(place * w) for wave in (math.sin, math.cos) for w in frequencies]
        torch.testing.assert_close(found, torch.tensor(want))


@pytest.mark.parametrize(
    ("grid", "dim", "words"),
    [
        ((2, 2, 2), 10, "3-D .* multiple of 2 from 12 on, got 10"),
        ((2, 2, 2), 13, "3-D .* multiple of 2 from 12 on, got 13"),
        ((5,), 5, "1-D .* multiple of 2 from 4 on, got 5"),
        ((1, 1, 1, 1), 32, r"1 to 3 axes, got \(1, 1, 1, 1\)"),
    ],
)
def test_sincos_limits(grid, dim, words):
    with pytest.raises(ValueError, match=words):
        sincos_table(grid, dim)


@pytest.mark.parametrize("new", [(2, 3), (4, 5), (1, 1), (4, 2)])
def test_crop_keeps_places(new):
    cells = torch.randn(4, 5, 8)
    want = cells[: new[0], : new[1]].flatten(0, 1)
    assert crop_cells(cells.flatten(0, 1)[None], (4, 5), new, dim=1)[0].equal(want)


def test_sincos_positions_are_cropped():
    positions = SinCosPositions((4, 5), 8)
    assert positions.table_for((2, 3)).equal(crop_cells(sincos_table((4, 5), 8), (4, 5), (2, 3), dim=1))
    torch.testing.assert_close(positions.table_for((2, 3)), sincos_table((2, 3), 8))
    assert list(positions.state_dict()) == []


def test_learned_positions():
    positions = LearnedPositions((4, 5), 8, prefix=1)
    assert positions.table.shape == (1, 21, 8)
    assert positions.table_for((4, 5)).equal(positions.table[:, 1:])
    assert positions.table_for((2, 3))[0, 3].equal(positions.table[0, 1 + 5])
    assert positions.for_prefix(3)[0].equal(torch.cat([positions.table[0, :1], torch.zeros(2, 8)]))


@pytest.mark.parametrize("old", [(6,), (4, 6), (2, 4, 6)])
def test_resize(old):
    """To the same size: the same. To twice the size: constants stay, and so does a ramp, away from edges."""
    table = torch.randn(1, math.prod(old), 3)
    double = tuple(2 * extent for extent in old)
    assert resize_table(table, old, old) is table
    constant = torch.full_like(table, 0.7)
    torch.testing.assert_close(
        resize_table(constant, old, double), torch.full((1, math.prod(double), 3), 0.7)
    )
    ramp = (torch.arange(old[-1]) + 0.5).expand(old).reshape(1, -1, 1)
    resized = resize_table(ramp, old, double).reshape(double)
    want = (torch.arange(double[-1]) + 0.5) / 2
    torch.testing.assert_close(resized[..., 4:-4], want[4:-4].expand(*double[:-1], -1))


def test_resize_shrinks_by_means():
    """Antialiased, a grid of alternating cells shrinks to their mean; otherwise single cells weigh more."""
    table = torch.tensor([1.0, -1.0]).repeat(8, 4).reshape(1, 64, 1)
    smooth = resize_table(table, (8, 8), (8, 2)).reshape(8, 2)
    sharp = resize_table(table, (8, 8), (8, 2), antialias=False).reshape(8, 2)
    assert smooth.abs().max() < 0.1
    assert not torch.allclose(smooth, sharp, atol=0.02)


def test_resize_of_another_grid():
    with pytest.raises(ValueError, match=r"\(3, 3\) has 9 positions, the table 8"):
        resize_table(torch.randn(1, 8, 4), (3, 3), (4, 4))


def test_resize_keeps_the_dtype():
    assert resize_table(torch.randn(1, 4, 8).bfloat16(), (2, 2), (3, 3)).dtype == torch.bfloat16


def test_factorised_positions_add_row_and_column():
    positions = FactorisedPositions((4, 6), 8)
    table = positions.table_for((3, 5))
    assert table.shape == (1, 15, 8)
    for cell in range(15):
        row, column = divmod(cell, 5)
        assert table[0, cell].equal(positions.rows[0, row] + positions.columns[0, column])


@pytest.mark.parametrize(("kind", "extents"), [("frac", (2, 12)), ("aspect", (12, 12))])
def test_factorised_positions_are_interpolated(kind, extents):
    """The middle of a cell, as a part of the side, is where the table is read, linearly between its cells."""
    positions = FactorisedPositions((4, 6), 8, kind=kind)
    table = positions.table_for((2, 12)).unflatten(1, (2, 12))[0]
    for row, column in ((0, 0), (1, 5), (0, 11), (1, 8)):
        want = torch.zeros(8)
        for entries, place, extent in zip(
            (positions.rows[0], positions.columns[0]), (row, column), extents, strict=True
        ):
            at = min(max((place + 0.5) / extent * len(entries) - 0.5, 0), len(entries) - 1)
            low = int(at)
            high = min(low + 1, len(entries) - 1)
            want = want + entries[low] * (1 - (at - low)) + entries[high] * (at - low)
        torch.testing.assert_close(table[row, column], want)


def test_heads_of_an_odd_dimension_are_rotated_but_for_their_last_channel() -> None:
    x = torch.randn(2, 4, 2, 9).transpose(1, 2)
    rotation = turns(torch.rand(4, 4))
    turned = rotate(x, rotation)
    torch.testing.assert_close(turned[..., :8], rotate(x[..., :8].contiguous(), rotation))
    assert turned[..., 8:].equal(x[..., 8:])
