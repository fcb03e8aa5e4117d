"""Attention in three public steps: project, attend, merge; and the kernels that attend.

A kernel that computes the weights passes the result of its softmax through a submodule `weights`, an
identity, where it can be seen; one that mixes them afterwards passes what multiplies the values through
another one, `mixed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import Option

if TYPE_CHECKING:
    from vit_pytorch.layers.packing import Packing

# PyTorch does not declare that it exports it.
jit_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
MAX_PLAIN_KEYS = 1024
# Swin V2's bound on the factor that cosines are multiplied with.
MAX_FACTOR = 100.0
CPU: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
# PyTorch's fused kernel for bf16 on a processor is written for AMX's tiles, and slow without them.
BF16_LACKS_AMX = bool(CPU) and not CPU.get("amx_bf16", False)
# Queries, keys, values and what attention returns, split into heads.
Queries = Float[Tensor, "b h n e"]
Keys = Float[Tensor, "b h m e"]
Values = Float[Tensor, "b h m f"]
# Keys or values of which each head serves several of queries.
SharedKeys = Float[Tensor, "b g _ _"]
Mixed = Float[Tensor, "b h n f"]
# Positions in the grid of the patches that are among the tokens.
Ids = Int[Tensor, "b k"]


@dataclass(frozen=True)
class BlockInputs:
    """What a block uses besides tokens; each part is optional.

    Args:
        grid: patches along each axis.
        num_prefix_tokens: number of tokens before the patches.
        ids_keep: positions in the grid, in row-major order, of the patches that are among the tokens; None
            for all of them.
        mask: broadcasts to the scores (b h n m); boolean, true where a query sees a key, or a bias that is
            added.
        rotation: cosine and sine of each token, (n f 2) or (b 1 n f 2), or of each layer, head and token,
            (l h n f 2) or (b l h n f 2).
        first_values: the values (b h n e) of the first layer.
        queries: what attention that computes none of its tokens has for queries, (b n d).
        packing: which sequences lie in a packed tensor.
        shared: a module that all blocks share.
    """

    grid: tuple[int, ...] | None = None
    num_prefix_tokens: int = 0
    ids_keep: Int[Tensor, "b k"] | None = None
    mask: Tensor | None = None
    rotation: Tensor | None = None
    first_values: Tensor | None = None
    queries: Tensor | None = None
    packing: Packing | None = None
    shared: nn.Module | None = None


NO_INPUTS = BlockInputs()


class FusedAttention(nn.Module):
    """softmax(q k^T * scale) v in one kernel, in memory linear in the number of tokens.

    On a processor, two plain products serve where they take less time, up to 1024 keys, a bound that keeps
    the memory linear: a half to a quarter of the fused kernel's in bf16 without AMX; two thirds where values
    are wider than keys, and three quarters where the mask is learned, which that kernel does not know.
    """

    def __init__(self, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.scale = scale

    def forward(self, q: Queries, k: Keys, v: Values, mask: Tensor | None = None) -> Mixed:
        """Attend from each query to all keys, or to those that a mask leaves (see `attention_weights`)."""
        dropout = self.dropout if self.training else 0.0
        if prefers_plain(q, k, v, mask):
            return F.dropout(attention_weights(q, k, self.scale, mask), dropout) @ v
        if isinstance(mask, Tensor) and mask.ndim == 3:
            # The fused kernel of processors takes masks of two or four axes only.
            mask = mask[None]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=self.scale)

    def explicit(self) -> ExplicitAttention:
        """Return the kernel of the same function in which the weights can be seen."""
        return ExplicitAttention(self.dropout, self.scale).train(self.training)

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"dropout={self.dropout}, scale={self.scale}"


class HeadNorm(nn.Module):
    """RMSNorm of queries or keys with gains per head (NaViT, section 2.1).

    B. Zhang, R. Sennrich 2019, arXiv:1910.07467.

    Args:
        eps: added to the mean square.
    """

    def __init__(self, heads: int, dim_head: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, 1, dim_head))

    def forward(self, x: Float[Tensor, "*b h n e"]) -> Float[Tensor, "*b h n e"]:
        """Normalise the last axis."""
        return (F.rms_norm(x, self.weight.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)


class Direction(nn.Module):
    """Scale vectors to unit length, for the cosine of queries and keys (Swin V2, arXiv:2111.09883, eq. 2)."""

    def forward(self, x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n e"]:
        """Return the directions."""
        return F.normalize(x, dim=-1)


class ScaledDirection(Direction):
    """The direction of queries, times a learned factor for each head, at most 100: the inverse of tau."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.log_factor = nn.Parameter(torch.full((heads, 1, 1), log(10)))

    def forward(self, x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n e"]:
        """Return the directions, scaled."""
        return super().forward(x) * self.log_factor.clamp(max=log(MAX_FACTOR)).exp()


def prefers_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Return whether two plain products take less time than PyTorch's fused kernel."""
    if not isinstance(q, Tensor) or jit_is_tracing():
        # Proxies and traced sizes have no values to decide by.
        return False
    learned = mask is not None and mask.requires_grad
    slow = (q.dtype == torch.bfloat16 and BF16_LACKS_AMX) or q.shape[3] != v.shape[3] or learned
    # the number of keys last: an exported graph of open sizes would be bound to what is asked of them
    return slow and q.device.type == "cpu" and k.shape[2] <= MAX_PLAIN_KEYS


class ExplicitAttention(nn.Module):
    """The function of `FusedAttention`, step by step, so that the weights can be seen."""

    def __init__(self, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Queries, k: Keys, v: Values, mask: Tensor | None = None) -> Mixed:
        """Attend from each query to all keys, or to those that a mask leaves (see `attention_weights`)."""
        return self.dropout(self.weights(attention_weights(q, k, self.scale, mask))) @ v


def attention_weights(
    q: Queries, k: Keys, scale: float | None = None, mask: Tensor | None = None
) -> Float[Tensor, "b h n m"]:
    """Compute softmax(q k^T * scale + mask): what each query takes from each key, rows summing to 1.

    Args:
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


def mix_heads(linear: nn.Module, maps: Float[Tensor, "b h n m"]) -> Float[Tensor, "b h n m"]:
    """Mix the maps of all heads with each other by a linear layer, in the same way for each pair of
    tokens."""
    return linear(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TalkingHeads(nn.Module):
    """Attention whose heads exchange scores before the softmax, and weights after it (arXiv:2003.02436).

    Both exchanges are linear over the heads, the same for each pair of tokens. The first one's bias cancels
    in the softmax; published weights have it.
    """

    def __init__(self, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix_scores = nn.Linear(heads, heads)
        self.mix_weights = nn.Linear(heads, heads)
        self.weights = nn.Identity()
        self.mixed = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, q: Queries, k: Keys, v: Values, bias: Float[Tensor, "*_ n m"] | None = None) -> Mixed:
        """Attend from each query to all keys.

        Args:
            bias: what is added to the scores before they are exchanged; broadcasts to (b h n m).
        """
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        scores = mix_heads(self.mix_scores, scores if bias is None else scores + bias)
        weights = mix_heads(self.mix_weights, self.weights(scores.softmax(dim=-1)))
        return self.dropout(self.mixed(weights)) @ v


class CrossCovariance(nn.Module):
    """softmax(k^T q * temperature) over channels, applied to the values (XCiT, arXiv:2106.09681, eq. 2).

    Queries and keys are scaled to length 1 over the tokens. The weights of a head are a square of its
    dimension, whatever the number of tokens.

    Args:
        heads: number of heads, each with a learned temperature that starts at 1.
    """

    def __init__(self, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Queries, k: Queries, v: Queries, mask: None = None) -> Queries:
        """Attend from each channel of a head to all channels of that head."""
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        weights = (q.mT @ k * self.temperature).softmax(dim=-1)
        return v @ self.dropout(self.weights(weights)).mT


def split_heads(x: Float[Tensor, "b n d"], heads: int) -> Float[Tensor, "b h n e"]:
    """Split the channels into heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b n d"]:
    """Concatenate the heads; the inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def head_dim(dim: int, heads: int) -> int:
    """Return the dimension of a head where the heads share the token dimension.

    Raises:
        ValueError: if `heads` does not divide `dim`.
    """
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
    return dim // heads


def heads_per_stage(dims: Sequence[int], heads: Sequence[int] | None) -> tuple[int, ...]:
    """Return the number of heads of each stage; default one for 32 channels.

    Raises:
        ValueError: if the dimensions are not multiples of the heads.
    """
    if heads is None:
        if any(dim % 32 for dim in dims):
            raise ValueError(f"dims must be multiples of 32, the head dimension, got {tuple(dims)}")
        return tuple(dim // 32 for dim in dims)
    if len(heads) != len(dims):
        raise ValueError(f"heads must be one for each of {len(dims)} stages, got {tuple(heads)}")
    if any(dim % head for dim, head in zip(dims, heads, strict=True)):
        raise ValueError(f"dims must be multiples of heads, got {tuple(dims)} and {tuple(heads)}")
    return tuple(heads)


class AttentionPosition(Protocol):
    """Positions inside attention: act on queries and keys, or on the mask."""

    def __call__(self, q: Tensor, k: Tensor, inputs: BlockInputs) -> tuple[Queries, Queries, Tensor | None]:
        """Return queries, keys and the mask."""


class QueryValueBias(nn.Module):
    """Biases of queries and values (BEiT, arXiv:2106.08254): one of the keys would change no weight."""

    def __init__(self, queries: int, values: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries))
        self.value = nn.Parameter(torch.zeros(values))

    def forward(self, qkv: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Add the biases to queries, keys and values, one after the other."""
        return qkv + torch.cat([self.query, torch.zeros_like(self.value), self.value])


@dataclass(frozen=True)
class MultiHead(Option):
    """Option: each head has queries, keys and values of its own.

    Args:
        scale: factor on the attention scores; default 1 / sqrt(dim_head).
    """

    kind: ClassVar[str] = "multi_head"
    scale: float | None = None

    def heads_of_keys(self, heads: int, layer: int, depth: int) -> int:
        """Return the number of heads of keys and values in a layer."""
        return heads

    def kernel(self, dropout: float, dim_head: int, layer: int) -> Callable[[], nn.Module]:
        """Return what builds the kernel of a layer."""
        return partial(FusedAttention, dropout, self.scale)


@dataclass(frozen=True)
class GroupedQuery(MultiHead):
    """Option: several heads of queries share a head of keys and values.

    J. Ainslie et al. 2023, arXiv:2305.13245.

    Args:
        scale: factor on the attention scores; default 1 / sqrt(dim_head).
        kv_heads: number of heads of keys and values, which divides that of queries.
        full_layers: so many layers at the beginning, and as many at the end, share none (Sapiens 2,
            arXiv:2604.21681); default no layers.
    """

    kind: ClassVar[str] = "grouped_query"
    kv_heads: int = 1
    full_layers: int | None = None

    def heads_of_keys(self, heads: int, layer: int, depth: int) -> int:
        """Return the number of heads of keys and values in a layer."""
        ends = self.full_layers or 0
        return self.kv_heads if ends <= layer < depth - ends else heads


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2; ViT, appendix A).

    Args:
        qkv_bias: use biases for queries, keys and values; "qv" for queries and values (`QueryValueBias`).
        dim_head: head dimension; `heads * dim_head` need not equal `dim`.
        kv_heads: number of heads of keys and values; default that of queries. Otherwise each serves several
            heads of queries, one after the other (arXiv:2305.13245).
        qk_norm: builds the norm of queries and of keys from the head dimension; default none.
        position: positions inside attention, an `AttentionPosition`; default none.
        value_mix: acts on values, first layer's values and tokens; default none.
        sub_norm: builds the norm before the output projection; default none.
        out_dim: dimension of the output; default `dim`.

    Raises:
        ValueError: if the heads of keys and values do not divide those of queries.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        kv_heads: int | None = None,
        qkv_bias: bool | Literal["qv"] = True,
        out_bias: bool = True,
        dropout: float = 0.0,
        qk_norm: Callable[[int], nn.Module] | None = None,
        position: nn.Module | None = None,
        value_mix: nn.Module | None = None,
        sub_norm: Callable[[int], nn.Module] | None = None,
        out_dim: int | None = None,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.kv_heads = kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {heads} and {kv_heads}")
        inner, shared = heads * dim_head, kv_heads * dim_head
        self.to_qkv = nn.Linear(dim, inner + 2 * shared, bias=qkv_bias is True)
        self.qv_bias = QueryValueBias(inner, shared) if qkv_bias == "qv" else nn.Identity()
        self.q_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.k_norm = nn.Identity() if qk_norm is None else qk_norm(dim_head)
        self.kernel = kernel()
        self.sub_norm = nn.Identity() if sub_norm is None else sub_norm(inner)
        self.to_out = nn.Linear(inner, dim if out_dim is None else out_dim, bias=out_bias)
        self.dropout = nn.Dropout(dropout)
        self.position = position
        self.value_mix = value_mix
        init_xavier(self.to_qkv, parts=(inner, shared, shared))
        init_xavier(self.to_out)

    def project(self, x: Float[Tensor, "b n d"]) -> tuple[Queries, SharedKeys, SharedKeys]:
        """Project tokens to queries, keys and values: views of one product, split into heads."""
        qkv = self.qv_bias(self.to_qkv(x)).unflatten(-1, (-1, self.dim_head)).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        return self.q_norm(q), self.k_norm(k), v

    def attend(self, q: Queries, k: SharedKeys, v: SharedKeys, inputs: BlockInputs) -> Mixed:
        """Attend; positions and masks act here."""
        mask = inputs.mask
        if self.kv_heads < self.heads:
            # Before positions, which may differ between heads of queries.
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        if self.position is not None:
            q, k, mask = self.position(q, k, inputs)
        return self.kernel(q, k, v, mask)

    def merge(self, x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b n d"]:
        """Concatenate the heads and project them back to the token dimension."""
        return self.dropout(self.to_out(self.sub_norm(x.transpose(1, 2).flatten(2))))

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Attend from each token to all tokens of its sample.

        Args:
            inputs: mask, rotations and the first layer's values, where there are any.
        """
        q, k, v = self.project(x)
        if self.value_mix is not None:
            v = self.value_mix(v, inputs.first_values, x)
        return self.merge(self.attend(q, k, v, inputs))


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to those of another sequence, which may have another dimension.

    Args:
        dim: query dimension.
        context_dim: key-value dimension; default that of the queries.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        heads: int,
        dim_head: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_kv = nn.Linear(context_dim or dim, 2 * heads * dim_head, bias=qkv_bias)
        self.kernel = kernel()
        self.to_out = nn.Linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)
        init_xavier(self.to_out)

    def project(
        self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b n c"]
    ) -> tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Project tokens to queries, and the context to keys and values, split into heads."""
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def merge(self, x: Float[Tensor, "b h m e"]) -> Float[Tensor, "b m d"]:
        """Concatenate the heads and project them back to the token dimension."""
        return self.dropout(self.to_out(x.transpose(1, 2).flatten(2)))

    def forward(self, x: Float[Tensor, "b m d"], context: Float[Tensor, "b n c"]) -> Float[Tensor, "b m d"]:
        """Attend from each token to all tokens of the context."""
        return self.merge(self.kernel(*self.project(x, context)))


def use_explicit_kernels(model: nn.Module) -> None:
    """Replace the fused kernels of a model's `Attention` by explicit ones of the same function."""
    for part in model.modules():
        if isinstance(part, Attention) and isinstance(part.kernel, FusedAttention):
            part.kernel = part.kernel.explicit()
