"""An Image is Worth 16x16 Words: masked patch prediction.

A. Dosovitskiy, L. Beyer, A. Kolesnikov et al. 2020, arXiv:2010.11929.

Half of the patches are corrupted: most become a mask token, some another patch, some stay as they are. The
mean colour of each, in three bits a channel, is predicted from its own token (appendix B.1.2).

Family: self-supervised
Differs from the paper: nothing. Where it is silent: every image has the same number of corrupted patches, and
another patch is one of the same image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.patches import pair
from vit_pytorch.ssl.masks import (
    as_maskable,
    check_ratio,
    check_shape,
    cover,
    draw_mask,
    draw_noise,
    gather_tokens,
    patch_tokens,
)


class Corruption(NamedTuple):
    """What happens to the embedded patches of images.

    Args:
        chosen: the patches that are predicted, whatever happened to them.
        masked: those that become the mask token.
        source: the patch whose embedding stands in each place: its own, or another's.
    """

    chosen: Bool[Tensor, "b n"]
    masked: Bool[Tensor, "b n"]
    source: Int[Tensor, "b n"]


class MPP(nn.Module):
    """The loss of masked patch prediction around a model, which learns.

    The model is the object that was passed in, so that its own weights can be saved afterwards. Embeddings
    are corrupted before they have positions. A chosen patch that is neither masked nor replaced, which is
    left to the other two probabilities, stays as it is and is predicted, too.

    Args:
        transformer: a model of one sequence of tokens (`learning.backbone.Backbone`), or a plain ViT of timm.
        patch_size: the model's patch, which may be said again; held against it.
        dim: the model's width, which may be said again; held against it.
        mask_prob: share of the patches that is chosen, in (0, 1); rounded up to whole patches.
        random_patch_prob: probability with which a chosen patch is replaced by another of its image.
        replace_prob: probability with which a chosen patch is replaced by the mask token; with the other one
            at most 1.
        output_channel_bits: bits of a channel of the colour; 3 for 8 steps, 512 colours of three channels.
        max_pixel_val: what full brightness is, before normalisation.
        mean: what was subtracted from each channel; nothing unless told.
        std: what each channel was divided by then; nothing unless told.

    Raises:
        ValueError: where a number is out of range, or does not agree with the model.
    """

    mean: Tensor
    std: Tensor

    @checks_arguments
    def __init__(
        self,
        *,
        transformer: nn.Module,
        patch_size: int | Sequence[int] | None = None,
        dim: int | None = None,
        mask_prob: float = 0.5,
        random_patch_prob: float = 0.1,
        replace_prob: float = 0.8,
        output_channel_bits: int = 3,
        max_pixel_val: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_ratio("mask_prob", mask_prob)
        if random_patch_prob + replace_prob > 1:
            raise ValueError(
                "random_patch_prob and replace_prob must be at most 1 together, "
                f"got {random_patch_prob} and {replace_prob}"
            )
        self.transformer = as_maskable(transformer)
        own = self.transformer.grid.patch
        if patch_size is not None and pair(patch_size) != own:
            raise ValueError(f"the model's patch size is {own}, got patch_size {pair(patch_size)}")
        width, channels = self.transformer.num_features, self.transformer.channels
        if dim is not None and dim != width:
            raise ValueError(f"the model's width is {width}, got dim {dim}")
        for name, values, none in (("mean", mean, 0.0), ("std", std, 1.0)):
            values = [none] * channels if values is None else values
            if len(values) != channels:
                raise ValueError(f"{name} has a value for each of {channels} channels, got {len(values)}")
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.mask_prob = mask_prob
        self.random_patch_prob = random_patch_prob
        self.replace_prob = replace_prob
        self.steps = 2**output_channel_bits
        self.max_pixel_val = max_pixel_val
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.head = nn.Linear(width, self.steps**channels)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_linears(self.head, nn.init.xavier_uniform_)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone, beside the model's."""
        return {"mask_token"}

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        corruption: Corruption | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the loss: the mean cross entropy of the chosen patches' colours.

        Args:
            corruption: what happens to the patches; drawn unless given.

        Raises:
            ValueError: where the images are not what the model takes, or the corruption has another shape.
        """
        if corruption is None:
            corruption = self.draw(images, generator)
        logits = self.predict(images, corruption)
        losses = F.cross_entropy(logits.transpose(1, 2), self.colours(images), reduction="none")
        return (losses * corruption.chosen).sum() / corruption.chosen.sum().clamp(min=1)

    def draw(self, images: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Corruption:
        """Draw what happens to the patches of images."""
        batch, device = len(images), images.device
        grid = self.transformer.grid.fit(images.shape[2:])
        patches = grid[0] * grid[1]
        chosen = draw_mask(batch, grid, self.mask_prob, device=device, generator=generator)
        fate = draw_noise(batch, patches, device=device, generator=generator)
        shift = 1 + (draw_noise(batch, patches, device=device, generator=generator) * (patches - 1)).long()
        place = torch.arange(patches, device=device).expand(batch, -1)
        masked = chosen & (fate < self.replace_prob)
        replaced = chosen & ~masked & (fate < self.replace_prob + self.random_patch_prob)
        return Corruption(chosen, masked, torch.where(replaced, (place + shift) % patches, place))

    def predict(
        self, images: Float[Tensor, "b c h w"], corruption: Corruption
    ) -> Float[Tensor, "b n colours"]:
        """Return the logits of every patch's colour."""
        grid = self.transformer.grid.fit(images.shape[2:])
        for name, tensor in corruption._asdict().items():
            check_shape(name, tensor, (len(images), grid[0] * grid[1]))

        def corrupt(patches: Tensor) -> Tensor:
            return cover(gather_tokens(patches, corruption.source), corruption.masked, self.mask_token)

        features = self.transformer.encode(self.transformer.embed(images, mask_fn=corrupt), grid)
        return self.head(patch_tokens(features, self.transformer.num_prefix_tokens, grid[0] * grid[1]))

    def colours(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """Number the mean colour of every patch: each channel in equal steps, the first one counting most.

        What is darker than black or brighter than `max_pixel_val` falls into the outermost steps.
        """
        patches = self.transformer.patchify(images).unflatten(-1, (-1, self.transformer.channels))
        colour = patches.mean(dim=2).float() * self.std + self.mean
        steps = (colour * (self.steps / self.max_pixel_val)).floor().long().clamp(0, self.steps - 1)
        number = torch.zeros_like(steps[..., 0])
        for channel in steps.unbind(dim=-1):
            number = number * self.steps + channel
        return number
