"""RandAugment of torchvision, with five of its operations computed faster, to the same bits.

And the same for a batch of images, each with its own draws.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms import v2


class RandAugment(v2.RandAugment):
    """RandAugment (arXiv:1909.13719), as torchvision draws and computes it.

    On a photograph of 224 x 224 pixels torchvision's sharpness takes 6 ms of a core, its autocontrast 1.4,
    its solarize 0.8 and its translations 0.6, where a JPEG file of 500 x 400 is decoded in less than one. Of
    8 bits they are sums of integers, a few operations on whole channels, or a copy. If torchvision calls
    something else one day, it computes them itself.
    """

    def _apply_image_or_video_transform(
        self, image: Any, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Any:
        faster = FASTER.get(transform_id)
        bytes_over_black = isinstance(image, Tensor) and image.dtype == torch.uint8 and self.fill is None
        if faster is not None and bytes_over_black:
            return faster(image, magnitude)
        return super()._apply_image_or_video_transform(image, transform_id, magnitude, interpolation, fill)

    def batch(
        self, images: UInt8[Tensor, "b c h w"], draws: Float[Tensor, "b k"]
    ) -> UInt8[Tensor, "b c h w"]:
        """Augment each image of a batch by its own operations; images of one operation together.

        Args:
            images: Values 0 to 255.
            draws: Uniform random numbers in [0, 1): for each image its operations, and then their signs.
        """
        names = list(self._AUGMENTATION_SPACE)
        which = (draws[:, : self.num_ops] * len(names)).long()
        negative = draws[:, self.num_ops :] < 0.5
        images = images.clone()
        for turn in range(self.num_ops):
            for number, name in enumerate(names):
                values, signed = self._AUGMENTATION_SPACE[name]
                strengths = values(self.num_magnitude_bins, *images.shape[-2:])
                strength = 0.0 if strengths is None else float(strengths[self.magnitude])
                for sign in (1, -1) if signed else (1,):
                    mine = which[:, turn] == number
                    mine &= (negative[:, turn] == (sign < 0)) | (not signed)
                    chosen = mine.nonzero().flatten()
                    if len(chosen):
                        images[chosen] = self._apply_image_or_video_transform(
                            images[chosen],
                            name,
                            sign * strength,
                            interpolation=self.interpolation,
                            fill=self._fill,
                        )
        return images


def sharpen(image: UInt8[Tensor, "*c h w"], magnitude: float) -> UInt8[Tensor, "*c h w"]:
    """Change the sharpness by 1 + `magnitude`."""
    if min(image.shape[-2:]) <= 2:
        return image
    output = image.to(torch.float32, copy=True)
    inner = output[..., 1:-1, 1:-1]
    rows = output[..., :-2, :] + output[..., 1:-1, :] + output[..., 2:, :]
    # the middle weighs 5 of 13; thirteenths are never halfway between integers, so that all sums round alike
    blurred = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = blurred.add_(inner, alpha=4).div_(13).round_()
    inner.add_(blurred.sub_(inner), alpha=1.0 - (1.0 + magnitude))
    return output.clamp_(0, 255).to(torch.uint8)


def stretch(image: UInt8[Tensor, "*c h w"], magnitude: float) -> UInt8[Tensor, "*c h w"]:
    """Stretch each channel to the whole range of values; one of a single value stays."""
    # one plane after the other in memory, as minima and maxima are fast
    image = image.contiguous()
    lows, highs = image.amin((-2, -1), keepdim=True).float(), image.amax((-2, -1), keepdim=True).float()
    scales = (highs - lows) * (1 / 255)
    flat = scales == 0
    lows, scales = lows.masked_fill(flat, 0), scales.masked_fill(flat, 1)
    return image.float().sub_(lows).div_(scales).clamp_(0, 255).to(torch.uint8)


def solarize(image: UInt8[Tensor, "*c h w"], magnitude: float) -> UInt8[Tensor, "*c h w"]:
    """Invert values from `magnitude` of the range on."""
    threshold = math.ceil(255 * magnitude)
    if threshold > 255:
        return image
    # all bits of what is inverted; torch.where takes five times as long for bytes
    return image ^ (image >= threshold).view(torch.uint8).neg()


def translate(image: UInt8[Tensor, "*c h w"], magnitude: float, axis: int) -> UInt8[Tensor, "*c h w"]:
    """Move an image by `magnitude` pixels along an axis, whole ones, over black."""
    side, by = image.shape[axis], int(magnitude)
    moved = torch.zeros_like(image)
    length = side - abs(by)
    if length > 0:
        moved.narrow(axis, max(by, 0), length).copy_(image.narrow(axis, max(-by, 0), length))
    return moved


FASTER: dict[str, Callable[[Tensor, float], Tensor]] = {
    "TranslateX": partial(translate, axis=-1),
    "TranslateY": partial(translate, axis=-2),
    "Sharpness": sharpen,
    "AutoContrast": stretch,
    "Solarize": solarize,
}
