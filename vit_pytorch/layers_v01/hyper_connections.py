"""Hyper-connections: several residual streams, and learned connections between them and the layers.

D. Zhu, H. Huang, Z. Huang, Y. Zeng, Y. Mao, B. Wu, Q. Min, X. Zhou 2024, arXiv:2409.19606. What a residual
network fixes, how much of its input a layer keeps, is learned here: for each layer and, where dynamic, token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers_v01.blocks import Encoder, Residual
from vit_pytorch.layers_v01.value_residual import ValueResidualEncoder


class HyperConnection(nn.Module):
    """What one layer reads from the streams, and what it leaves in them (section 2, algorithm 2).

    The layer reads sum_i a_i h_i, and stream j becomes sum_i A_ij h_i + b_j layer(...). At first, the layer
    reads one stream, the streams stay apart, and each gets the whole of the layer's output. Where dynamic,
    scale * tanh(norm(h_i) W) is added to a, A and b for each token; W is zero at first.

    Args:
        dim: width of a token.
        streams: number of streams.
        index: of the layer, attention and feed-forward counted by themselves; says which stream it reads.
        dynamic: whether the connections depend on the token, too.
        norm: makes the norm from the width of a token.
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        index: int,
        *,
        dynamic: bool = True,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        if streams < 1:
            raise ValueError(f"hyper-connections need at least 1 stream, got {streams}")
        read = torch.zeros(streams, 1)
        read[index % streams] = 1
        # The first column reads, the others mix.
        self.alpha = nn.Parameter(torch.cat([read, torch.eye(streams)], dim=1))
        self.beta = nn.Parameter(torch.ones(streams))
        self.dynamic = dynamic
        if dynamic:
            self.norm = norm(dim)
            self.to_alpha_beta = nn.Linear(dim, streams + 2, bias=False)
            nn.init.zeros_(self.to_alpha_beta.weight)
            self.alpha_scale = nn.Parameter(torch.tensor([0.01]))
            self.beta_scale = nn.Parameter(torch.tensor([0.01]))

    def forward(
        self, streams: Float[Tensor, "b n s d"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n s d"], Float[Tensor, "*b s"]]:
        """Give what the layer reads, the streams without its output, and each stream's share of that."""
        alpha, beta = self.alpha, self.beta
        if self.dynamic:
            width = self.alpha.shape[1]
            found = self.to_alpha_beta(self.norm(streams)).tanh()
            alpha = alpha + self.alpha_scale * found[..., :width]
            beta = beta + self.beta_scale * found[..., width]
        mixed = alpha.mT @ streams if self.dynamic else torch.einsum("si,bnsd->bnid", alpha, streams)
        return mixed[:, :, 0], mixed[:, :, 1:], beta


class HyperResidual(Residual):
    """A branch between streams: tail(branch(norm(x))) is added to each, by learned connections.

    Args:
        branch: what the block computes.
        norm: applied to what enters the branch, not to the streams.
        tail: what stands between the branch and the sums.
        connection: between the streams and the branch.
    """

    def __init__(
        self,
        branch: nn.Module,
        norm: nn.Module,
        tail: Iterable[nn.Module] = (),
        *,
        connection: HyperConnection,
    ) -> None:
        super().__init__(branch, norm, tail)
        self.connection = connection

    def forward(self, x: Float[Tensor, "b n s d"], *context: Any) -> Float[Tensor, "b n s d"]:
        """Add the branch to the streams."""
        read, kept, beta = self.connection(x)
        return kept + beta[..., None] * self.update(read, *context)[:, :, None]


class HyperEncoder(Encoder):
    """A stack of blocks over streams: all start as the tokens that enter, and their sum leaves.

    Args:
        block: makes the block of a layer from its index, of `HyperResidual`.
        depth: number of blocks.
        streams: number of streams.
    """

    def __init__(self, block: Callable[[int], nn.Module], *, depth: int, streams: int) -> None:
        super().__init__(block, depth=depth)
        self.streams = streams

    def steps(self, x: Float[Tensor, "b n d"], *context: Any) -> Iterator[Float[Tensor, "b n d"]]:
        """Give the sum of the streams after every block in turn."""
        expanded = x[:, :, None].expand(-1, -1, self.streams, -1)
        for streams in super().steps(expanded, *context):
            yield streams.sum(dim=2)


class HyperValueEncoder(HyperEncoder, ValueResidualEncoder):
    """A stack of blocks over streams, each of which is handed the first one's values, too."""


def make_encoder(
    block: Callable[[int], nn.Module], *, depth: int, streams: int | None = None, values: bool = False
) -> Encoder:
    """Make the stack of blocks for the residuals that they have.

    Args:
        block: makes the block of a layer from its index.
        depth: number of blocks.
        streams: number of streams, where blocks are of `HyperResidual`.
        values: whether attention is a `ValueResidualAttention`.
    """
    if streams is None:
        return (ValueResidualEncoder if values else Encoder)(block, depth=depth)
    return (HyperValueEncoder if values else HyperEncoder)(block, depth=depth, streams=streams)
