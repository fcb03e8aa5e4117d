"""Norms that stand in for LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ZeroCenteredLayerNorm(nn.Module):
    """LayerNorm that stores by how much its gain exceeds 1, so that weight decay pulls the gain to 1.

    The function is that of `nn.LayerNorm`. Decay would pull a gain to 0, where the norm gives nothing, and so
    gains are left out of it as a rule. What is stored here may decay, which `decayed` says to
    `vit_pytorch.training.optim.parameter_groups`. O. Rubin 2023, "Exploring Weight Decay in Layer
    Normalization: Challenges and a Reparameterization Solution".
    """

    # Parameters of one axis that weight decay acts on.
    decayed = ("excess",)

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.excess = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Normalise every token."""
        return F.layer_norm(x, self.excess.shape, 1 + self.excess, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"{len(self.excess)}, eps={self.eps}"
