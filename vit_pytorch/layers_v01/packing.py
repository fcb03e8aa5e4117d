"""Sequences of different lengths, one behind the other in one tensor, without padding or masks.

What acts on single tokens acts on the packed tensor as it is. Attention runs by itself within each
sequence; neighbours of equal length are one batch of views, so that sorted lengths make few, large calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn

from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block, DropPath, Residual
from vit_pytorch.layers_v01.init import init_xavier
from vit_pytorch.layers_v01.tokens import AttentionPool

HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None


@dataclass(frozen=True)
class Packing:
    """Which sequences lie in a packed tensor.

    Args:
        lengths: number of tokens of each sequence, in the order in which they lie.
    """

    lengths: tuple[int, ...]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Neighbours of equal length: how many, and how long each is."""
        return tuple((len(list(run)), length) for length, run in groupby(self.lengths))

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each run."""
        return [count * length for count, length in self.runs]

    def offsets(self, device: torch.device) -> Int32[Tensor, " ends"]:
        """Where each sequence begins, and where the last one ends."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return ends.to(device, non_blocking=True)

    def split(self, x: Float[Tensor, " t *d"]) -> list[Tensor]:
        """Give each run of a packed tensor as a batch, a view."""
        # One split, not a slice a run: the backward pass then writes the gradient once.
        return [part.unflatten(0, run) for part, run in zip(x.split(self.sizes), self.runs, strict=True)]

    def repeat(self, x: Float[Tensor, "s d"]) -> Float[Tensor, "t d"]:
        """Give every token the row of its sequence."""
        lengths = torch.tensor(self.lengths, device=x.device)
        return x.repeat_interleave(lengths, dim=0, output_size=sum(self.lengths))


class PackedAttention(Attention):
    """Attention that, told a packing, mixes the tokens of each sequence by themselves.

    The cost is each sequence's own square, summed. On CUDA in half precision, PyTorch's attention for
    variable lengths takes all sequences at once; elsewhere each run is one call of the kernel.
    """

    def forward(self, x: Float[Tensor, "b n d"], packing: Packing | None = None) -> Float[Tensor, "b n d"]:
        """Let every token attend to all tokens of its sample, or of its sequence.

        Args:
            x: a batch of tokens, or a packed tensor (1 t d) where there is a packing.
            packing: which sequences lie in `x`.
        """
        if packing is None:
            return super().forward(x)
        q, k, v = (part[0].transpose(0, 1) for part in self.project(x))
        q, k = q.to(v.dtype), k.to(v.dtype)
        attend = self.attend
        if isinstance(attend, FusedAttention) and takes_varlen(q, attend):
            mixed = attend_varlen(q, k, v, packing, attend.scale)
        else:
            runs = zip(packing.split(q), packing.split(k), packing.split(v), strict=True)
            mixed = torch.cat([merge_run(attend(*(part.transpose(1, 2) for part in run))) for run in runs])
        return self.dropout(self.to_out(mixed.unsqueeze(0)))


class PackedBlock(Block):
    """A block whose attention and dropped paths follow a packing."""

    attention: Residual
    feedforward: Residual

    def forward(self, x: Float[Tensor, "*b n d"], packing: Packing | None = None) -> Float[Tensor, "*b n d"]:
        """Apply both residual branches, to a batch or to a packed tensor."""
        if packing is None:
            return super().forward(x)
        x = x + _tail(self.attention, self.attention.branch(self.attention.norm(x), packing), packing)
        return x + _tail(self.feedforward, self.feedforward.branch(self.feedforward.norm(x)), packing)


class PackedPool(AttentionPool):
    """Attention pooling that, told a packing, gives one vector a sequence."""

    def forward(self, x: Float[Tensor, "*b n d"], packing: Packing | None = None) -> Float[Tensor, "s d"]:
        """Pool a batch, or the sequences of a packed tensor."""
        if packing is None:
            return super().forward(x)
        q = self.to_q(self.query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).unbind(1)
        pooled = self.to_out(pool_runs(self.attend, q, k, v, packing))
        return pooled + self.mlp(self.norm(pooled))


