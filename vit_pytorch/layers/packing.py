"""Sequences of different lengths, one after the other in one tensor, without padding or masks.

What acts on single tokens acts on the packed tensor as it is. Attention runs within each sequence; neighbours
of equal length are one batch of views, so that sorted lengths make few, large calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import groupby

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    FusedAttention,
    Mixed,
    Queries,
    merge_heads,
    split_heads,
)
from vit_pytorch.layers.blocks import Block, layer
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.tokens import AttentionPool

Heads = Float[Tensor, "t h e"]
HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None


@dataclass(frozen=True)
class Packing:
    """Which sequences lie in a packed tensor.

    Args:
        lengths: number of tokens of each sequence, in order.
    """

    lengths: tuple[int, ...]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Neighbours of equal length: their number and their length."""
        return tuple((len(list(run)), length) for length, run in groupby(self.lengths))

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each run."""
        return [count * length for count, length in self.runs]

    def offsets(self, device: torch.device) -> Int32[Tensor, " ends"]:
        """Return where each sequence begins, and where the last one ends."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return ends.to(device, non_blocking=True)

    def split(self, x: Float[Tensor, " t *d"]) -> list[Tensor]:
        """Return each run of a packed tensor as a batch, a view."""
        # One split instead of a slice per run: the backward pass then writes the gradient once.
        return [part.unflatten(0, run) for part, run in zip(x.split(self.sizes), self.runs, strict=True)]

    def repeat(self, x: Float[Tensor, "s d"]) -> Float[Tensor, "t d"]:
        """Repeat the row of each sequence for each of its tokens."""
        lengths = torch.tensor(self.lengths, device=x.device)
        return x.repeat_interleave(lengths, dim=0, output_size=sum(self.lengths))


class PackedAttention(Attention):
    """Attention that, given a packing, stays within each sequence.

    The cost is the sum of each sequence's own square. On CUDA in half precision, PyTorch's attention for
    variable lengths takes all sequences at once; elsewhere each run is one call of the kernel.
    """

    def attend(self, q: Queries, k: Queries, v: Mixed, inputs: BlockInputs) -> Mixed:
        """Attend within each sample of a batch, or within each sequence of a packed tensor (b = 1)."""
        packing = inputs.packing
        if packing is None:
            return super().attend(q, k, v, inputs)
        q, k, v = (part[0].transpose(0, 1) for part in (q.to(v.dtype), k.to(v.dtype), v))
        if isinstance(self.kernel, FusedAttention) and takes_varlen(q, self.kernel):
            mixed = attend_varlen(q, k, v, packing, self.kernel.scale)
        else:
            runs = zip(packing.split(q), packing.split(k), packing.split(v), strict=True)
            outputs = [self.kernel(*(part.transpose(1, 2) for part in run)) for run in runs]
            mixed = torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])
        return mixed.transpose(0, 1).unsqueeze(0)


