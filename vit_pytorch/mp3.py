"""Position Prediction as an Effective Pretraining Strategy.

S. Zhai, N. Jaitly, J. Ramapuram, D. Busbridge, T. Likhomanenko et al. 2022, arXiv:2207.07611.

Patches come without positions, and every one tells where it belongs. A random part of them is context: in
every layer, all patches ask, and the context alone gives keys and values.

Family: self-supervised
Differs from the paper: nothing. Prefix tokens, where the model has them, belong to the context.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import Attention, BlockInputs, ExplicitAttention, FusedAttention
from vit_pytorch.layers.blocks import Block
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice
from vit_pytorch.ssl.masks import (
    as_maskable,
    check_ratio,
    check_shape,
    count_visible,
    draw_noise,
    patch_tokens,
)
from vit_pytorch.vit import ViT as ViT

# A number for each patch, by whose order patches are context.
Noise = Float[Tensor, "b n"]


class MP3(nn.Module):
    """The loss of position prediction around a model, which learns.

    The model is the object that was passed in, so that its own weights can be saved afterwards. Its positions
    take no part and stay as they are. Patches must not know their places otherwise: the padding of a
    convolutional stem would tell.

    Args:
        vit: a model of plain self-attention blocks, such as `ViT`.
        masking_ratio: share of the patches that is no context, in (0, 1); rounded up to whole patches.
        loss_on: "all" learns the positions of all patches, "masked" those of the patches outside the context.

    Raises:
        ValueError: where a number is out of range, or the model is of other blocks.
    """

    @checks_arguments
    def __init__(
        self, *, vit: nn.Module, masking_ratio: float = 0.75, loss_on: Literal["all", "masked"] = "all"
    ) -> None:
        super().__init__()
        check_ratio("masking_ratio", masking_ratio)
        check_choice("loss_on", loss_on, ("all", "masked"))
        self.vit = check_blocks(vit)
        self.masking_ratio = masking_ratio
        self.loss_on = loss_on
        self.context = count_visible(self.vit.grid.num_patches, masking_ratio)
        self.head = nn.Linear(self.vit.num_features, self.vit.grid.num_patches)
        init_linears(self.head, nn.init.xavier_uniform_)

    def forward(
        self, images: Float[Tensor, "b c h w"], noise: Noise | None = None, generator: Generator | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss: the mean cross entropy of the patches' positions.

        Args:
            images: input, of the model's largest size.
            noise: a number for each patch; those with the smallest are context. Drawn unless given.

        Raises:
            ValueError: where the images are not what the model takes, or the noise has another shape.
        """
        logits, masked = self.predict(images, noise, generator)
        places = torch.arange(masked.shape[1], device=images.device).expand(len(images), -1)
        losses = F.cross_entropy(logits.transpose(1, 2), places, reduction="none")
        if self.loss_on == "all":
            return losses.mean()
        return (losses * masked).sum() / masked.sum()

    def predict(
        self, images: Float[Tensor, "b c h w"], noise: Noise | None = None, generator: Generator | None = None
    ) -> tuple[Float[Tensor, "b n n"], Bool[Tensor, "b n"]]:
        """Return the logits of every patch's position, and which patches were outside the context.

        Args:
            images: input, of the model's largest size.
        """
        self.vit.check_images(images)
        grid = self.vit.grid.fit(images.shape[2:])
        if grid != self.vit.grid.shape:
            raise ValueError(
                f"positions are those of images of size {self.vit.grid.size}, got {tuple(images.shape[2:])}"
            )
        shape = (len(images), self.vit.grid.num_patches)
        if noise is None:
            noise = draw_noise(*shape, device=images.device, generator=generator)
        check_shape("noise", noise, shape)
        order = noise.argsort(dim=1)
        masked = order.argsort(dim=1) >= self.context
        prefix = self.vit.num_prefix_tokens
        # Queries come from all tokens, keys and values only from the context and the prefix tokens.
        inputs = BlockInputs(grid, prefix, mask=F.pad(~masked, (prefix, 0), value=True)[:, None, None])
        x = self.vit.embed(images, add_positions=False)
        for block in self.vit.blocks:
            x = block(x, inputs)
        return self.head(patch_tokens(self.vit.norm(x), prefix, shape[1])), masked


def check_blocks(model: nn.Module) -> IsotropicModel:
    """Check that a model is of blocks whose attention follows a mask and knows no positions.

    Raises:
        ValueError: if it is not.
    """
    as_maskable(model)
    if (
        isinstance(model, IsotropicModel)
        # Other models do more between their blocks than to apply them one after the other.
        and (isinstance(model, ViT) or type(model).encode is IsotropicModel.encode)
        # A bias that all layers share tells positions, too.
        and getattr(model, "relative", None) is None
        and all(_is_plain(block) for block in model.blocks)
    ):
        return model
    raise ValueError(
        f"position prediction needs a model of plain self-attention blocks, got {type(model).__name__}"
    )


def _is_plain(block: nn.Module) -> bool:
    return (
        type(block) is Block
        and type(block.attention) is Attention
        and block.attention.position is None
        and block.attention.value_mix is None
        and type(block.attention.kernel) in (FusedAttention, ExplicitAttention)
    )
