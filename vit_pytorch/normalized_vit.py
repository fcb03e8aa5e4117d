"""nGPT: Normalized Transformer with Representation Learning on the Hypersphere.

I. Loshchilov, C.-P. Hsieh, S. Sun, B. Ginsburg 2024, arXiv:2410.01131.

Each token, each query and key, and each vector of the weights along the token dimension has length 1. A block
moves its tokens on that sphere, towards what attention and the feed-forward suggest, by learned rates per
channel. There are no norms, no biases and no weight decay; `normalize_weights` puts the weights back on the
sphere after each step of the optimizer.

Family: plain
Differs from the paper: that is of language models. Here embedded patches, positions and the class token are
what embeddings are there, and the sum of the first two is put on the sphere, as is the pooled vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, Queries
from vit_pytorch.layers.blocks import layer
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions

Pool = Literal["cls", "mean"]


def unit(x: Float[Tensor, "*s"], dim: int = -1) -> Float[Tensor, "*s"]:
    """Scale vectors to length 1: the paper's `Norm(x) = x / |x|`."""
    return F.normalize(x, dim=dim)


class NormalizedViT(IsotropicModel):
    """The Vision Transformer on the hypersphere.

    Args:
        mlp_dim: hidden dimension of the feed-forward, u * silu(v): the dimension of u and of v.
        alpha_init: initial rates of attention and feed-forward.
        sz_init: initial factors on the logits.
        base_scale: size of the parameters that store rates, s_qk and s_z, which decides how fast they learn;
            default 1 / sqrt(dim).
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pool: Pool = "cls",
        dim_head: int = 64,
        attn_dropout: float = 0.0,
        class_token: bool = False,
        num_registers: int = 0,
        alpha_init: float = 0.05,
        sz_init: float = 1.0,
        base_scale: float | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        class_token = class_token or pool == "cls"
        self.sz_init = sz_init
        self.base_scale = scale = dim**-0.5 if base_scale is None else base_scale

        self.patch_embed = UnitPatchEmbed(grid, channels, dim, bias=False)
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)
        self.pre_norm = Unit()
        self.blocks = nn.ModuleList(
            SphereBlock(
                dim,
                UnitAttention(
                    dim, heads=heads, dim_head=dim_head, base_scale=scale, attn_dropout=attn_dropout
                ),
                UnitMLP(dim, mlp_dim, dropout=dropout),
                alpha_init=alpha_init,
                base_scale=scale,
            )
            for _ in range(depth)
        )
        self.fc_norm = Unit()
        self.reset_classifier(num_classes)
        for weight, _ in self.vectors():
            nn.init.normal_(weight)
        self.normalize_weights()

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens, which are on the sphere, prefix tokens first."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def vectors(self) -> Iterator[tuple[Tensor, int]]:
        """Return each weight that is on the sphere, with the axis along which its vectors have length 1.

        It is the axis of the token dimension (section 2.6).
        """
        for module in self.modules():
            if isinstance(module, UnitAttention):
                yield from ((module.to_qkv.weight, 1), (module.to_out.weight, 0))
            elif isinstance(module, UnitMLP):
                yield from ((module.to_uv.weight, 1), (module.to_out.weight, 0))
            elif isinstance(module, UnitHead):
                yield module.linear.weight, 1
            elif isinstance(module, UnitPatchEmbed):
                yield module.proj.weight, 0
            elif isinstance(module, PrefixTokens | LearnedPositions):
                for embedding in module.parameters():
                    yield embedding, -1

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Put the weights back on the sphere; call it after each step of the optimizer.

        Optimizers that `vit_pytorch.training.optim.make_optimizer` builds do so by themselves.
        """
        for weight, axis in self.vectors():
            weight.copy_(unit(weight, dim=axis))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, its vectors on the sphere, and the pooling if given."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes:
            like = next(self.parameters())
            head = UnitHead(
                self.classifier_dim, num_classes, sz_init=self.sz_init, base_scale=self.base_scale
            )
            self.head = head.to(like)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of more than one axis without weight decay: all of them."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim > 1}


