"""Around the sequence: prefix tokens in front of the patches, and pooling behind the encoder."""

from __future__ import annotations

from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers_v01.attention import FusedAttention
from vit_pytorch.layers_v01.blocks import FeedForward
from vit_pytorch.layers_v01.init import init_linears, init_xavier
from vit_pytorch.layers_v01.relative import places_of


class PrefixTokens(nn.Module):
    """Learned tokens that travel in front of the patches, in the order of the arguments.

    Args:
        dim: width of a token.
        class_token: whether there is a class token (ViT, section 3.1).
        distillation_token: whether there is a distillation token (Touvron et al. 2020, arXiv:2012.12877).
        registers: number of register tokens (Darcet et al. 2023, arXiv:2309.16588).
    """

    def __init__(
        self, dim: int, *, class_token: bool = True, distillation_token: bool = False, registers: int = 0
    ) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.distillation_token = nn.Parameter(torch.empty(1, 1, dim)) if distillation_token else None
        self.registers = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        for token in self.parameters():
            nn.init.trunc_normal_(token, std=0.02)

    def __len__(self) -> int:
        """Give the number of prefix tokens."""
        return sum(token.shape[1] for token in self.parameters())

    def forward(self) -> Float[Tensor, "1 k d"]:
        """Give the tokens, the class token first."""
        tokens = (self.class_token, self.distillation_token, self.registers)
        return torch.cat([token for token in tokens if token is not None], dim=1)


class PatchDropout(nn.Module):
    """Leave patches out in training, others of each sample (Liu et al. 2022, arXiv:2208.07220, section 3).

    What stays keeps its order. Prefix tokens always stay.

    Args:
        p: share of the patches that is left out, in [0, 1); of n patches max(1, int(n (1 - p))) stay.

    Raises:
        ValueError: where the share is out of range.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the share of patches that is left out is in [0, 1), got {p}")
        self.p = p

    def forward(
        self, tokens: Float[Tensor, "b n d"], prefix: int = 0
    ) -> tuple[Float[Tensor, "b m d"], Int[Tensor, "b k"] | None]:
        """Give the tokens that stay, and the places of their patches; all and None in eval.

        Args:
            tokens: prefix tokens and patches.
            prefix: number of the former.
        """
        if not self.training or self.p == 0:
            return tokens, None
        patches = tokens.shape[1] - prefix
        count = max(1, int(patches * (1 - self.p)))
        drawn = torch.rand(len(tokens), patches, device=tokens.device)
        kept = drawn.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
        return tokens.take_along_dim(places_of(kept, prefix)[..., None], dim=1), kept

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"p={self.p}"


class AttentionPool(nn.Module):
    """Pool tokens by attention from one learned query, then a residual feed-forward.

    The "MAP head" of Zhai et al. 2021 (arXiv:2106.04560, section 3.2).

    Args:
        dim: width of a token.
        heads: attention heads; `dim` is a multiple.
        mlp_dim: width inside the feed-forward.
        norm_eps: epsilon of the LayerNorm.
        act: name of the activation (see `layers.blocks.ACTIVATIONS`).
    """

    def __init__(
        self, dim: int, *, heads: int, mlp_dim: int, norm_eps: float = 1e-6, act: str = "gelu"
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=dim**-0.5)
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)
        self.attend = FusedAttention()
        self.to_out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, mlp_dim, act=act)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)
        init_xavier(self.to_out)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Pool tokens to one vector per sample."""
        q = self.to_q(self.query).expand(x.shape[0], -1, -1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.to_out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


@runtime_checkable
class TwoHeads(Protocol):
    """A classifier that is two, of which the second learns from a teacher."""

    def separate(self, x: Float[Tensor, "b e"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Give the two classifiers' logits apart, as a distillation loss wants them."""


class DistilledHead(nn.Linear):
    """The mean of two classifiers: of the class token and, as `distilled`, of the distillation token.

    DeiT, arXiv:2012.12877, section 4.

    Args:
        dim: width of a token.
        num_classes: number of logits.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes)
        self.distilled = nn.Linear(dim, num_classes)

    def separate(self, x: Float[Tensor, "b e"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Give the two classifiers' logits apart, as a distillation loss wants them.

        Args:
            x: class token and distillation token, one after the other.
        """
        token, distilled = x.chunk(2, dim=-1)
        return super().forward(token), self.distilled(distilled)

    def forward(self, x: Float[Tensor, "b e"]) -> Float[Tensor, "b k"]:
        """Give the mean logits."""
        token, distilled = self.separate(x)
        return (token + distilled) / 2


def make_classifier(dim: int, num_classes: int, *, like: Tensor) -> nn.Module:
    """Make a linear classifier that starts small; the identity for no classes.

    Args:
        dim: width of what is classified.
        num_classes: number of logits.
        like: a tensor with the device and the dtype wanted.
    """
    return _start(nn.Linear, dim, num_classes, like)


def make_distilled_classifier(dim: int, num_classes: int, *, like: Tensor) -> nn.Module:
    """Make a `DistilledHead` that starts small; the identity for no classes.

    Args:
        dim: width of a token.
        num_classes: number of logits.
        like: a tensor with the device and the dtype wanted.
    """
    return _start(DistilledHead, dim, num_classes, like)


def _start(make: type[nn.Linear], dim: int, num_classes: int, like: Tensor) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    head = make(dim, num_classes).to(like)
    init_linears(head, partial(nn.init.trunc_normal_, std=0.02))
    return head
