"""Attention Residuals, with a mean over the layers of its own for queries, keys and values.

Kimi Team: G. Chen, Y. Zhang, J. Su, W. Xu, S. Pan et al. 2026, arXiv:2603.15031, and DeepCrossAttention: M.
Heddes, A. Javanmard, K. Axiotis, G. Fu, M. Bateni, V. Mirrokni 2025, arXiv:2502.06785.

Queries, keys and values of a layer are computed from three means over the outputs of all layers before it,
whose weights come from attention over the layers; the mean of the values is the residual. The model is the
simplified ViT (arXiv:2205.01580).

Family: plain
Differs from the paper: as in the public vit-pytorch package, which joins the two, it is a ViT instead of a
language model, feed-forwards add to their input, a feed-forward of the embedding is the second layer to
choose from, and heads have gates. As there, patches are normed before and after their projection and
attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, split_heads
from vit_pytorch.layers.blocks import FeedForward, layer
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions


class DepthMixSimpleViT(IsotropicModel):
    """The simplified Vision Transformer whose layers choose from all layers before them.

    Args:
        head_groups: groups of heads that choose on their own; divides `heads`.
        ffn_heads: parts of the feed-forwards that choose on their own; divides `mlp_dim`. With 1,
            feed-forwards read the output of attention.
        gate: multiply the output of each head by a gate in (0, 1), computed from the token.
        eps: epsilon of the RMSNorms.
        temperature: base of the frequencies of the positions.

    Raises:
        ValueError: if groups do not divide what they are groups of.
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
        dim_head: int = 64,
        mlp_dim: int,
        channels: int = 3,
        head_groups: int = 1,
        ffn_heads: int = 1,
        gate: bool = True,
        eps: float = 1e-6,
        temperature: float = 10000.0,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        for name, groups, whole, of in (
            ("head_groups", head_groups, "heads", heads),
            ("ffn_heads", ffn_heads, "mlp_dim", mlp_dim),
        ):
            if of % groups:
                raise ValueError(f"{name} must divide {whole}, got {groups} and {of}")
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.positions = SinCosPositions(grid.shape, dim, temperature=temperature)
        self.initial = GroupedFeedForward(dim, mlp_dim)
        self.blocks = nn.ModuleList(
            DepthMixBlock(
                dim,
                MixedAttention(dim, heads=heads, dim_head=dim_head, groups=head_groups, gate=gate, eps=eps),
                GroupedFeedForward(dim, mlp_dim, groups=ffn_heads),
                eps=eps,
            )
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        return self.encode(self.embed(images))

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Tensor | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply the blocks and the final norm; see `IsotropicModel.encode`."""
        layers = torch.stack([tokens, self.initial(tokens[None])], dim=2)
        for block in self.blocks:
            layers = block(layers)
        return self.norm(self.layer_tokens(layers))

    def layer_tokens(self, output: Tensor) -> Float[Tensor, "b n d"]:
        """Return the tokens in the output of a block: those of its last layer."""
        return output[:, :, -1]


class DepthMix(nn.Module):
    """Means over layers, weighted by a softmax of scores of their normed outputs; even at first.

    Args:
        streams: number of means that are wanted.
        groups: number of means of each.
    """

    def __init__(self, dim: int, *, streams: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.to_scores = nn.Linear(dim, streams * groups, bias=False)
        nn.init.zeros_(self.to_scores.weight)

    def forward(self, layers: Float[Tensor, "b n l d"]) -> Float[Tensor, "s g b n d"]:
        """Mix the outputs of all layers, for each token on its own."""
        weights = self.to_scores(self.norm(layers)).softmax(dim=2)
        return (weights.mT @ layers).unflatten(2, (-1, self.groups)).permute(2, 3, 0, 1, 4)


class GroupedLinear(nn.Module):
    """A linear layer whose outputs are computed in groups, each from an input of its own.

    Args:
        out_dim: number of outputs, a multiple of `groups`.
    """

    def __init__(self, dim: int, out_dim: int, *, groups: int = 1, bias: bool = False) -> None:
        super().__init__()
        # a pointwise convolution in groups is block-diagonal
        self.proj: nn.Linear | nn.Conv1d = (
            nn.Linear(dim, out_dim, bias=bias)
            if groups == 1
            else nn.Conv1d(groups * dim, out_dim, 1, groups=groups, bias=bias)
        )
        nn.init.xavier_uniform_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "g b n d"]) -> Float[Tensor, "b n e"]:
        """Project the input of each group; the outputs of the groups follow each other."""
        if isinstance(self.proj, nn.Linear):
            return self.proj(x[0])
        return self.proj(x.permute(1, 0, 3, 2).flatten(1, 2)).mT


class GroupedFeedForward(FeedForward):
    """A normed feed-forward, whose hidden channels are computed in groups, each from an input of its own."""

    def __init__(self, dim: int, hidden_dim: int, *, groups: int = 1) -> None:
        super().__init__(dim, hidden_dim)
        self.groups = groups
        self.norm = nn.LayerNorm(dim)
        self.to_hidden = GroupedLinear(dim, hidden_dim, groups=groups, bias=True)  # type: ignore[assignment]

    def forward(self, x: Float[Tensor, "g b n d"]) -> Float[Tensor, "b n d"]:
        """Transform each token on its own."""
        return self.to_out(self.act(self.to_hidden(self.norm(x))))


class MixedAttention(Attention):
    """Attention whose queries, keys and values are computed from inputs of their own, in groups of heads."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, groups: int, gate: bool, eps: float) -> None:
        super().__init__(dim, heads=heads, dim_head=dim_head, out_bias=False)
        del self.to_qkv
        self.groups = groups
        self.input_norms = nn.ModuleList(nn.RMSNorm(dim, eps=eps) for _ in range(3))
        self.to_q, self.to_k, self.to_v = (
            GroupedLinear(dim, heads * dim_head, groups=groups) for _ in range(3)
        )
        self.to_gate = GroupedLinear(dim, heads, groups=groups) if gate else None

    def forward(
        self, x: Float[Tensor, "3 g b n d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b n d"]:
        """Attend from each token to all tokens.

        Args:
            x: inputs of queries, keys and values, of each group.
        """
        normed = [norm(part) for norm, part in zip(self.input_norms, x, strict=True)]
        projections = (self.to_q, self.to_k, self.to_v)
        q, k, v = (
            split_heads(linear(part), self.heads) for linear, part in zip(projections, normed, strict=True)
        )
        mixed = self.attend(q, k, v, inputs)
        if self.to_gate is not None:
            mixed = mixed * self.to_gate(normed[0]).sigmoid().transpose(1, 2)[..., None]
        return self.merge(mixed)


class DepthMixBlock(nn.Module):
    """Attention and a feed-forward that choose from the outputs of all blocks before them."""

    def __init__(
        self, dim: int, attention: MixedAttention, feedforward: GroupedFeedForward, *, eps: float
    ) -> None:
        super().__init__()
        self.mix1 = DepthMix(dim, streams=3, groups=attention.groups, eps=eps)
        self.attention = attention
        groups = feedforward.groups
        self.mix2 = DepthMix(dim, streams=1, groups=groups, eps=eps) if groups > 1 else None
        self.feedforward = feedforward

    @layer
    def forward(
        self, x: Float[Tensor, "b n l d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b n m d"]:
        """Return the outputs of the layers before, and of this block."""
        mixed = self.mix1(x)
        # the groups' means of the values, averaged, are the residual
        y = self.attention(mixed, inputs) + mixed[2].mean(dim=0)
        read = y[None] if self.mix2 is None else self.mix2(torch.cat([x, y[:, :, None]], dim=2))[0]
        y = y + self.feedforward(read)
        return torch.cat([x, y[:, :, None]], dim=2)


SimpleViT = DepthMixSimpleViT
