"""An Image is Worth 16x16 Words, for arrays with causal axes: masks of attention.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

Which patches of an array see which, where some of its axes, such as time, are causal; as a function for
PyTorch's flex attention, and attention by it.

Family: plain
Differs from the paper: there are no causal axes in it; the functions are the public vit-pytorch package's.
Class tokens see all patches and are seen by them, as there, so that a layer later patches know what comes
after them; `vit_nd.ViTND` does not let patches see the class token. `nd_attention` uses flex attention only
if it is given a block mask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from vit_pytorch.vit_nd import read_axes

# From indices of sample, head, query and key, which broadcast, whether the query sees the key.
CausalMask = Callable[[Tensor | int, Tensor | int, Tensor, Tensor], Tensor]


def nd_causal_mask_fn(
    num_patches_per_dim: Sequence[int], causal_dims: Sequence[int], has_cls: bool = False
) -> CausalMask:
    """Return the function (b, h, q_idx, k_idx) that is true where a token sees another.

    A token sees those that are not after it along any causal axis; tokens are in row-major order.

    Args:
        num_patches_per_dim: patches along each axis.
        causal_dims: the causal axes.
        has_cls: whether a class token comes first, which sees all and is seen by all.
    """
    grid = tuple(num_patches_per_dim)
    axes = [(prod(grid[axis + 1 :]), grid[axis]) for axis in causal_dims]

    def sees(b: Tensor | int, h: Tensor | int, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        q, k = ((index - 1).clamp(min=0) if has_cls else index for index in (q_idx, k_idx))
        seen = torch.ones_like(q, dtype=torch.bool)
        for stride, extent in axes:
            seen = seen & (q // stride % extent >= k // stride % extent)
        return seen | (q_idx == 0) | (k_idx == 0) if has_cls else seen

    return sees


def get_nd_causal_mask_fn(
    num_patches_per_dim: Sequence[int],
    causal_dims: int | Sequence[int] | None,
    ndim: int | None = None,
    has_cls: bool = False,
) -> CausalMask | None:
    """Return the function of `nd_causal_mask_fn`, or None without causal axes.

    Args:
        causal_dims: the causal axes, or one of them.
        ndim: number of axes; default that of `num_patches_per_dim`.

    Raises:
        ValueError: if there is no such axis.
    """
    if causal_dims is None:
        return None
    axes = read_axes(causal_dims, len(num_patches_per_dim) if ndim is None else ndim)
    return nd_causal_mask_fn(num_patches_per_dim, axes, has_cls)


def flex_attention_supported(device: torch.device | str) -> bool:
    """Return whether flex attention can be compiled for a device: CUDA, or x86 processors with AVX2."""
    kind = torch.device(device).type
    has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return kind == "cuda" or (kind == "cpu" and has_avx2 and sys.platform != "darwin")


def create_nd_block_mask(
    mask_fn: CausalMask, heads: int, seq_len: int, device: torch.device | str
) -> BlockMask | None:
    """Return the block mask of a mask function, or None where flex attention is not supported."""
    if not flex_attention_supported(device):
        return None
    return create_block_mask(mask_fn, 1, heads, seq_len, seq_len, device=device)


def nd_attention(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b h n e"],
    v: Float[Tensor, "b h n f"],
    mask_fn: CausalMask | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h n f"]:
    """Attend from each query to the keys that it sees.

    Args:
        mask_fn: which keys a query sees; default all.
        block_mask: the same for flex attention, which is to be compiled; default fused attention with
            `mask_fn`.
        scale: factor of the scores; default 1 / sqrt(e).
    """
    if block_mask is not None:
        return flex_attention(q, k, v, block_mask=block_mask, scale=scale)
    mask = None
    if mask_fn is not None:
        index = torch.arange(q.shape[2], device=q.device)
        mask = mask_fn(0, 0, index[:, None], index[None])
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
