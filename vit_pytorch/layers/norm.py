"""Norms that stand in for LayerNorm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.options import Option


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


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose gains may be of another precision than its input, as under autocast."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Normalise every token."""
        normed = F.rms_norm(x, self.normalized_shape, eps=self.eps)
        return normed if self.weight is None else (normed * self.weight).to(x.dtype)


@dataclass(frozen=True)
class Norm(Option):
    """Option: the norms of a model.

    Args:
        form: "layer" for LayerNorm, "zero_centered" for `ZeroCenteredLayerNorm`, "rms" for `RMSNorm`.
        post: the norms of a block act on what its branches return, instead of on what they take.
        shared: one norm stands before both branches of a block, which act side by side (`SharedNormBlock`).
        gain: initial gain of the norms of a block; 1e-5 is common for `post`, in place of LayerScale.
        sub: further norms before the last linear layer of a branch (Sub-LN, H. Wang et al. 2022,
            arXiv:2210.06423): of the "feedforward", of "both" branches, or of "none".
    """

    kind: ClassVar[str] = "layer"
    form: Literal["layer", "zero_centered", "rms"] = "layer"
    post: bool = False
    sub: Literal["none", "feedforward", "both"] = "none"
    shared: bool = False
    gain: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared and self.post:
            raise ValueError("a norm is shared by branches that follow it, got shared=True and post=True")

    def build(self, eps: float) -> Callable[[int], nn.Module]:
        """Return what builds a norm from the dimension that it acts on."""
        forms: dict[str, Callable[..., nn.Module]] = {
            "layer": nn.LayerNorm,
            "zero_centered": ZeroCenteredLayerNorm,
            "rms": RMSNorm,
        }
        return partial(forms[self.form], eps=eps)

    def build_bare(self, eps: float) -> Callable[[int], nn.Module]:
        """Return what builds a norm of the same kind that has no gain and no bias."""
        return partial(RMSNorm if self.form == "rms" else nn.LayerNorm, eps=eps, elementwise_affine=False)

    def build_scaled(self, eps: float) -> Callable[[int], nn.Module]:
        """Return what builds a norm of a block, which starts with `gain`."""

        def scaled(dim: int) -> nn.Module:
            norm = self.build(eps)(dim)
            name, start = ("excess", self.gain - 1) if self.form == "zero_centered" else ("weight", self.gain)
            nn.init.constant_(norm.get_parameter(name), start)
            return norm

        return scaled


NORMS = {"layer": Norm(), "zero_centered": Norm(form="zero_centered"), "rms": Norm(form="rms")}