class QueryPool(nn.Module):
    """Pool tokens by attention from one learned query.

    Args:
        dim: width of a token.
        heads: number of heads.
        dim_head: width of a head.
        qkv_bias: whether the projections to queries, keys and values have biases.
        out_bias: whether the output projection has a bias.
        qk_norm: makes the norm of queries and of keys from the width of a head, where wanted.
        norm: makes the norm of the query, before it is projected.
        residual: whether the query is added to what it gathers.
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
        norm: Callable[[], nn.Module],
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.residual = residual
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=dim**-0.5)
        self.norm = norm()
        self.to_q = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=qkv_bias)
        self.q_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.k_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.attend = FusedAttention()
        self.to_out = nn.Linear(heads * dim_head, dim, bias=out_bias)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)
        init_xavier(self.to_out)

    def forward(self, x: Float[Tensor, "*b n d"], packing: Packing | None = None) -> Float[Tensor, "s d"]:
        """Pool a batch, or the sequences of a packed tensor."""
        q = self.to_q(self.norm(self.query)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        q, k = self.q_norm(q), self.k_norm(k.transpose(-3, -2)).transpose(-3, -2)
        pooled = self.to_out(pool_runs(self.attend, q.to(v.dtype), k.to(v.dtype), v, packing))
        return pooled + self.query[0] if self.residual else pooled


class HeadNorm(nn.Module):
    """Scale vectors to a root mean square of 1, then by gains of each head's own (NaViT, section 2.1).

    Args:
        heads: number of heads.
        dim_head: width of a head.
        eps: added to the mean square.
    """

    def __init__(self, heads: int, dim_head: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, 1, dim_head))

    def forward(self, x: Float[Tensor, "*b h n e"]) -> Float[Tensor, "*b h n e"]:
        """Norm the last axis."""
        return (F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)


def pool_runs(
    attend: nn.Module,
    q: Float[Tensor, "1 h 1 e"],
    k: Float[Tensor, "*b n h e"],
    v: Float[Tensor, "*b n h e"],
    packing: Packing | None,
) -> Float[Tensor, "s d"]:
    """Attend from one query to each sample of a batch, or to each packed sequence; the heads side by side."""
    runs = [(k, v)] if packing is None else zip(packing.split(k), packing.split(v), strict=True)
    pooled = []
    for keys, values in runs:
        query = q.expand(keys.shape[0], -1, -1, -1)
        pooled.append(merge_run(attend(query, keys.transpose(1, 2), values.transpose(1, 2))))
    return torch.cat(pooled)


def merge_run(x: Float[Tensor, "b h n e"]) -> Float[Tensor, "t d"]:
    """Concatenate the heads and pack the batch."""
    return x.transpose(1, 2).flatten(2).flatten(0, 1)


def takes_varlen(q: Tensor, attend: FusedAttention) -> bool:
    """Tell whether PyTorch's attention for variable lengths can stand in for the kernel."""
    return (
        HAS_VARLEN
        and q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] % 8 == 0
        and not (attend.training and attend.dropout)
    )


def attend_varlen(
    q: Float[Tensor, "t h e"],
    k: Float[Tensor, "t h e"],
    v: Float[Tensor, "t h e"],
    packing: Packing,
    scale: float | None = None,
) -> Float[Tensor, "t d"]:
    """Attend within every sequence by one call of the kernel for variable lengths."""
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = packing.offsets(q.device), max(packing.lengths)
    mixed = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scale)
    assert isinstance(mixed, Tensor), "nothing but the values is asked for"
    return mixed.flatten(1)


def group_by_length(lengths: Sequence[int], maximum: int) -> list[list[int]]:
    """Place sequences in rows of at most so many tokens, each in the first row with room for it.

    The greedy packing of NaViT (arXiv:2307.06304, appendix A.3).

    Args:
        lengths: tokens of each sequence.
        maximum: tokens of a row at most.

    Returns:
        The rows: positions in `lengths`, rising within each.

    Raises:
        ValueError: where a sequence alone is longer than a row.
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
    """Hold that every sequence fits in a row by itself.

    Raises:
        ValueError: naming the first that does not.
    """
    for index, length in enumerate(lengths):
        if length > maximum:
            raise ValueError(f"image {index} has {length} tokens, a row takes at most {maximum}")


def _tail(residual: Residual, update: Float[Tensor, "1 t d"], packing: Packing) -> Float[Tensor, "1 t d"]:
    """Apply what stands before the sum; a path is dropped for whole sequences."""
    for module in residual.tail:
        if isinstance(module, DropPath):
            if module.training:
                factors = module(update.new_ones(len(packing.lengths), 1))
                update = update * packing.repeat(factors)
        else:
            update = module(update)
    return update
