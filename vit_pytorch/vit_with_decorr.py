"""Decorrelation Speeds Up Vision Transformers, as a loss.

K. Carrigg, R. van Gastel, M. Yeghaian, S. Dalm, F. Boughorbel, M. van Gerven 2025, arXiv:2510.14657.

The ViT (arXiv:2010.11929) that returns, with its logits, how correlated the channels of its layers' inputs
are, to be added to the loss.

Family: plain
Differs from the paper: nothing is decorrelated by matrices of their own, as `vit_pytorch.decorrelation` does;
the loss is of the public vit-pytorch package. As there, patches are normed before and after their projection,
and queries, keys and values have no biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, layer, plain_blocks
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions


class DecorrelationLoss(nn.Module):
    """The mean square of the correlations of different channels, over samples; a sum over layers.

    Args:
        sample_frac: share of the tokens of each sample that is drawn for it, in (0, 1].
        soft_validate_num_sampled: the loss is 0, instead of an error, where less than two tokens are drawn.
        use_subspace: correlate fixed random directions instead of channels.
        dim: number of channels, which `use_subspace` needs.
        dim_subspace: directions of a subspace, orthonormal; less than `dim`.
        num_subspaces: number of subspaces; their losses are added.
        mean_center: subtract the mean over the tokens, for covariances.
        across_depth: the tokens are a token's outputs of all layers, of which all are taken.

    Raises:
        ValueError: if subspaces are not smaller than the whole.
    """

    proj: Tensor

    @checks_arguments
    def __init__(
        self,
        sample_frac: float = 1.0,
        soft_validate_num_sampled: bool = False,
        use_subspace: bool = False,
        dim: int | None = None,
        dim_subspace: int = 64,
        num_subspaces: int = 1,
        mean_center: bool = False,
        across_depth: bool = False,
    ) -> None:
        super().__init__()
        self.sample_frac = 1.0 if across_depth else sample_frac
        self.soft_validate_num_sampled = soft_validate_num_sampled
        self.use_subspace = use_subspace
        self.mean_center = mean_center
        if use_subspace:
            if dim is None or dim_subspace >= dim:
                raise ValueError(f"dim_subspace must be less than dim, got {dim_subspace} and {dim}")
            proj = torch.empty(num_subspaces, dim, dim_subspace)
            for subspace in proj:
                nn.init.orthogonal_(subspace)
            self.register_buffer("proj", proj)

    def forward(self, tokens: Float[Tensor, "*l b n d"]) -> Float[Tensor, ""]:
        """Compute the loss of the tokens of layers.

        Raises:
            ValueError: if less than two tokens are drawn.
        """
        if self.sample_frac < 1:
            count = int(tokens.shape[-2] * self.sample_frac)
            if count < 2 and not self.soft_validate_num_sampled:
                raise ValueError(
                    f"sample_frac must leave at least 2 of {tokens.shape[-2]} tokens, got {self.sample_frac}"
                )
            if count < 2:
                return tokens.new_zeros(())
            drawn = torch.rand(tokens.shape[:-1], device=tokens.device).topk(count, dim=-1).indices
            tokens = tokens.take_along_dim(drawn[..., None], dim=-2)
        # (..., b, s, n, d)
        tokens = tokens.unsqueeze(-3)
        if self.use_subspace:
            tokens = tokens @ self.proj
        if self.mean_center:
            tokens = tokens - tokens.mean(dim=-2, keepdim=True)
        moments = tokens.mT @ tokens / tokens.shape[-2]
        dim = tokens.shape[-1]
        apart = moments.square().sum(dim=(-2, -1)) - moments.diagonal(dim1=-2, dim2=-1).square().sum(dim=-1)
        # (..., b, s)
        return apart.sum(dim=-1).reshape(-1, apart.shape[-2]).sum(dim=0).mean() / (dim * (dim - 1))


class DecorrelatedViT(IsotropicModel):
    """The Vision Transformer that measures how correlated the inputs of its layers are.

    Args:
        decorr_sample_frac: see `DecorrelationLoss`; 0 for no loss.
        decorr_use_subspace: see `DecorrelationLoss`, as for the following.
        decorr_layer_outputs_across_depth: correlate the layers' outputs, of each token over the layers,
            instead of their inputs over the tokens.
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
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        decorr_sample_frac: float = 1.0,
        decorr_use_subspace: bool = False,
        decorr_dim_subspace: int = 64,
        decorr_num_subspaces: int = 1,
        decorr_mean_center: bool = False,
        decorr_layer_outputs_across_depth: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        warn_if_few(grid)
        self.across_depth = decorr_layer_outputs_across_depth
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            attn_dropout=dropout,
            qkv_bias=False,
            block=TracedBlock,
        )
        self.norm = nn.LayerNorm(dim)
        self.decorr_loss: DecorrelationLoss | None = None
        if decorr_sample_frac:
            self.decorr_loss = DecorrelationLoss(
                decorr_sample_frac,
                use_subspace=decorr_use_subspace,
                dim=dim,
                dim_subspace=decorr_dim_subspace,
                num_subspaces=decorr_num_subspaces,
                mean_center=decorr_mean_center,
                across_depth=decorr_layer_outputs_across_depth,
            )
        self.reset_classifier(num_classes)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "b c h w"], return_decorr_aux_loss: bool | None = None
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, ""]]:
        """Compute logits, or the pooled embedding if `num_classes` is 0, and the loss of correlations.

        Args:
            images: input.
            return_decorr_aux_loss: compute the loss, which is 0 otherwise; default in training only.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes.
        """
        wanted = self.training if return_decorr_aux_loss is None else return_decorr_aux_loss
        tokens = self.embed(images)
        seen: list[Tensor] = []
        for block in self.blocks:
            tokens, inputs, outputs = block(tokens)
            seen += (outputs if self.across_depth else inputs) if wanted else ()
        loss = tokens.new_zeros(())
        if wanted and self.decorr_loss is not None:
            layers = torch.stack(seen, dim=2).transpose(0, 1) if self.across_depth else torch.stack(seen)
            loss = self.decorr_loss(layers)
        return self.forward_head(self.norm(tokens)), loss

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        return self.encode(self.embed(images))

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Return the class token, or the mean of all tokens, it among them, as in the public package."""
        return features[:, 0] if self.pool == "cls" else features.mean(dim=1)

    def encode(
        self,
        tokens: Float[Tensor, "b n d"],
        grid: Sequence[int] | None = None,
        ids_keep: Tensor | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply the blocks and the final norm; see `IsotropicModel.encode`."""
        for block in self.blocks:
            tokens = self.layer_tokens(block(tokens))
        return self.norm(tokens)

    def layer_tokens(self, output: tuple[Tensor, list[Tensor], list[Tensor]]) -> Float[Tensor, "b n d"]:
        """Return the tokens in the output of a block."""
        return output[0]


class TracedBlock(Block):
    """A block that returns, in addition, the normed inputs and the outputs of its two layers."""

    @layer
    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS
    ) -> tuple[Float[Tensor, "b n d"], list[Float[Tensor, "b n d"]], list[Float[Tensor, "b n d"]]]:
        """Return the tokens, inputs and outputs."""
        first = self.norm1(x)
        attended = self.attention(first, inputs)
        x = x + attended
        second = self.norm2(x)
        transformed = self.feedforward(second)
        return x + transformed, [first, second], [attended, transformed]


ViT = DecorrelatedViT
