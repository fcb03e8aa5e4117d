"""Hyper-connections: several residual streams, and learned connections between them and the layers.

D. Zhu, H. Huang, Z. Huang, Y. Zeng, Y. Mao, B. Wu, Q. Min, X. Zhou 2024, arXiv:2409.19606. What a residual
network fixes, how much of its input a layer keeps, is learned here: for each layer and, where dynamic, token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, layer
from vit_pytorch.layers.options import Option


class HyperConnection(nn.Module):
    """What one layer reads from the streams, and what it leaves in them (section 2, algorithm 2).

    The layer reads sum_i a_i h_i, and stream j becomes sum_i A_ij h_i + b_j layer(...). At first, the layer
    reads one stream, the streams stay apart, and each gets the whole of the layer's output. Where dynamic,
    scale * tanh(norm(h_i) W) is added to a, A and b for each token; W is zero at first.

    Args:
        streams: number of streams.
        index: of the layer, attention and feed-forward counted by themselves; says which stream it reads.
        dynamic: whether the connections depend on the token, too.
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
        """Return what the layer reads, the streams without its output, and each stream's share of that."""
        alpha, beta = self.alpha, self.beta
        if self.dynamic:
            width = self.alpha.shape[1]
            found = self.to_alpha_beta(self.norm(streams)).tanh()
            alpha = alpha + self.alpha_scale * found[..., :width]
            beta = beta + self.beta_scale * found[..., width]
        mixed = alpha.mT @ streams if self.dynamic else torch.einsum("si,bnsd->bnid", alpha, streams)
        return mixed[:, :, 0], mixed[:, :, 1:], beta


class HyperBlock(Block):
    """A block between residual streams: what each branch computes is added to each stream by learned
    connections.

    Args:
        connect1: connections of attention.
        connect2: connections of the feed-forward.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        connect1: HyperConnection,
        connect2: HyperConnection,
        **options: Any,
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.connect1 = connect1
        # Parameters keep the order in which version 0.1 had them, by which states of optimizers are numbered.
        for name in ("norm2", "feedforward", "scale2", "drop_path"):
            self._modules[name] = self._modules.pop(name)
        self.connect2 = connect2

    @layer
    def forward(
        self, x: Float[Tensor, "b n s d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b n s d"]:
        """Transform the streams; see `Block`."""
        read, x, beta = self.connect1(x)
        update = self.drop_path(self.scale1(self.attention(self.norm1(read), inputs)))
        read, x, gamma = self.connect2(x + beta[..., None] * update[:, :, None])
        update = self.drop_path(self.scale2(self.feedforward(self.norm2(read))))
        return x + gamma[..., None] * update[:, :, None]

    def values(self, x: Float[Tensor, "b n s d"]) -> Float[Tensor, "b h n e"]:
        """Return the values that attention computes from these streams."""
        return super().values(self.connect1(x)[0])


@dataclass(frozen=True)
class HyperConnections(Option):
    """Option: several residual streams with learned connections, instead of one.

    Args:
        streams: number of streams.
        dynamic: the connections depend on the token, too.
    """

    kind: ClassVar[str] = "hyper"
    streams: int = 4
    dynamic: bool = True

    def build(
        self, dim: int, attention: nn.Module, feedforward: nn.Module, *, layer: int, **options: Any
    ) -> HyperBlock:
        """Build the block of a layer from its index and the arguments of `Block`."""
        norm = options.get("norm", nn.LayerNorm)
        connect = partial(HyperConnection, dim, self.streams, dynamic=self.dynamic, norm=norm)
        connections = {"connect1": connect(2 * layer), "connect2": connect(2 * layer + 1)}
        return HyperBlock(dim, attention, feedforward, **connections, **options)

    def split(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n s d"]:
        """Return the streams, all of which start as the tokens; their sum leaves the model."""
        return x[:, :, None].expand(-1, -1, self.streams, -1)