class SphereBlock(nn.Module):
    """A step on the sphere towards the output of attention, then one towards that of the feed-forward."""

    def __init__(
        self, dim: int, attention: nn.Module, feedforward: nn.Module, *, alpha_init: float, base_scale: float
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_rate = LearnedRate(dim, init=alpha_init, scale=base_scale)
        self.feedforward = feedforward
        self.feedforward_rate = LearnedRate(dim, init=alpha_init, scale=base_scale)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Move each token: `h <- Norm(h + |alpha| (Norm(branch(h)) - h))` (section 2.2.2)."""
        x = unit(x + self.attention_rate(unit(self.attention(x, inputs)) - x))
        return unit(x + self.feedforward_rate(unit(self.feedforward(x)) - x))


class LearnedScale(nn.Module):
    """Learned factors, initially `init`, as if a parameter of the size `scale` were (section 2.5).

    What is stored is `scale / init` times the factors, so that an optimizer whose steps have the size of its
    learning rate, such as Adam, changes them at the pace of a parameter of that size.

    Args:
        size: number of factors.
        scale: what is stored for that.
        shape: how they broadcast to what is scaled; default along its last axis.
    """

    def __init__(
        self, size: int, *, init: float = 1.0, scale: float = 1.0, shape: tuple[int, ...] = (-1,)
    ) -> None:
        super().__init__()
        self.ratio = init / scale
        self.shape = shape
        self.stored = nn.Parameter(torch.full((size,), float(scale)))

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Multiply by the factors."""
        return x * (self.stored * self.ratio).view(self.shape)


class LearnedRate(LearnedScale):
    """Learned factors of which only the absolute value counts."""

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Multiply by the absolute values of the factors."""
        return x * (self.stored * self.ratio).abs()


class Unit(nn.Module):
    """Put tokens on the sphere."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Scale each token to length 1."""
        return unit(x)


class UnitPatchEmbed(PatchEmbed):
    """Project each patch linearly, then onto the sphere, so that it weighs as much as its position."""

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        return unit(super().forward(x))


class UnitAttention(Attention):
    """Attention of queries and keys of length 1, times s_qk for each channel (section 2.3.2).

    Args:
        dim_head: head dimension; the scores' factor is its square root.
        base_scale: what is stored for factors of 1.
    """

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, base_scale: float, attn_dropout: float = 0.0
    ) -> None:
        super().__init__(
            dim,
            heads=heads,
            dim_head=dim_head,
            qkv_bias=False,
            out_bias=False,
            kernel=partial(FusedAttention, attn_dropout, dim_head**0.5),
        )
        self.s_qk = LearnedScale(heads * dim_head, scale=base_scale, shape=(heads, 1, dim_head))

    def project(self, x: Float[Tensor, "b n d"]) -> tuple[Queries, Queries, Queries]:
        """Project tokens to queries, keys and values, split into heads."""
        q, k, v = super().project(x)
        return self.s_qk(unit(q)), self.s_qk(unit(k)), v


class UnitMLP(nn.Module):
    """W_out (u * silu(v)), of u = s_u W_u h and v = s_v sqrt(d) W_v h (section 2.4.2).

    Args:
        hidden_dim: dimension of u and of v.
    """

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.to_uv = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.s_u = LearnedScale(hidden_dim)
        self.s_v = LearnedScale(hidden_dim)
        self.gain = dim**0.5
        self.dropout = nn.Dropout(dropout)
        self.to_out = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform each token on its own."""
        u, v = self.to_uv(x).chunk(2, dim=-1)
        return self.to_out(self.dropout(self.s_u(u) * F.silu(self.s_v(v) * self.gain)))


class UnitHead(nn.Module):
    """Logits: the cosine of a vector with that of each class, times s_z (section 2.1).

    Args:
        sz_init: initial factors.
    """

    def __init__(self, dim: int, num_classes: int, *, sz_init: float = 1.0, base_scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_classes, bias=False)
        self.s_z = LearnedScale(num_classes, init=sz_init, scale=base_scale)
        with torch.no_grad():
            self.linear.weight.copy_(unit(nn.init.normal_(self.linear.weight)))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Compute the logits."""
        cosines = self.linear(x)
        return self.s_z(cosines).to(cosines.dtype)
