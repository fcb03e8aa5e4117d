"""nGPT: Normalized Transformer with Representation Learning on the Hypersphere.

I. Loshchilov, C.-P. Hsieh, S. Sun, B. Ginsburg 2024, arXiv:2410.01131.

Every token, every query and key, and every vector along the width of the weights has length 1. A block moves
its tokens on that sphere, towards what attention and the feed-forward suggest, by learned rates for each
channel. There are no norms, no biases and no weight decay; `normalize_weights` puts the weights back on the
sphere behind every step of the optimizer.

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

from vit_pytorch.isotropic_v01 import IsotropicModel, has_class_token
from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens

Pool = Literal["cls", "mean"]


def unit(x: Float[Tensor, "*s"], dim: int = -1) -> Float[Tensor, "*s"]:
    """Scale vectors to length 1: the paper's `Norm(x) = x / |x|`."""
    return F.normalize(x, dim=dim)


class NormalizedViT(IsotropicModel):
    """The Vision Transformer on the hypersphere.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward, which is gated: u * silu(v), of this width each.
        channels: channels of the input.
        dropout: dropout inside the feed-forward, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        dim_head: width of a head.
        attn_dropout: dropout on the attention weights, in [0, 1).
        class_token: whether there is a class token; None means where `pool` is "cls".
        num_registers: number of register tokens.
        alpha_init: what the rates of attention and feed-forward are at first.
        sz_init: what the factors on the logits are at first.
        base_scale: size of the parameters behind rates, s_qk and s_z, which says how fast they learn;
            1 / sqrt(dim) unless told.

    Raises:
        ValueError: where sizes do not divide, or options contradict each other.
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
        class_token: bool | None = None,
        num_registers: int = 0,
        alpha_init: float = 0.05,
        sz_init: float = 1.0,
        base_scale: float | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean"))
        class_token = has_class_token(pool, class_token)
        scale = dim**-0.5 if base_scale is None else base_scale
        if scale <= 0 or alpha_init <= 0 or sz_init <= 0:
            raise ValueError(
                f"base_scale, alpha_init and sz_init are above 0, got {scale}, {alpha_init} and {sz_init}"
            )
        self.sz_init = sz_init
        self.base_scale = scale

        def block(layer: int) -> Block:
            rate = partial(LearnedScale, dim, init=alpha_init, scale=scale)
            attention = UnitAttention(
                dim, heads=heads, dim_head=dim_head, base_scale=scale, attn_dropout=attn_dropout
            )
            feedforward = UnitMLP(dim, mlp_dim, dropout=dropout)
            return Block(SphereStep(attention, rate()), SphereStep(feedforward, rate()))

        self.patch_embed = UnitPatchEmbed(grid, channels, dim, bias=False)
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        self.positions = LearnedPositions(grid.shape, dim, prefix=int(class_token))
        self.dropout = nn.Dropout(emb_dropout)
        self.pre_norm = Unit()
        self.encoder = Encoder(block, depth=depth)
        self.fc_norm = Unit()
        self.reset_classifier(num_classes)
        for weight, _ in self.vectors():
            nn.init.normal_(weight)
        self.normalize_weights()

    def vectors(self) -> Iterator[tuple[Tensor, int]]:
        """Give each weight that is on the sphere, with the axis along which its vectors have length 1.

        It is the axis of the model's width (section 2.6).
        """
        for module in self.modules():
            if isinstance(module, UnitAttention):
                yield from ((module.to_qkv.weight, 1), (module.to_out.weight, 0))
            elif isinstance(module, UnitMLP):
                yield from ((module.to_uv.weight, 1), (module.to_out.weight, 0))
            elif isinstance(module, UnitHead):
                yield module.weight, 1
            elif isinstance(module, UnitPatchEmbed):
                yield module.proj.weight, 0
            elif isinstance(module, PrefixTokens | LearnedPositions):
                for embedding in module.parameters():
                    yield embedding, -1

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Put the weights back on the sphere; to be called behind every step of the optimizer.

        Optimizers that `vit_pytorch.training.optim.make_optimizer` makes do so by themselves.
        """
        for weight, axis in self.vectors():
            weight.copy_(unit(weight, dim=axis))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, its vectors on the sphere, and the pooling where told."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes:
            like = next(self.parameters())
            head = UnitHead(self.head_width, num_classes, sz_init=self.sz_init, base_scale=self.base_scale)
            self.head = head.to(like)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: all of them."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim > 1}


