"""Augmentation of a whole batch at once, for images of one size in memory.

Random numbers come in from outside, a row per image, so that what happens to an image does not depend on
which others are in its batch.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import v2

from vit_pytorch.training.data.seeding import seeded
from vit_pytorch.training.data.transforms import Augmentation, CoverAndCrop, Preprocessing, normalize

DRAWS = 12


class BatchAugment:
    """Crop, shift, flip, rotate, slant, move, enlarge and erase, each image by its own random numbers.

    All changes of geometry are one affine map per image and one bilinear or bicubic sampling. Borders are
    black. They follow the distributions of :func:`train_transform`, but shifts and movements need not be
    whole pixels, and the sides of a random crop that would not fit are cut to the image.

    Args:
        prep: The model's input.
        augmentation: What varies; no RandAugment and no colour jitter.

    Raises:
        ValueError: The augmentation asks for RandAugment or colour jitter.
    """

    def __init__(self, prep: Preprocessing, augmentation: Augmentation) -> None:
        if augmentation.recolors:
            raise ValueError(f"RandAugment and colour jitter are not done by the batch, got {augmentation}")
        self.augmentation = augmentation
        self.size = prep.image_size
        self.interpolation = prep.interpolation
        self.fit = CoverAndCrop(prep)
        self.normalize = normalize(prep)
        self.erase = v2.RandomErasing(p=1.0)

    def __call__(
        self, images: UInt8[Tensor, "b c h w"], draws: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b c h2 w2"]:
        """Augment and normalise.

        Args:
            images: Values 0 to 255.
            draws: Uniform random numbers in [0, 1), ``DRAWS`` for each image.

        Returns:
            The model's input.
        """
        a = self.augmentation
        images = self.fit(images)
        if a.crop_scale is not None or a.shift or a.flip or a.moves:
            grid = affine_grid(self._maps(draws), list(images.shape), align_corners=False)
            images = grid_sample(
                images.float() / 255, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False
            ).clamp(0, 1)
        images = self.normalize(images)
        for i in (draws[:, 9] < a.random_erasing).nonzero().flatten().tolist():
            with seeded(int(draws[i, 10] * 2**24)):
                images[i] = self.erase(images[i])
        return images

    def _maps(self, draws: Float[Tensor, "b k"]) -> Float[Tensor, "b 2 3"]:
        """Where each point of the output comes from, in coordinates from -1 to 1 across the image."""
        a = self.augmentation
        height, width = self.size
        u = draws.unbind(1)
        crop = _maps_of(len(draws))
        if a.crop_scale is not None:
            area = _between(u[0], *a.crop_scale)
            ratio = torch.exp(_between(u[1], *map(math.log, a.crop_ratio)))
            wide = (area * ratio * height / width).sqrt().clamp(max=1)
            high = (area / ratio * width / height).sqrt().clamp(max=1)
            crop[:, 0, 0], crop[:, 1, 1] = wide, high
            crop[:, 0, 2], crop[:, 1, 2] = (
                (1 - wide) * _between(u[2], -1, 1),
                (1 - high) * _between(u[3], -1, 1),
            )
        elif a.shift:
            crop[:, 0, 2] = 2 / width * torch.floor(_between(u[2], -a.shift, a.shift + 1))
            crop[:, 1, 2] = 2 / height * torch.floor(_between(u[3], -a.shift, a.shift + 1))
        flip = _maps_of(len(draws))
        flip[:, 0, 0] = torch.where(u[4] < a.flip, -1.0, 1.0)
        angle = torch.deg2rad(_between(u[5], -a.degrees, a.degrees))
        factor = _between(u[6], *a.scale)
        cos, sin = angle.cos() / factor, angle.sin() / factor
        move = _maps_of(len(draws))
        move[:, 0, 0], move[:, 0, 1] = cos, sin * height / width
        move[:, 1, 0], move[:, 1, 1] = -sin * width / height, cos
        slant = torch.deg2rad(_between(u[11], -a.shear, a.shear)).tan() * height / width
        move[:, 0] += slant.unsqueeze(1) * move[:, 1]
        by = torch.stack([_between(u[7], -1, 1), _between(u[8], -1, 1), torch.zeros(len(draws))], dim=1)
        move[:, :, 2] -= (move @ (2 * a.translate * by).unsqueeze(-1)).squeeze(-1)
        return (crop @ flip @ move)[:, :2]


def _maps_of(count: int) -> Float[Tensor, "b 3 3"]:
    return torch.eye(3).repeat(count, 1, 1)


def _between(draws: Float[Tensor, "b"], low: float, high: float) -> Float[Tensor, "b"]:
    return low + (high - low) * draws
