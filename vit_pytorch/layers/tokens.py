"""From tokens to logits: pooling and classifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import BlockInputs, FusedAttention, head_dim, merge_heads, split_heads
from vit_pytorch.layers.blocks import FeedForward, plain_blocks
from vit_pytorch.layers.init import init_linears, init_xavier
from vit_pytorch.layers.options import Option


class AttentionPool(nn.Module):
    """Pool tokens by attention from one learned query, then a residual feed-forward.

    The "MAP head" of Zhai et al. 2021 (arXiv:2106.04560, section 3.2).
    """

    def __init__(
        self, dim: int, *, heads: int, mlp_dim: int, norm_eps: float = 1e-6, act: str = "gelu"
    ) -> None:
        super().__init__()
        head_dim(dim, heads)
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=dim**-0.5)
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)
        self.kernel = FusedAttention()
        self.to_out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, mlp_dim, act=act)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)
        init_xavier(self.to_out)

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b 1 1 n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Pool tokens to one vector per sample; of a mask, those that it leaves."""
        q = split_heads(self.to_q(self.query.expand(x.shape[0], -1, -1)), self.heads)
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.to_out(merge_heads(self.kernel(q, k, v, mask)))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class AttentivePool(nn.Module):
    """Pool tokens by blocks of their own, then by cross-attention from one learned query.

    The "attentive probe" of V-JEPA 2 (M. Assran et al. 2025, arXiv:2506.09985, section 5): the query's
    attention has no output projection.

    Args:
        depth: blocks before the query.
    """

    def __init__(
        self, dim: int, *, heads: int, depth: int = 3, norm_eps: float = 1e-6, act: str = "gelu"
    ) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.heads = heads
        self.layers = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=head_dim(dim, heads),
            mlp_dim=4 * dim,
            act=act,
            norm=norm,
        )
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=dim**-0.5)
        self.norm1 = norm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)
        self.kernel = FusedAttention()
        self.norm2 = norm(dim)
        self.mlp = FeedForward(dim, 4 * dim, act=act)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b 1 1 n"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Pool tokens to one vector per sample; of a mask, those that it leaves."""
        inputs = BlockInputs(mask=mask)
        for layer in self.layers:
            x = layer(x, inputs)
        q = split_heads(self.to_q(self.query.expand(x.shape[0], -1, -1)), self.heads)
        k, v = self.to_kv(self.norm1(x)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.query + merge_heads(self.kernel(q, k, v, mask))
        return (pooled + self.mlp(self.norm2(pooled)))[:, 0]


@dataclass(frozen=True)
class AttentionPooling(Option):
    """Option: pool by attention from one learned query (`AttentionPool`).

    Args:
        heads: number of heads; default that of the blocks.
        mlp_dim: hidden dimension of its feed-forward; default that of the blocks.
        prefix: pool prefix tokens, too, instead of the patches alone.
    """

    kind: ClassVar[str] = "map"
    heads: int | None = None
    mlp_dim: int | None = None
    prefix: bool = False


@runtime_checkable
class TwoHeads(Protocol):
    """A pair of classifiers; the second is trained on a teacher's outputs."""

    def separate(self, x: Float[Tensor, "b e"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return the logits of both classifiers, as a distillation loss needs them."""


class OneTokenHead(nn.Module):
    """The mean of two classifiers of one vector, of which the second is called `distilled`."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, num_classes)
        self.distilled = nn.Linear(dim, num_classes)

    def separate(self, x: Float[Tensor, "b e"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return the logits of both classifiers, as a distillation loss needs them."""
        return self.classifier(x), self.distilled(x)

    def forward(self, x: Float[Tensor, "b e"]) -> Float[Tensor, "b k"]:
        """Return the mean logits."""
        labels, teacher = self.separate(x)
        return (labels + teacher) / 2


class DistilledHead(OneTokenHead):
    """The mean of two classifiers: of the class token and, as `distilled`, of the distillation token.

    DeiT, arXiv:2012.12877, section 4.
    """

    def separate(self, x: Float[Tensor, "b e"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return the logits of both classifiers, as a distillation loss needs them.

        Args:
            x: class token and distillation token, concatenated.
        """
        token, distilled = x.chunk(2, dim=-1)
        return self.classifier(token), self.distilled(distilled)


def classify_pair(pair: Float[Tensor, "b e"], head: nn.Module, *, pre_logits: bool) -> Float[Tensor, "b k"]:
    """Return the mean logits of a `DistilledHead`, or the mean of both tokens, which is the embedding.

    Args:
        pair: class token and distillation token, concatenated.
        head: the classifier; the identity for none.
        pre_logits: return the embedding.
    """
    if pre_logits or isinstance(head, nn.Identity):
        return pair.unflatten(-1, (2, -1)).mean(dim=1)
    return head(pair)


def make_classifier(
    dim: int, num_classes: int, *, like: Tensor, kind: Callable[[int, int], nn.Module] = nn.Linear
) -> nn.Module:
    """Build a classifier with small initial weights; the identity for no classes.

    Args:
        dim: dimension of what is classified, of each token for a `DistilledHead`.
        like: a tensor of the device and the dtype.
        kind: builds the classifier from both dimensions.
    """
    if num_classes == 0:
        return nn.Identity()
    head = kind(dim, num_classes).to(like)
    init_linears(head, partial(nn.init.trunc_normal_, std=0.02))
    return head


def drop_bias(head: nn.Module, bias: bool) -> nn.Module:
    """Return a classifier, without its bias if it is to have none."""
    if not bias and isinstance(head, nn.Linear):
        head.register_parameter("bias", None)
    return head


@dataclass(frozen=True)
class Head(Option):
    """Option: what comes between pooling and the classifier, and how the classifier starts.

    Args:
        norm: the final norm acts on the pooled vector instead of on the tokens; None for no final norm.
        hidden_dim: dimension of the pre-training head's hidden layer (tanh); None for no such layer.
        zero_init: the classifier starts at zero.
        standardize: the pooled vector is normalised once more, without gain and bias.
    """

    kind: ClassVar[str] = "linear"
    norm: bool | None = False
    hidden_dim: int | None = None
    zero_init: bool = False
    standardize: bool = False
