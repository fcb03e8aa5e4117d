"""Heads that learning methods put on a model and throw away afterwards."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.init import init_linears


class NormedLinear(nn.Module):
    """A linear layer without bias whose rows have a length of their own (weight norm, arXiv:1602.07868).

    Args:
        learn_gain: whether the rows' lengths are learned; otherwise they stay 1.
    """

    def __init__(self, dim: int, out_dim: int, *, learn_gain: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, dim))
        self.gain = nn.Parameter(torch.ones(out_dim, 1), requires_grad=learn_gain)
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def forward(self, x: Float[Tensor, "*b d"], *, freeze: bool = False) -> Float[Tensor, "*b k"]:
        """Project; the rows are divided by their lengths and multiplied by the gains.

        Args:
            freeze: whether the layer itself is given no gradients.
        """
        weight = self.gain * F.normalize(self.weight, dim=1)
        return F.linear(x, weight.detach() if freeze else weight)


class ProjectionHead(nn.Module):
    """DINO's projection: a perceptron, the unit sphere, and a weight-normed layer (section 3.1, appendix C).

    Args:
        out_dim: number of logits, K in the paper.
        bottleneck_dim: width of the perceptron's output, which is normalised.
        layers: linear layers of the perceptron, at least 1.
        use_bn: whether batch norm stands in front of the perceptron's activations.
        norm_last_layer: whether the rows of the last layer keep the length 1.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        use_bn: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        widths = [dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        self.mlp = nn.Sequential()
        for before, after in pairwise(widths):
            if len(self.mlp):
                self.mlp.extend([*([nn.BatchNorm1d(before)] if use_bn else []), nn.GELU()])
            self.mlp.append(nn.Linear(before, after))
        init_linears(self.mlp, partial(nn.init.trunc_normal_, std=0.02))
        self.last_layer = NormedLinear(bottleneck_dim, out_dim, learn_gain=not norm_last_layer)

    def forward(self, x: Float[Tensor, "n d"], *, freeze_last_layer: bool = False) -> Float[Tensor, "n k"]:
        """Compute the logits of embeddings.

        Args:
            x: embeddings, one a row.
            freeze_last_layer: whether the last layer is given no gradients, as in DINO's first epoch.
        """
        return self.last_layer(F.normalize(self.mlp(x), dim=-1), freeze=freeze_last_layer)
