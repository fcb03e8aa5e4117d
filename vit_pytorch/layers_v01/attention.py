"""Attention in three public steps: project, relate, merge; and the kernels that attend.

A kernel that computes the weights passes what its softmax gives through a submodule `weights`, an identity,
where it can be seen; one that mixes them afterwards passes what the values meet through another one, `mixed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers_v01.init import init_xavier
from vit_pytorch.layers_v01.linear import Linear

SHORT = 1024
CPU: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
# PyTorch's fused kernel for bf16 on a processor is written for AMX's tiles, and slow without them.
BF16_LACKS_AMX = bool(CPU) and not CPU.get("amx_bf16", False)


class FusedAttention(nn.Module):
    """softmax(q k^T * scale) v in one kernel, in memory linear in the number of tokens.

    On a processor two plain products serve where they take less time, up to 1024 keys, a bound that keeps
    the memory linear: a half to a quarter of the fused kernel's in bf16 without AMX; two thirds where values
    are wider than keys, and three quarters where the mask is learned, which that kernel does not know.

    Args:
        dropout: probability with which an attention weight is dropped in training.
        scale: factor on the scores; 1 / sqrt(width of a head) unless told.
    """

    def __init__(self, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale

    def forward(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h m e"],
        v: Float[Tensor, "b h m f"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b h n f"]:
        """Attend from every query to all keys, or to those that a mask leaves (see `attention_weights`)."""
        dropout = self.dropout if self.training else 0.0
        learned = mask is not None and mask.requires_grad
        slow = (q.dtype == torch.bfloat16 and BF16_LACKS_AMX) or q.shape[3] != v.shape[3] or learned
        if slow and q.device.type == "cpu" and k.shape[2] <= SHORT:
            return F.dropout(attention_weights(q, k, self.scale, mask), dropout) @ v
        if mask is not None and mask.ndim == 3:
            # The fused kernel of processors takes masks of two or four axes alone.
            mask = mask[None]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=self.scale)

    def explicit(self) -> ExplicitAttention:
        """Give the kernel of the same function in which the weights can be seen."""
        return ExplicitAttention(self.dropout, self.scale).train(self.training)

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"dropout={self.dropout}, scale={self.scale}"


class ExplicitAttention(nn.Module):
    """The function of `FusedAttention`, step by step, so that the weights can be seen.

    Args:
        dropout: probability with which an attention weight is dropped in training.
        scale: factor on the scores; 1 / sqrt(width of a head) unless told.
    """

    def __init__(self, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h m e"],
        v: Float[Tensor, "b h m f"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b h n f"]:
        """Attend from every query to all keys, or to those that a mask leaves (see `attention_weights`)."""
        return self.dropout(self.weights(attention_weights(q, k, self.scale, mask))) @ v


def attention_weights(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b h m e"],
    scale: float | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "b h n m"]:
    """Compute softmax(q k^T * scale + mask): what every query takes from every key, rows summing to 1.

    Args:
        q: queries.
        k: keys.
        scale: factor on the scores; 1 / sqrt(width of a head) unless told.
        mask: broadcasts to the scores; boolean, true where a query sees a key, or a bias that is added.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    heads = q.shape[:2]
    # One batched product that scales as it writes; its first argument does not count.
    scores = torch.baddbmm(q.new_empty(()), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=scale)
    scores = scores.unflatten(0, heads)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)


