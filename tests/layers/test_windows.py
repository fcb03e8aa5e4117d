from functools import partial

import pytest
import torch

from vit_pytorch.layers.attention import Attention, ExplicitAttention
from vit_pytorch.layers.windows import (
    GroupAttention,
    Partition,
    dilated,
    grid_groups,
    hide,
    lines,
    pad_map,
    windows,
)


def places(partition: Partition, grid: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """Give the coordinates of each group's cells."""
    axes = torch.meshgrid(*(torch.arange(extent) for extent in grid), indexing="ij")
    cells = torch.stack(axes, dim=-1)[None]
    return [[tuple(cell) for cell in group.tolist()] for group in partition.split(cells)]


def test_windows_are_neighbours():
    groups = places(windows((2, 3)), (4, 6))
    assert groups[0] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [group[0] for group in groups] == [(0, 0), (0, 3), (2, 0), (2, 3)]


def test_grid_is_spread_over_the_map():
    groups = places(grid_groups((2, 2)), (4, 6))
    assert groups[0] == [(0, 0), (0, 3), (2, 0), (2, 3)]
    assert len(groups) == 6


def test_dilated_groups_stay_in_their_region():
    groups = places(dilated((2, 2), (3, 2)), (12, 8))
    assert groups[0] == [(0, 0), (0, 2), (3, 0), (3, 2)]
    assert groups[1] == [(0, 1), (0, 3), (3, 1), (3, 3)]
    assert max(cell[0] for cell in groups[0]) < 6


def test_lines():
    assert places(lines(0), (2, 3)) == [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 2), (1, 2)]]
    assert places(lines(1), (2, 3)) == [[(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1), (1, 2)]]
    assert places(lines(2, rank=3), (1, 2, 2)) == [[(0, 0, 0), (0, 0, 1)], [(0, 1, 0), (0, 1, 1)]]


@pytest.mark.parametrize(
    "partition",
    [windows((3, 2)), grid_groups((3, 2)), dilated((3, 2), (2, 1)), lines(0), lines(1)],
    ids=["windows", "grid", "dilated", "columns", "rows"],
)
def test_merge_puts_every_cell_back(partition):
    x = torch.randn(2, 12, 8, 5)
    groups = partition.split(x)
    assert sorted(groups.flatten().tolist()) == sorted(x.flatten().tolist())
    assert groups[: len(groups) // 2].sum().isclose(x[0].sum())
    assert partition.merge(groups, (12, 8)).equal(x)


def test_indivisible_map():
    with pytest.raises(ValueError, match=r"\(4, 5\) cells is not a multiple of \(2, 2\)"):
        windows((2, 2)).split(torch.zeros(1, 4, 5, 1))


def test_impossible_partition():
    with pytest.raises(ValueError, match="needs a size or an interval"):
        Partition((None, 1), (None, 1))
    with pytest.raises(ValueError, match="differ in rank"):
        Partition((2,), (1, 1))


def test_pad_map():
    x = torch.ones(1, 3, 4, 2)
    padded = pad_map(x, (2, 4))
    assert padded.shape == (1, 4, 4, 2)
    assert padded[:, :3].equal(x)
    assert not padded[:, 3:].any()
    assert pad_map(x, (3, 2)) is x


@torch.no_grad()
def test_each_cell_attends_to_its_group():
    attention = Attention(8, heads=2, dim_head=4)
    groups = GroupAttention(attention, windows((2, 2)))
    x = torch.randn(2, 4, 6, 8)
    want = torch.empty_like(x)
    for top in range(0, 4, 2):
        for left in range(0, 6, 2):
            window = x[:, top : top + 2, left : left + 2]
            want[:, top : top + 2, left : left + 2] = attention(window.flatten(1, 2)).view_as(window)
    torch.testing.assert_close(groups(x), want)


@torch.no_grad()
@pytest.mark.parametrize("biased", [False, True])
def test_padding_is_hidden(biased):
    bias = torch.randn(2, 4, 4)
    attention = Attention(8, heads=2, dim_head=4, kernel=partial(ExplicitAttention, scale=0.5))
    groups = GroupAttention(attention, windows((2, 2)), (lambda: bias) if biased else None)
    x = torch.randn(3, 3, 2, 8)
    mixed = groups(x)
    alone = x[:, 2:].flatten(1, 2)
    q, k, v = attention.project(alone)
    want = attention.merge(attention.kernel(q, k, v, bias[:, :2, :2] if biased else None))
    torch.testing.assert_close(mixed[:, 2:].flatten(1, 2), want)
    seen = GroupAttention(attention, windows((2, 2)), groups.bias, mask_padding=False)(x)
    torch.testing.assert_close(seen[:, :2], mixed[:, :2])
    assert not seen[:, 2:].allclose(mixed[:, 2:], atol=1e-3)


def test_a_group_of_nothing_real_sees_everything():
    real = torch.tensor([[True, True, False], [False, False, False]])
    assert hide(real, None)[:, 0, 0].tolist() == [[True, True, False], [True, True, True]]
    bias = torch.randn(2, 3, 3)
    mask = hide(real, bias)
    assert mask.shape == (2, 2, 3, 3)
    assert mask[1].equal(bias)
    assert mask[0, ..., :2].equal(bias[..., :2])
    assert mask[0, ..., 2].eq(-torch.inf).all()


@torch.no_grad()
def test_the_partition_may_depend_on_the_map():
    class Whole(GroupAttention):
        def partition_for(self, grid):
            return windows(grid), None

    attention = Attention(8, heads=2, dim_head=4)
    x = torch.randn(2, 3, 5, 8)
    want = attention(x.flatten(1, 2)).view_as(x)
    torch.testing.assert_close(Whole(attention, windows((2, 2)))(x), want)
