"""Masked Autoencoders Are Scalable Vision Learners.

K. He, X. Chen, S. Xie, Y. Li, P. Dollár, R. Girshick 2021, arXiv:2111.06377.

Three quarters of the patches are left out. The encoder sees the others alone; a small decoder sees them and a
mask token in every gap, and predicts the pixels that are missing.

Family: self-supervised
Differs from the paper: the encoder keeps the positions that it has, unless `fixed_positions` gives it the
paper's; patches are embedded before they are left out, which changes no number.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import head_dim
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.positions import LearnedPositions, SinCosPositions, sincos_table
from vit_pytorch.legacy import upgrade_on_load
from vit_pytorch.ssl.masks import (
    as_maskable,
    check_ratio,
    check_shape,
    count_visible,
    draw_noise,
    gather_tokens,
    patch_tokens,
)

VARIANCE_EPS = 1e-6
# A number for each patch, by whose order patches are hidden.
Noise = Float[Tensor, "b n"]


class Reconstruction(NamedTuple):
    """Pictures of what an autoencoder saw and what it made of that, all of the images' shape.

    Args:
        masked: the images, zero where patches were hidden.
        predicted: the prediction everywhere, also where the patches were seen, which nothing trains.
        pasted: the prediction with the visible patches pasted in.
    """

    masked: Float[Tensor, "b c h w"]
    predicted: Float[Tensor, "b c h w"]
    pasted: Float[Tensor, "b c h w"]


class MAE(nn.Module):
    """The loss of a masked autoencoder around a model, which learns.

    The model is the object that was passed in, so that its own weights can be saved afterwards. Its prefix
    tokens pass through encoder and decoder; its classifier takes no part. Patches must not know each other
    before the encoder: a convolutional stem would let hidden pixels through.

    Args:
        encoder: a model of one sequence of tokens (`learning.backbone.Backbone`), or a plain ViT of timm.
        masking_ratio: share of the patches that is hidden, in (0, 1); rounded up to whole patches.
        decoder_dim: width of the decoder, a multiple of 4.
        decoder_depth: number of the decoder's blocks.
        decoder_heads: attention heads of the decoder.
        decoder_dim_head: width of a head; the width divided among the heads unless told.
        decoder_mlp_dim: width inside the decoder's feed-forward; four times its own unless told.
        norm_pix_loss: whether each patch's pixels are brought to mean 0 and variance 1 before they are
            compared (section 4.1, "reconstruction target"); the variance is the unbiased one.
        fixed_positions: whether the encoder's learned positions are set to sines and cosines and do not learn
            (appendix A.1). They stay parameters, which fine-tuning may release.

    Raises:
        ValueError: where a number is out of range, or the model is no sequence of tokens.
    """

    @checks_arguments
    def __init__(
        self,
        *,
        encoder: nn.Module,
        masking_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_dim_head: int | None = None,
        decoder_mlp_dim: int | None = None,
        norm_pix_loss: bool = False,
        fixed_positions: bool = False,
    ) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(upgrade_on_load)  # type: ignore[no-untyped-call]
        check_ratio("masking_ratio", masking_ratio)
        self.encoder = as_maskable(encoder)
        grid = self.encoder.grid
        self.masking_ratio = masking_ratio
        self.norm_pix_loss = norm_pix_loss
        count_visible(grid.num_patches, masking_ratio)
        if fixed_positions:
            fix_positions(encoder)

        self.to_decoder = nn.Linear(self.encoder.num_features, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.positions = SinCosPositions(grid.shape, decoder_dim, endpoint=False)
        self.decoder = plain_blocks(
            decoder_dim,
            depth=decoder_depth,
            heads=decoder_heads,
            dim_head=head_dim(decoder_dim, decoder_heads) if decoder_dim_head is None else decoder_dim_head,
            mlp_dim=4 * decoder_dim if decoder_mlp_dim is None else decoder_mlp_dim,
            norm=partial(nn.LayerNorm, eps=1e-6),
        )
        self.norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.to_pixels = nn.Linear(decoder_dim, self.encoder.channels * grid.patch[0] * grid.patch[1])
        nn.init.normal_(self.mask_token, std=0.02)
        init_xavier(self.to_decoder)
        init_xavier(self.to_pixels)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone, beside the model's."""
        return {"mask_token"}

    def forward(
        self, images: Float[Tensor, "b c h w"], noise: Noise | None = None, generator: Generator | None = None
    ) -> Float[Tensor, ""]:
        """Compute the loss: the mean squared error of the hidden pixels.

        Args:
            noise: a number for each patch; those with the smallest stay visible. Drawn unless given.

        Raises:
            ValueError: where the images are not what the model takes, or the noise has another shape.
        """
        order, visible = self._order(images, noise, generator)
        hidden = order[:, visible:]
        predicted = self.to_pixels(gather_tokens(self.decode(images, order, visible), hidden))
        return F.mse_loss(predicted, gather_tokens(self.targets(images), hidden))

    def predict(
        self, images: Float[Tensor, "b c h w"], noise: Noise | None = None, generator: Generator | None = None
    ) -> tuple[Float[Tensor, "b n p"], Bool[Tensor, "b n"]]:
        """Return the prediction for every patch, in the order (row, column, channel), and what was hidden.

        Returns:
            The patches in raster order, normalised where `norm_pix_loss` is set; and a mask, true where a
            patch was hidden.
        """
        order, visible = self._order(images, noise, generator)
        predicted = self.to_pixels(self.decode(images, order, visible))
        return predicted, order.argsort(dim=1) >= visible

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "b c h w"], noise: Noise | None = None, generator: Generator | None = None
    ) -> Reconstruction:
        """Return pictures of the input with gaps, of the prediction, and of both put together.

        Where `norm_pix_loss` is set, a prediction has no brightness and no contrast of its own; those of the
        true patch are put in.
        """
        predicted, mask = self.predict(images, noise, generator)
        patches = self.encoder.patchify(images)
        if self.norm_pix_loss:
            mean, scale = self._brightness(patches)
            predicted = predicted * scale + mean
        hidden = mask[..., None]
        shown = (patches.masked_fill(hidden, 0.0), predicted, torch.where(hidden, predicted, patches))
        grid = self.encoder.grid.fit(images.shape[2:])
        return Reconstruction(*(self.encoder.grid.unpatchify(picture, grid) for picture in shown))

    def targets(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        """Return what is to be predicted: the pixels of every patch, normalised where told."""
        patches = self.encoder.patchify(images)
        if not self.norm_pix_loss:
            return patches
        mean, scale = self._brightness(patches)
        return (patches - mean) / scale

    def decode(
        self, images: Float[Tensor, "b c h w"], order: Int[Tensor, "b n"], visible: int
    ) -> Float[Tensor, "b n d"]:
        """Encode the visible patches and decode all of them.

        Args:
            order: places of the patches, those that are visible first.
            visible: number of them.

        Returns:
            The decoder's normed tokens, in raster order.
        """
        prefix = self.encoder.num_prefix_tokens
        tokens = self.encoder.embed(images)
        patches = patch_tokens(tokens, prefix, order.shape[1])
        ids_keep = order[:, :visible]
        tokens = torch.cat([tokens[:, :prefix], gather_tokens(patches, ids_keep)], dim=1)
        grid = self.encoder.grid.fit(images.shape[2:])
        encoded = self.encoder.encode(tokens, grid, ids_keep)
        seen = patch_tokens(encoded, prefix, visible)
        x = self.to_decoder(torch.cat([encoded[:, :prefix], seen], dim=1))
        gaps = self.mask_token.to(x.dtype).expand(len(x), order.shape[1] - visible, -1)
        patches = gather_tokens(torch.cat([x[:, prefix:], gaps], dim=1), order.argsort(dim=1))
        x = torch.cat([x[:, :prefix], self.positions(patches, grid=grid)], dim=1)
        for block in self.decoder:
            x = block(x)
        return self.norm(x)[:, prefix:]

    def _order(
        self, images: Tensor, noise: Tensor | None, generator: Generator | None
    ) -> tuple[Int[Tensor, "b n"], int]:
        """Return the places of the patches, the visible ones first, and the number of those."""
        rows, columns = self.encoder.grid.fit(images.shape[2:])
        shape = (len(images), rows * columns)
        if noise is None:
            noise = draw_noise(*shape, device=images.device, generator=generator)
        check_shape("noise", noise, shape)
        return noise.argsort(dim=1), count_visible(shape[1], self.masking_ratio)

    def _brightness(self, patches: Float[Tensor, "b n p"]) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + VARIANCE_EPS).sqrt()


def fix_positions(model: nn.Module) -> None:
    """Set a model's learned positions to sines and cosines, zero for prefix tokens, and keep them so.

    Raises:
        ValueError: where it has none.
    """
    positions = getattr(model, "positions", None)
    if not isinstance(positions, LearnedPositions):
        raise ValueError(f"fixed positions replace learned ones; {type(model).__name__} has none")
    table = sincos_table(positions.grid, positions.table.shape[-1], endpoint=False)
    positions.table.requires_grad_(False)
    positions.table.copy_(F.pad(table, (0, 0, positions.prefix, 0)))