class MixHeads(nn.Linear):
    """Mix the maps of all heads with each other, for every pair of tokens alike, by a linear layer.

    Args:
        heads: number of heads.
    """

    def __init__(self, heads: int) -> None:
        super().__init__(heads, heads)

    def forward(self, maps: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
        """Mix the maps; one batched product, without moving the heads to the last axis and back."""
        weight = self.weight.expand(maps.shape[0], -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, maps.flatten(2)).view_as(maps)


def width_of_head(dim: int, heads: int) -> int:
    """Give the width of a head where the heads share the width of a token.

    Raises:
        ValueError: where they cannot.
    """
    if dim % heads:
        raise ValueError(f"width {dim} is not a multiple of {heads} heads")
    return dim // heads


def heads_per_stage(dims: Sequence[int], heads: Sequence[int] | None) -> tuple[int, ...]:
    """Give the number of heads in each stage of a model: as told, or one for 32 channels.

    Raises:
        ValueError: where the widths are not multiples of the heads.
    """
    if heads is None:
        if any(dim % 32 for dim in dims):
            raise ValueError(f"widths {tuple(dims)} are not multiples of 32, the width of a head")
        return tuple(dim // 32 for dim in dims)
    if len(heads) != len(dims):
        raise ValueError(f"heads is one for each of {len(dims)} stages, got {tuple(heads)}")
    if any(dim % head for dim, head in zip(dims, heads, strict=True)):
        raise ValueError(f"widths {tuple(dims)} are not multiples of {tuple(heads)} heads")
    return tuple(heads)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2; ViT, appendix A).

    Args:
        dim: width of a token.
        heads: number of heads.
        dim_head: width of a head; `heads * dim_head` need not equal `dim`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        out_bias: whether the output projection has a bias.
        dropout: dropout on the output.
        qk_norm: makes the norm of queries and of keys from the width of a head, where wanted.
        attend: makes the kernel that mixes the values.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        qkv_bias: bool = True,
        out_bias: bool = True,
        dropout: float = 0.0,
        qk_norm: Callable[[int], nn.Module] | None = None,
        attend: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        inner = heads * dim_head
        self.to_qkv = Linear(dim, 3 * inner, bias=qkv_bias)
        self.q_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.k_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.attend = attend()
        self.to_out = Linear(inner, dim, bias=out_bias)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_qkv, parts=3)
        init_xavier(self.to_out)

    def project(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Project tokens to queries, keys and values: views of one product, split in heads."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, self.dim_head))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def merge(self, x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b n d"]:
        """Concatenate the heads and project them back to the model's width."""
        return self.dropout(self.to_out(x.transpose(1, 2).flatten(2)))

    def relate(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n f"],
    ) -> Float[Tensor, "b h n f"]:
        """Attend; a subclass that is handed something beside the tokens uses it here."""
        return self.attend(q, k, v)

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Let every token attend to all tokens of its sample.

        Args:
            x: tokens.
            context: what `relate` is handed beside queries, keys and values.
        """
        return self.merge(self.relate(*self.project(x), *context))


class MaskedAttention(Attention):
    """Attention that is handed a mask, too."""

    def relate(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n f"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b h n f"]:
        """Attend to those that the mask leaves, or with what it adds to the scores.

        Args:
            q: queries.
            k: keys.
            v: values.
            mask: broadcasts to the scores (b h n n); see `attention_weights`.
        """
        return self.attend(q, k, v, mask)


class QueryAttention(nn.Module):
    """What attention has whose queries come from elsewhere than its keys and values.

    Args:
        dim: width of a token that asks.
        context_dim: width of a token that is asked; that of the others unless told.
        heads: number of heads.
        dim_head: width of a head.
        qkv_bias: whether the projections to queries, keys and values have biases.
        dropout: dropout on the output.
        attend: makes the kernel that mixes the values.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        heads: int,
        dim_head: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attend: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_kv = Linear(context_dim or dim, 2 * heads * dim_head, bias=qkv_bias)
        self.attend = attend()
        self.to_out = Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)
        init_xavier(self.to_out)


class ClassAttention(QueryAttention):
    """Attention from the class token alone to itself and the patches (CaiT, arXiv:2103.17239, section 3).

    With one query, keys and values need not be computed: a head's scores are those of `q W_k` with the
    tokens, and its output is that of `W_v` on the tokens' mean under its weights. The kernel is given one
    head, in which the heads are the queries: its weights have the shape (batch, 1, heads, tokens). Biases of
    keys cancel in the softmax; those of values are added to the output, whole also where weights are dropped.
    """

    heads_are_queries = True
    # Layers whose weights are read while they are not called, so that what wraps a layer does not reach them.
    reads_weights = ("to_kv",)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b 1 d"]:
        """Give the class token's update from normed tokens, the class token in front."""
        to_k, to_v = self.to_kv.weight.unflatten(0, (2, self.heads, -1))
        width = to_k.shape[1]
        q = self.to_q(x[:, 0]).unflatten(-1, (self.heads, 1, width))
        # The kernel scales by the width of a token, the paper by that of a head.
        q = (q * (x.shape[-1] / width) ** 0.5) @ to_k
        tokens = x[:, None]
        mixed = self.attend(q.transpose(1, 2), tokens, tokens).transpose(1, 2)
        values = (mixed @ to_v.mT).flatten(1)
        if self.to_kv.bias is not None:
            values = values + self.to_kv.bias.chunk(2)[1]
        return self.dropout(self.to_out(values)[:, None])


class CrossAttention(QueryAttention):
    """Multi-head attention from tokens to those of another sequence, which may have another width."""

    def project(
        self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b n c"]
    ) -> tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Project tokens to queries, and the context to keys and values, split in heads."""
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def merge(self, x: Float[Tensor, "b h m e"]) -> Float[Tensor, "b m d"]:
        """Concatenate the heads and project them back to the tokens' width."""
        return self.dropout(self.to_out(x.transpose(1, 2).flatten(2)))

    def forward(self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b n c"]) -> Float[Tensor, "b m d"]:
        """Let every token attend to all tokens of the context."""
        return self.merge(self.attend(*self.project(x, context)))
