import copy
import pickle

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table

from vit_pytorch.layers.offsets import (
    cells,
    distances,
    offsets,
    resize_distances,
    resize_offsets,
    stretch_offsets,
)
from vit_pytorch.layers.relative import DistanceBias, DynamicBias, RelativeBias


def test_offsets_are_numbered_row_by_row():
    window = (2, 3)
    number = offsets(cells(window), cells(window), window)
    assert number.shape == (6, 6)
    assert number[0, 0] == number[5, 5] == 1 * 5 + 2
    assert number[0, 5] == 0
    assert number[5, 0] == 14
    assert number[1, 0] == number[0, 0] + 1
    assert number[3, 0] == number[0, 0] + 5


def test_distances_have_no_sign():
    window = (2, 3)
    number = distances(cells(window), cells(window), window)
    assert number[0].tolist() == list(range(6))
    assert number.equal(number.T)


def test_bias_depends_on_the_offset_alone():
    bias = RelativeBias((3, 4), heads=2)()
    places = cells((3, 4)).tolist()
    seen: dict = {}
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            same = seen.setdefault((y - v, x - u), bias[:, i, j])
            assert bias[:, i, j].equal(same)
    assert len({tuple(value.tolist()) for value in seen.values()}) == 5 * 7


def test_dynamic_bias_computes_from_the_offset():
    dynamic = DynamicBias((2, 3), heads=2, dim=4)
    bias = dynamic()
    for i, (y, x) in enumerate(cells((2, 3)).tolist()):
        for j, (v, u) in enumerate(cells((2, 3)).tolist()):
            want = dynamic.embed(torch.tensor([y - v, x - u], dtype=torch.float32))
            for layer in dynamic.layers:
                want = layer(want)
            torch.testing.assert_close(bias[:, i, j], want)


@pytest.mark.parametrize(
    "make", [RelativeBias, DistanceBias, lambda window, heads: DynamicBias(window, heads, dim=4)]
)
def test_computed_once_in_inference(make):
    bias = make((2, 2), 3)
    torch.nn.init.normal_(next(bias.parameters()))
    assert bias().requires_grad
    with torch.no_grad():
        first = bias()
        assert bias() is first
        # A write that autograd does not see, either.
        next(bias.parameters()).data.mul_(2)
        second = bias()
        assert not second.equal(first)
        assert second.equal(bias.compute())
        bias.bfloat16()
        assert bias().dtype == torch.bfloat16


@torch.no_grad()
def test_dynamic_bias_serves_any_window():
    """A smaller window has the same offsets, in inference one after the other, too."""
    bias = DynamicBias((3, 4), heads=2, dim=4)
    whole = bias()
    small = bias(2, 3)
    places = [row * 4 + column for row in range(2) for column in range(3)]
    torch.testing.assert_close(small, whole[:, places][:, :, places])
    assert bias(2, 3) is small
    assert bias().equal(whole)
    assert bias(3, 4).equal(whole)
    assert bias(5, 1).shape == (2, 5, 5)


def test_a_table_serves_its_own_window_alone():
    bias = RelativeBias((2, 3), heads=2)
    assert bias(2, 3).equal(bias())
    with pytest.raises(ValueError, match=r"a window of \(2, 3\) cells, got \(3, 2\)"):
        bias(3, 2)


@torch.no_grad()
def test_what_was_computed_is_not_copied():
    bias = RelativeBias((2, 2), 3)
    kept = bias()
    for other in (copy.deepcopy(bias), pickle.loads(pickle.dumps(bias))):
        assert other._cached is None
        assert other().equal(kept)


