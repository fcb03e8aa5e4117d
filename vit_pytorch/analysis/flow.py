"""What flows through many layers of attention: rollout, from maps alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_pytorch.analysis.layout import Map, TokenLayout, in_single
from vit_pytorch.layers.options import check_choice

Step = Callable[[Tensor], Tensor]
FUSE: dict[str, Step] = {
    "mean": lambda maps: maps.mean(dim=1),
    "max": lambda maps: maps.amax(dim=1),
    "min": lambda maps: maps.amin(dim=1),
}


def rollout_of_maps(
    maps: Sequence[Map], *, fuse: str = "mean", identity: float = 0.5
) -> Float[Tensor, "b q n"]:
    """Follow attention through all layers, down to the tokens that entered the first one.

    A layer mixes tokens by W = (1 - identity) A + identity I, A being the maps fused over heads, rows divided
    by their sums, and I the residual; the rollout is the product of all W (Abnar and Zuidema 2020,
    arXiv:2005.00928, section 3, where `identity` is 0.5 and heads are averaged).

    A class token that joins late (maps of one query and a key more) starts there as itself; a pooling by
    one query, which is the last map then, reads the patches without a residual. Branches of attention that
    a model runs in parallel are followed one after the other.

    Args:
        maps: of all layers in their order, rows summing to 1.
        fuse: over heads: "mean", "max" or "min".
        identity: weight of the residual, in [0, 1].

    Returns:
        What each token that leaves the last layer took from each that entered; rows sum to 1.

    Raises:
        ValueError: where sizes do not follow from layer to layer, weights are negative, or an option is
            out of range.
    """
    check_choice("fuse", fuse, FUSE)
    if not 0 <= identity <= 1:
        raise ValueError(f"the weight of the residual is in [0, 1], got {identity}")
    lowest = min((float(layer.min()) for layer in maps), default=0.0)
    if lowest < 0:
        raise ValueError(f"rollout follows weights of attention, which are at least 0, got {lowest:.3g}")

    def step(mixed: Tensor) -> Tensor:
        eye = torch.eye(mixed.shape[-1], device=mixed.device, dtype=mixed.dtype)
        return (1 - identity) * mixed + identity * eye

    return compose([normalise_rows(FUSE[fuse](in_single(layer))) for layer in maps], step, rest=1.0)


def normalise_rows(x: Float[Tensor, "*b q k"]) -> Float[Tensor, "*b q k"]:
    """Divide each row by its sum; a row of zeros, which has none, becomes uniform."""
    total = x.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, x / total.clamp(min=torch.finfo(x.dtype).tiny), 1 / x.shape[-1])


def compose(mixed: Sequence[Float[Tensor, "b _ _"]], step: Step, *, rest: float) -> Float[Tensor, "b q n"]:
    """Multiply what layers do to tokens, from the first to the last.

    Args:
        mixed: a matrix for each layer: how much a query takes from a key.
        step: makes the matrix of a whole layer, residual included, from that of its attention.
        rest: weight that patches have on themselves in a layer in which the class token alone attends.

    Raises:
        ValueError: where sizes do not follow from layer to layer.
    """
    if not mixed:
        raise ValueError("expected maps of at least 1 layer, got 0")
    first = mixed[0]
    flow = torch.eye(first.shape[2], device=first.device, dtype=first.dtype).repeat(len(first), 1, 1)
    joined = False
    for layer, matrix in enumerate(mixed):
        if len(matrix) != len(flow):
            raise ValueError(
                f"expected maps of {len(flow)} samples in layer {layer}, got {len(matrix)}; attention within "
                "windows is not followed"
            )
        queries, keys, tokens = *matrix.shape[1:], flow.shape[1]
        if not joined and queries == 1 and keys == tokens + 1:
            flow = F.pad(flow, (1, 0, 1, 0))
            flow[:, 0, 0] = 1
            joined, tokens = True, keys
        if queries == keys == tokens:
            flow = step(matrix) @ flow
        elif joined and queries == 1 and keys == tokens:
            square = rest * torch.eye(keys, device=matrix.device, dtype=matrix.dtype).repeat(
                len(matrix), 1, 1
            )
            square[:, 0] = matrix[:, 0]
            flow = step(square) @ flow
        elif queries == 1 < keys <= tokens and layer == len(mixed) - 1:
            flow = matrix @ flow[:, tokens - keys :]
        else:
            raise ValueError(
                f"expected maps of {tokens} tokens on themselves, or of one query, in layer {layer}, got "
                f"{queries} queries and {keys} keys; tokens are followed where no layer drops or merges them"
            )
    return flow


def read_out(flow: Float[Tensor, "b q n"], layout: TokenLayout) -> Float[Tensor, " b *grid"]:
    """Take what the classifier sees: the class token's or the pooling's row, or the mean of the patches'."""
    if flow.shape[1] == 1 or layout.class_token:
        return layout.on_grid(flow[:, 0])
    return layout.on_grid(flow[:, -layout.num_patches :].mean(dim=1))
