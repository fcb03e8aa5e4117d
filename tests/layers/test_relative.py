import copy
import pickle

import pytest
import torch

from vit_pytorch.layers.relative import (
    DynamicBias,
    RelativeBias,
    cells,
    distances,
    offsets,
    resize_offsets,
)


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


@pytest.mark.parametrize("make", [RelativeBias, lambda window, heads: DynamicBias(window, heads, dim=4)])
def test_computed_once_in_inference(make):
    bias = make((2, 2), 3)
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
        assert other._kept is None
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