def test_resizing_a_table():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    table = torch.stack([y, x], dim=-1).flatten(0, 1)
    resized = resize_offsets(table, (3, 4), (5, 6)).unflatten(0, (9, 11))
    assert resize_offsets(table, (3, 4), (3, 4)) is table
    torch.testing.assert_close(resized[4, 5], torch.tensor([2.0, 3.0]))
    assert (resized[1:, :, 0] > resized[:-1, :, 0]).all()
    assert (resized[:, 1:, 1] > resized[:, :-1, 1]).all()
    with pytest.raises(ValueError, match=r"\(2, 2\) has 9 offsets, the table 35"):
        resize_offsets(table, (2, 2), (3, 3))


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("new", [(5, 6), (2, 2), (3, 12), (1, 4), (20, 3)])
@pytest.mark.parametrize("old", [(3, 3), (7, 7), (4, 6)])
def test_stretching_a_table_as_timm_does(old, new):
    table = torch.randn((2 * old[0] - 1) * (2 * old[1] - 1), 2)
    sides = (2 * new[0] - 1, 2 * new[1] - 1)
    want = resize_rel_pos_bias_table(table, new, (sides[0] * sides[1], 2), old_window_size=old)
    got = stretch_offsets(table, old, new)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert got.shape == (sides[0] * sides[1], 2)


def test_stretching_keeps_offset_0_and_the_outermost():
    table = torch.randn(7 * 7, 3)
    got = stretch_offsets(table, (4, 4), (6, 6)).unflatten(0, (11, 11))
    table = table.unflatten(0, (7, 7))
    torch.testing.assert_close(got[5, 5], table[3, 3])
    torch.testing.assert_close(got[4:7, 4:7], table[2:5, 2:5])
    torch.testing.assert_close(got[::10, ::10], table[::6, ::6], rtol=1e-3, atol=1e-3)


def test_a_table_of_the_same_window_stays():
    table = torch.randn(35, 2)
    assert stretch_offsets(table, (3, 4), (3, 4)) is table
    with pytest.raises(ValueError, match=r"a window of \(2, 2\) has 9 offsets, the table 35"):
        stretch_offsets(table, (2, 2), (3, 3))


@torch.no_grad()
def test_bias_by_distance_has_no_sign():
    bias = DistanceBias((3, 4), heads=2, stride=2)
    torch.nn.init.normal_(bias.table)
    table = bias.table.unflatten(1, (3, 4))
    for i, (y, x) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        for j, (v, u) in enumerate(cells((3, 4)).tolist()):
            assert bias()[:, i, j].equal(table[:, abs(y - v), abs(x - u)])


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [(3, 4), (2, 3), (1, 4), (1, 1)])
def test_smaller_grid_has_the_biases_of_its_distances(stride, grid):
    bias, small = DistanceBias((3, 4), heads=2, stride=stride), DistanceBias(grid, heads=2, stride=stride)
    torch.nn.init.normal_(bias.table)
    table = bias.table.unflatten(1, (3, 4))
    small.table.copy_(table[:, : grid[0], : grid[1]].flatten(1))
    assert bias(*grid).equal(small())
    assert bias(3, 4).equal(bias())
    assert bias(3, 4) is bias(3, 4)


def test_resizing_distances():
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    table = torch.stack([y.square(), x.square(), torch.ones(3, 4)]).flatten(1)
    resized = resize_distances(table, (3, 4), (6, 7)).unflatten(1, (6, 7))
    assert resize_distances(table, (3, 4), (3, 4)) is table
    assert (resized[0, 1:] > resized[0, :-1]).all()
    assert (resized[1, :, 1:] > resized[1, :, :-1]).all()
    torch.testing.assert_close(resized[2], torch.ones(6, 7))
    # As the table of signed offsets that are alike in both directions.
    signed = torch.cat([table.unflatten(1, (3, 4)).flip(1)[:, :-1], table.unflatten(1, (3, 4))], dim=1)
    signed = torch.cat([signed.flip(2)[..., :-1], signed], dim=2).flatten(1).T
    want = resize_offsets(signed, (3, 4), (6, 7)).T.unflatten(1, (11, 13))[:, 5:, 6:]
    torch.testing.assert_close(resized, want)
    with pytest.raises(ValueError, match=r"\(2, 2\) has 4 distances, the table 12"):
        resize_distances(table, (2, 2), (3, 3))