class PackedBlock(Block):
    """A block that, given a packing, drops residual branches for whole sequences."""

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform a batch of tokens, or a packed tensor (b = 1)."""
        x = x + self.drop(self.scale1(self.attention(self.norm1(x), inputs)), inputs.packing)
        return x + self.drop(self.scale2(self.feedforward(self.norm2(x))), inputs.packing)

    def drop(self, x: Float[Tensor, "b n d"], packing: Packing | None) -> Float[Tensor, "b n d"]:
        """Drop a residual branch for some samples of a batch, or for some packed sequences, in training."""
        if packing is None or not self.training:
            return self.drop_path(x)
        factors = self.drop_path(x.new_ones(len(packing.lengths), 1))
        return x * packing.repeat(factors)


class PackedPool(AttentionPool):
    """Attention pooling that, given a packing, returns one vector per sequence."""

    def forward(  # type: ignore[override]  # a packing has no padding to mask
        self, x: Float[Tensor, "*b n d"], packing: Packing | None = None
    ) -> Float[Tensor, "s d"]:
        """Pool a batch, or the sequences of a packed tensor (t d)."""
        if packing is None:
            return super().forward(x)
        q = split_heads(self.to_q(self.query.expand(len(packing.lengths), -1, -1)), self.heads)
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        pooled = self.to_out(pool_sequences(self.kernel, q, k, v, packing))
        return pooled + self.mlp(self.norm(pooled))


class QueryPool(nn.Module):
    """Pool tokens by attention from one learned query, without a feed-forward.

    Args:
        qk_norm: builds the norm of queries and of keys from the head dimension; None for none.
        residual: add the query to the output.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        qkv_bias: bool,
        out_bias: bool,
        qk_norm: Callable[[int], nn.Module] | None,
        norm: Callable[[int], nn.Module],
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.residual = residual
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=dim**-0.5)
        self.norm = norm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=qkv_bias)
        self.q_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.k_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.kernel = FusedAttention()
        self.to_out = nn.Linear(heads * dim_head, dim, bias=out_bias)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)
        init_xavier(self.to_out)

    def forward(self, x: Float[Tensor, "*b n d"], packing: Packing | None = None) -> Float[Tensor, "s d"]:
        """Pool a batch, or the sequences of a packed tensor (t d)."""
        count = x.shape[0] if packing is None else len(packing.lengths)
        q = self.q_norm(split_heads(self.to_q(self.norm(self.query.expand(count, -1, -1))), self.heads))
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        k = self.k_norm(k.transpose(-3, -2)).transpose(-3, -2)
        pooled = self.to_out(pool_sequences(self.kernel, q.to(v.dtype), k.to(v.dtype), v, packing))
        return pooled + self.query[0] if self.residual else pooled


def pool_sequences(
    kernel: nn.Module,
    q: Float[Tensor, "s h 1 e"],
    k: Float[Tensor, "*b n h e"],
    v: Float[Tensor, "*b n h e"],
    packing: Packing | None,
) -> Float[Tensor, "s d"]:
    """Attend from one query to each sample of a batch, or to each packed sequence; the heads concatenated."""
    if packing is None:
        return merge_heads(kernel(q, k.transpose(1, 2), v.transpose(1, 2)))[:, 0]
    queries = q.split([count for count, _ in packing.runs])
    runs = zip(queries, packing.split(k), packing.split(v), strict=True)
    pooled = [kernel(query, keys.transpose(1, 2), values.transpose(1, 2)) for query, keys, values in runs]
    return merge_heads(torch.cat(pooled))[:, 0]


def takes_varlen(q: Tensor, kernel: FusedAttention) -> bool:
    """Return whether PyTorch's attention for variable lengths can replace the kernel."""
    return (
        HAS_VARLEN
        and q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] % 8 == 0
        and not (kernel.training and kernel.dropout)
    )


def attend_varlen(q: Heads, k: Heads, v: Heads, packing: Packing, scale: float | None = None) -> Heads:
    """Attend within each sequence by one call of the kernel for variable lengths."""
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = packing.offsets(q.device), max(packing.lengths)
    mixed = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scale)
    assert isinstance(mixed, Tensor), "only the output is requested"
    return mixed


def group_by_length(lengths: Sequence[int], maximum: int) -> list[list[int]]:
    """Group sequences into rows of at most so many tokens, each in the first row with room for it.

    The greedy packing of NaViT (arXiv:2307.06304, appendix A.3).

    Args:
        maximum: largest number of tokens of a row.

    Returns:
        The rows: indices into `lengths`, in order within each.

    Raises:
        ValueError: if a sequence alone is longer than a row.
    """
    check_lengths(lengths, maximum)
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        row = next((row for row, left in enumerate(room) if left >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(maximum)
        rows[row].append(index)
        room[row] -= length
    return rows


def check_lengths(lengths: Sequence[int], maximum: int) -> None:
    """Check that each sequence alone fits in a row.

    Raises:
        ValueError: naming the first that does not.
    """
    for index, length in enumerate(lengths):
        if length > maximum:
            raise ValueError(f"image {index} has {length} tokens, a row takes at most {maximum}")