class LearnedScale(nn.Module):
    """Factors that are learned, `init` at first, as if a parameter of the size `scale` were (section 2.5).

    What is stored is `scale / init` times the factors, so that an optimizer whose steps have the size of its
    learning rate, such as Adam, changes them at the pace of a parameter of that size.

    Args:
        size: number of factors.
        init: what they are at first.
        scale: what is stored for that.
    """

    def __init__(self, size: int, *, init: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.ratio = init / scale
        self.stored = nn.Parameter(torch.full((size,), scale))

    def forward(self) -> Float[Tensor, " k"]:
        """Give the factors."""
        return self.stored * self.ratio


class Unit(nn.Module):
    """Put tokens on the sphere."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Scale every token to length 1."""
        return unit(x)


class UnitPatchEmbed(PatchEmbed):
    """Project each patch linearly to the model's width and on the sphere, where positions weigh as much."""

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        return unit(super().forward(x))


class SphereStep(nn.Module):
    """`h <- Norm(h + |alpha| (Norm(branch(h)) - h))`: a step on the sphere (section 2.2.2).

    Args:
        branch: gives where to go.
        rate: gives alpha, how far of it, for each channel.
    """

    def __init__(self, branch: nn.Module, rate: LearnedScale) -> None:
        super().__init__()
        self.branch = branch
        self.rate = rate

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Move every token."""
        return unit(x + self.rate().abs() * (unit(self.branch(x)) - x))


class UnitAttention(Attention):
    """Attention of queries and keys of length 1, times s_qk for each channel (section 2.3.2).

    Args:
        dim: width of a token.
        heads: number of heads.
        dim_head: width of a head; the scores' factor is its square root.
        base_scale: what is stored for factors of 1.
        attn_dropout: dropout on the attention weights.
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
            attend=partial(FusedAttention, attn_dropout, dim_head**0.5),
        )
        self.s_qk = LearnedScale(heads * dim_head, scale=base_scale)

    def project(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Project tokens to queries, keys and values, split in heads."""
        q, k, v = super().project(x)
        # The factors of queries and of keys are the same, and meet in the product.
        s_qk = self.s_qk().square().view(self.heads, 1, self.dim_head)
        return unit(q) * s_qk, unit(k), v


class UnitMLP(nn.Module):
    """W_out (u * silu(v)), of u = s_u W_u h and v = s_v sqrt(d) W_v h (section 2.4.2).

    Args:
        dim: width of a token.
        hidden_dim: width of u and of v.
        dropout: dropout on their product.
    """

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.to_uv = Linear(dim, 2 * hidden_dim, bias=False)
        self.s_u = LearnedScale(hidden_dim)
        self.s_v = LearnedScale(hidden_dim)
        self.gain = dim**0.5
        self.dropout = nn.Dropout(dropout)
        self.to_out = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform every token by itself."""
        u, v = self.to_uv(x).chunk(2, dim=-1)
        return self.to_out(self.dropout(u * self.s_u() * F.silu(v * (self.s_v() * self.gain))))


class UnitHead(nn.Linear):
    """Logits: the cosine of a vector with that of each class, times s_z (section 2.1).

    Args:
        dim: width of what is classified.
        num_classes: number of logits.
        sz_init: what the factors are at first.
        base_scale: what is stored for that.
    """

    def __init__(self, dim: int, num_classes: int, *, sz_init: float = 1.0, base_scale: float = 1.0) -> None:
        super().__init__(dim, num_classes, bias=False)
        self.s_z = LearnedScale(num_classes, init=sz_init, scale=base_scale)
        with torch.no_grad():
            self.weight.copy_(unit(nn.init.normal_(self.weight)))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Compute the logits."""
        return F.linear(x, self.weight * self.s_z()[:, None])
