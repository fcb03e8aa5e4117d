import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch

from vit_pytorch.layers.attention import BlockInputs, FusedAttention, HeadNorm
from vit_pytorch.layers.packing import (
    PackedAttention,
    Packing,
    attend_varlen,
    group_by_length,
    takes_varlen,
)


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_everything_once_and_keep_the_maximum(seed):
    generator = torch.Generator().manual_seed(seed)
    count, maximum = torch.randint(1, 60, (2,), generator=generator).tolist()
    lengths = torch.randint(1, maximum + 1, (count,), generator=generator).tolist()
    rows = group_by_length(lengths, maximum)
    assert sorted(index for row in rows for index in row) == list(range(count))
    assert all(row and row == sorted(row) for row in rows)
    assert all(sum(lengths[index] for index in row) <= maximum for row in rows)
    for later, row in enumerate(rows):
        for earlier in rows[:later]:
            before = sum(lengths[index] for index in earlier if index < row[0])
            assert before + lengths[row[0]] > maximum


def test_too_long_for_a_row():
    with pytest.raises(ValueError, match="image 2 has 9 tokens, a row takes at most 8"):
        group_by_length([8, 1, 9], 8)
    assert group_by_length([5, 4, 3, 8], 8) == [[0, 2], [1], [3]]
    assert group_by_length([], 8) == []


def test_runs_are_views_of_neighbours_of_equal_length():
    packing = Packing((2, 2, 3, 2))
    assert packing.runs == ((2, 2), (1, 3), (1, 2))
    x = torch.arange(9.0).unsqueeze(1)
    parts = packing.split(x)
    assert [tuple(part.shape) for part in parts] == [(2, 2, 1), (1, 3, 1), (1, 2, 1)]
    assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in parts)
    assert packing.offsets(x.device).tolist() == [0, 2, 4, 7, 9]
    assert packing.repeat(torch.tensor([[1.0], [2.0], [3.0], [4.0]])).flatten().tolist() == [
        *(1, 1, 2, 2, 3, 3, 3, 4, 4)
    ]


@pytest.mark.parametrize("lengths", [(5,), (1, 1, 4, 7), (3, 1, 3)])
def test_packed_attention_is_attention_of_each(lengths):
    attention = PackedAttention(24, heads=3, dim_head=10, qk_norm=lambda dim_head: HeadNorm(3, dim_head))
    x = torch.randn(sum(lengths), 24, requires_grad=True)
    packed = attention(x.unsqueeze(0), BlockInputs(packing=Packing(lengths)))[0]
    alone = torch.cat([attention(part.unsqueeze(0))[0] for part in x.split(lengths)])
    torch.testing.assert_close(packed, alone)
    weights = torch.randn_like(packed)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (packed, alone)]
    torch.testing.assert_close(*gradients)


def test_head_norm_has_gains_of_each_head():
    norm = HeadNorm(2, 4)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(3, 2, 5, 4)
    for head in range(2):
        for vector, normed in zip(x[:, head].flatten(0, 1), norm(x)[:, head].flatten(0, 1), strict=True):
            want = vector / vector.square().mean().sqrt() * norm.weight[head, 0]
            torch.testing.assert_close(normed, want, rtol=1e-4, atol=1e-5)


def test_attention_for_variable_lengths_is_told_the_packing(monkeypatch):
    """The kernel runs on CUDA alone; here a loop stands in for it, which reads the same offsets."""

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert (max_q, max_k) == (4, 4)
        bounds = list(zip(cu_seq_q.tolist(), cu_seq_k.tolist(), strict=True))
        parts = []
        for (q0, k0), (q1, k1) in pairwise(bounds):
            q, k, v = (x.transpose(0, 1) for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
            parts.append(FusedAttention(scale=scale)(q[None], k[None], v[None])[0].transpose(0, 1))
        return torch.cat(parts)

    stand_in = ModuleType("torch.nn.attention.varlen")
    stand_in.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    attention, packing, x = PackedAttention(24, heads=3, dim_head=8), Packing((1, 4, 2)), torch.randn(7, 24)
    want = attention(x[None], BlockInputs(packing=packing))[0]
    q, k, v = (part[0].transpose(0, 1) for part in attention.project(x[None]))
    torch.testing.assert_close(attention.to_out(attend_varlen(q, k, v, packing).flatten(1)), want)
    assert not takes_varlen(q, attention.kernel)
