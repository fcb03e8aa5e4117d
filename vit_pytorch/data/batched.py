"""Augmentation of a whole batch at once, for images of one size in memory.

Random numbers come in from outside, a row per image, so that what happens to an image does not depend on
which others are in its batch.
"""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from vit_pytorch.data.transforms import Augmentation, rand_augment
from vit_pytorch.preprocessing import Normalize, Preprocessing, ResizeAndCrop

# random numbers that an image takes, without those of RandAugment: two for each of its operations
DRAWS = 15
# as torchvision's RandomErasing
ERASED_AREA = 0.02, 0.33
ERASED_RATIO = 0.3, 3.3


class BatchAugment:
    """Crop, shift, flip, rotate, slant, move, enlarge, apply RandAugment and erase, each image by its own
    random numbers.

    All changes of geometry are one affine map per image and one bilinear or bicubic sampling. Borders are
    black. They follow the distributions of :func:`train_transform`, but movements need not be whole pixels,
    and the sides of a random crop or of a blanked rectangle that would not fit are cut to the image.

    Args:
        prep: The model's input.
        augmentation: What varies; no colour jitter.

    Attributes:
        draws: Random numbers that an image takes.

    Raises:
        ValueError: The augmentation asks for colour jitter.
    """

    def __init__(self, prep: Preprocessing, augmentation: Augmentation) -> None:
        if augmentation.color_jitter:
            raise ValueError(f"colour jitter is not done by the batch, got {augmentation}")
        self.augmentation = augmentation
        self.size = prep.image_size
        self.interpolation = prep.interpolation
        self.fit = ResizeAndCrop(prep)
        self.normalize = Normalize(prep)
        self.draws = DRAWS + 2 * augmentation.rand_augment
        self.recolor = rand_augment(prep, augmentation) if augmentation.rand_augment else None

    def __call__(
        self, images: UInt8[Tensor, "b c h w"], draws: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b c h2 w2"]:
        """Augment and normalise.

        Args:
            images: Values 0 to 255.
            draws: Uniform random numbers in [0, 1), ``draws`` for each image.

        Returns:
            The model's input.
        """
        a = self.augmentation
        images = self.fit(images)
        if a.crop_scale is not None or a.shift or a.flip or a.moves:
            images = grid_sample(
                images.float() / 255,
                self._places(self._maps(draws)),
                mode=self.interpolation,
                padding_mode="zeros",
                align_corners=False,
            ).clamp_(0, 1)
        if self.recolor is not None:
            if images.is_floating_point():
                images = images.mul_(255).round_().to(torch.uint8)
            images = self.recolor.batch(images, draws[:, DRAWS:])
        images = self.normalize(images)
        return images.masked_fill_(self._erased(draws), 0) if a.random_erasing else images

    def _maps(self, draws: Float[Tensor, "b k"]) -> Float[Tensor, "b 2 3"]:
        """Where each point of the output comes from, in coordinates from -1 to 1 across the image."""
        a = self.augmentation
        u = draws.unbind(1)
        maps = self._moves(draws) if a.moves else torch.eye(2, 3).repeat(len(draws), 1, 1)
        mirror = torch.where(u[4] < a.flip, -1.0, 1.0)
        if a.crop_scale is not None:
            wide, high = self._sides(u[0], a.crop_scale, u[1], a.crop_ratio, most=self.size)
            maps *= torch.stack([wide * mirror, high], dim=1).unsqueeze(2)
            maps[:, 0, 2] += (1 - wide) * _between(u[2], -1, 1)
            maps[:, 1, 2] += (1 - high) * _between(u[3], -1, 1)
            return maps
        maps[:, 0] *= mirror.unsqueeze(1)
        if a.shift:
            for axis, side in enumerate(reversed(self.size)):
                maps[:, axis, 2] += 2 / side * torch.floor(_between(u[2 + axis], -a.shift, a.shift + 1))
        return maps

    def _moves(self, draws: Float[Tensor, "b k"]) -> Float[Tensor, "b 2 3"]:
        """The part of the maps that rotates, slants, moves and enlarges."""
        a = self.augmentation
        height, width = self.size
        u = draws.unbind(1)
        angle = torch.deg2rad(_between(u[5], -a.degrees, a.degrees))
        factor = _between(u[6], *a.scale)
        cos, sin = angle.cos() / factor, angle.sin() / factor
        move = torch.stack([cos, sin * height / width, -sin * width / height, cos], dim=1).view(-1, 2, 2)
        slant = torch.deg2rad(_between(u[11], -a.shear, a.shear)).tan() * height / width
        move[:, 0] += slant.unsqueeze(1) * move[:, 1]
        by = 2 * a.translate * torch.stack([_between(u[7], -1, 1), _between(u[8], -1, 1)], dim=1)
        return torch.cat([move, -(move @ by.unsqueeze(2))], dim=2)

    def _places(self, maps: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b h w 2"]:
        """The point of the input that each pixel of the output shows."""
        y, x = (torch.arange(1.0, 2 * side, 2) / side - 1 for side in self.size)
        # pairs of numbers are added a row at a time as complex numbers, far faster than stacked afterwards
        rows, columns = (
            torch.view_as_complex(part.transpose(1, 2).contiguous())
            for part in (maps[:, :, 1:2] * y + maps[:, :, 2:], maps[:, :, 0:1] * x)
        )
        return torch.view_as_real(columns.unsqueeze(1) + rows.unsqueeze(2))

    def _sides(
        self,
        area: Float[Tensor, "b"],
        areas: tuple[float, float],
        ratio: Float[Tensor, "b"],
        ratios: tuple[float, float],
        *,
        most: tuple[int, int],
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Width and height of rectangles, as parts of the image's, from draws of their area and shape."""
        height, width = self.size
        part = _between(area, *areas)
        shape = torch.exp(_between(ratio, *map(math.log, ratios)))
        return (
            (part * shape * height / width).sqrt().clamp(max=most[1] / width),
            (part / shape * width / height).sqrt().clamp(max=most[0] / height),
        )

    def _erased(self, draws: Float[Tensor, "b k"]) -> Bool[Tensor, "b 1 h w"]:
        """The rectangles that are blanked, of whole pixels and smaller than the image."""
        height, width = self.size
        u = draws.unbind(1)
        most = max(1, height - 1), max(1, width - 1)
        wide, high = self._sides(u[10], ERASED_AREA, u[12], ERASED_RATIO, most=most)
        inside = []
        for side, part, draw in ((height, high, u[13]), (width, wide, u[14])):
            length = torch.round(part * side)
            start = torch.floor(draw * (side - length + 1))
            pixel = torch.arange(side)
            inside.append((pixel >= start.unsqueeze(1)) & (pixel < (start + length).unsqueeze(1)))
        rows, columns = inside
        rows &= (u[9] < self.augmentation.random_erasing).unsqueeze(1)
        return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _between(draws: Float[Tensor, "b"], low: float, high: float) -> Float[Tensor, "b"]:
    return low + (high - low) * draws
