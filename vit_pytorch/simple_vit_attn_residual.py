"""Attention Residuals.

Kimi Team: G. Chen, Y. Zhang, J. Su, W. Xu, S. Pan et al. 2026, arXiv:2603.15031.

Instead of the sum of all that the layers before it computed, each layer reads a mean of that, whose weights
come from attention over the layers; the model is the simplified ViT (arXiv:2205.01580).

Family: plain
Differs from the paper: it is a ViT instead of a language model; `learned_query=False` is of the public
vit-pytorch package. That package attends with heads and projections of queries, keys, values and outputs,
where the paper has one vector per layer, so that its weights do not load. As there, patches are normed
before and after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, layer, plain_blocks
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions


class AttentionResidualSimpleViT(IsotropicModel):
    """The simplified Vision Transformer with attention over its layers.

    Args:
        learned_query: layers ask with a learned vector of their own, instead of with a projection of the
            latest layer's output.
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
        dim_head: int = 64,
        learned_query: bool = True,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.positions = SinCosPositions(grid.shape, dim)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            qkv_bias=False,
            out_bias=False,
            block=partial(AttentionResidualBlock, learned_query=learned_query),
        )
        # The first layer of all reads the embedding: there is nothing to choose from.
        first = self.blocks[0]
        assert isinstance(first, AttentionResidualBlock)
        first.read1 = None
        self.read = DepthAttention(dim, learned_query=learned_query)
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward(  # type: ignore[override]
        self,
        images: Float[Tensor, "b c h w"],
        history: Sequence[Float[Tensor, "b n d"]] | None = None,
        return_history: bool = False,
    ) -> Float[Tensor, "b k"] | tuple[Float[Tensor, "b k"], list[Float[Tensor, "b n d"]]]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            images: input.
            history: outputs of layers of an earlier call, which all layers read, too.
            return_history: return the history and the outputs of all layers, in addition.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes.
        """
        layers = self.run_layers(images, history)
        logits = self.forward_head(self.norm(self.read(layers)))
        return (logits, list(layers.unbind(dim=2))) if return_history else logits

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        return self.norm(self.read(self.run_layers(images)))

    def run_layers(
        self, images: Float[Tensor, "b c h w"], history: Sequence[Float[Tensor, "b n d"]] | None = None
    ) -> Float[Tensor, "b n l d"]:
        """Return the history, the embedding and the outputs of all layers."""
        layers = torch.stack([*(history or []), self.embed(images)], dim=2)
        for block in self.blocks:
            layers = block(layers)
        return layers

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Tensor | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply the blocks and the final norm; see `IsotropicModel.encode`."""
        layers = tokens[:, :, None]
        for block in self.blocks:
            layers = block(layers)
        return self.norm(self.read(layers))

    def layer_tokens(self, output: Tensor) -> Float[Tensor, "b n d"]:
        """Return the tokens in the output of a block: those of its last layer."""
        return output[:, :, -1]


class AttentionResidualBlock(Block):
    """A block whose layers read from all layers before them (equation 4).

    Args:
        learned_query: see `AttentionResidualSimpleViT`.
    """

    read1: DepthAttention | None

    def __init__(
        self, dim: int, attention: nn.Module, feedforward: nn.Module, *, learned_query: bool, **options: Any
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.read1 = DepthAttention(dim, learned_query=learned_query)
        self.read2 = DepthAttention(dim, learned_query=learned_query)

    @layer
    def forward(
        self, x: Float[Tensor, "b n l d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b n m d"]:
        """Return the outputs of the layers before, and of these two."""
        read = x[:, :, -1] if self.read1 is None else self.read1(x)
        x = torch.cat([x, self.attention(self.norm1(read), inputs)[:, :, None]], dim=2)
        return torch.cat([x, self.feedforward(self.norm2(self.read2(x)))[:, :, None]], dim=2)


class DepthAttention(nn.Module):
    """A mean over layers, weighted by a softmax of scores of their normed outputs; even at first.

    Args:
        learned_query: ask with a learned vector, instead of with a projection of the latest output.
    """

    def __init__(self, dim: int, *, learned_query: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.to_score = nn.Linear(dim, 1, bias=False) if learned_query else None
        self.to_query = None if learned_query else nn.Linear(dim, dim, bias=False)
        for linear in (self.to_score, self.to_query):
            if linear is not None:
                nn.init.zeros_(linear.weight)

    def forward(self, layers: Float[Tensor, "b n l d"]) -> Float[Tensor, "b n d"]:
        """Read from the outputs of all layers, for each token on its own."""
        keys = self.norm(layers)
        if self.to_score is not None:
            scores = self.to_score(keys)
        else:
            assert self.to_query is not None
            scores = keys @ self.to_query(keys[:, :, -1])[..., None]
        return (scores.softmax(dim=2) * layers).sum(dim=2)


SimpleViTAttnResidual = AttentionResidualSimpleViT
