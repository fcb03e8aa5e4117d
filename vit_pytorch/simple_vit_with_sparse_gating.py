"""Better plain ViT baselines for ImageNet-1k, with gated attention.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

The simplified ViT with registers (arXiv:2309.16588), whose layers gate each score by a probability that a
query sees a patch, computed from few channels; a loss keeps these probabilities small. Registers are always
seen.

Family: plain
Differs from the paper: the gates and their loss are of the public vit-pytorch package; as there, patches are
normed before and after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs
from vit_pytorch.layers.blocks import Block, FeedForward
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions


class SparseGatingSimpleViT(IsotropicModel):
    """The simplified Vision Transformer with register tokens and gated attention.

    Args:
        num_register_tokens: number of register tokens.
        dim_mask: channels of each head from which gates are computed.
        sparsity_loss_type: "l1" for the mean probability, "thresholded_l1" for what exceeds the threshold.
        sparsity_threshold: mean probability of an image that costs nothing.
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
        num_register_tokens: int = 4,
        channels: int = 3,
        dim_head: int = 64,
        dim_mask: int = 4,
        sparsity_loss_type: Literal["l1", "thresholded_l1"] = "thresholded_l1",
        sparsity_threshold: float = 0.05,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        self.threshold = sparsity_threshold if sparsity_loss_type == "thresholded_l1" else 0.0
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.prefix = PrefixTokens(dim, class_token=False, registers=num_register_tokens)
        self.positions = SinCosPositions(grid.shape, dim)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                GatedAttention(
                    dim,
                    heads=heads,
                    dim_head=dim_head,
                    dim_mask=dim_mask,
                    prefix=num_register_tokens,
                ),
                FeedForward(dim, mlp_dim),
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "b c h w"], return_loss: bool = False
    ) -> Float[Tensor, "b k"] | tuple[Float[Tensor, "b k"], Float[Tensor, ""]]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            images: input.
            return_loss: return the loss of the gates in addition.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes.
        """
        tokens = self.embed(images)
        shares = []
        for block in self.blocks:
            if return_loss:
                logits = block.attention.gates(block.norm1(tokens))  # type: ignore[operator, union-attr]
                shares.append(logits.sigmoid().mean(dim=(1, 2, 3)))
            tokens = block(tokens)
        output = self.forward_head(self.norm(tokens))
        if not return_loss:
            return output
        return output, (torch.stack(shares).mean(dim=0) - self.threshold).relu().mean()

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, registers first."""
        return self.encode(self.embed(images))


class GatedAttention(Attention):
    """Attention whose scores are gated: each weight is multiplied by a probability before they sum to 1.

    Args:
        dim_mask: channels of each head from which gates are computed.
        prefix: number of prefix tokens, which are always seen.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, dim_mask: int, prefix: int) -> None:
        super().__init__(dim, heads=heads, dim_head=dim_head, qkv_bias=False, out_bias=False)
        self.prefix = prefix
        self.to_gates = nn.Linear(dim, 2 * heads * dim_mask, bias=False)
        init_xavier(self.to_gates, parts=2)

    def gates(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n m"]:
        """Return the logits of the probabilities that each token sees each patch."""
        q, k = self.to_gates(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q @ k[:, :, self.prefix :].mT * q.shape[-1] ** -0.5

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Attend from each token to all tokens."""
        q, k, v = self.project(x)
        mask = F.pad(F.logsigmoid(self.gates(x)), (self.prefix, 0))
        return self.merge(self.kernel(q, k, v, mask))


SimpleViTWithSparseGating = SparseGatingSimpleViT
