"""Views of an image: random crops, distorted for each image by itself, as tensors and in one go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

# luma and the two chroma axes of YIQ, in which a turn of the chroma changes the hue
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_STRENGTH = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class View:
    """How one view of an image is drawn: a crop, then distortions (DINO, section 3.1, after BYOL).

    Args:
        size: (height, width) of the view in pixels.
        scale: least and greatest part of the image's area that the crop takes, in (0, 1].
        flip: probability of a horizontal flip.
        colour: probability that brightness, contrast, saturation and hue change.
        grey: probability that the colours are taken away.
        blur: probability of a Gaussian blur.
        solarize: probability that pixels from one half on are inverted.
        sigma: least and greatest width of the blur, in pixels of the view.

    Raises:
        ValueError: where a range is empty or a probability none.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    flip: float = 0.5
    colour: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    solarize: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"the scale of a crop is a range in (0, 1], got {self.scale}")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"the width of a blur is a range of positive numbers, got {self.sigma}")
        for name in ("flip", "colour", "grey", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")

    def draw(
        self, images: Float[Tensor, "b c *t h w"], generator: Generator | None = None
    ) -> Float[Tensor, "b c *t y x"]:
        """Draw a view of each image or video, whose frames share all that is drawn.

        Args:
            images: pixels in [0, 1]; colours are changed where there are three channels, brightness and
                contrast always.
        """
        video = images.ndim == 5
        frames = images.shape[2] if video else 1
        each = partial(torch.repeat_interleave, repeats=frames, dim=0)
        x = images.transpose(1, 2).flatten(0, 1) if video else images
        first = images[:, :, 0] if video else images
        x = crop_and_resize(x, each(draw_boxes(first, self.scale, generator)), self.size)
        x = torch.where(each(self._chosen(first, self.flip, generator)), x.flip(3), x)
        drawn = [each(_draw_around(first, width, generator)) for width in _STRENGTH.values()]
        x = torch.where(each(self._chosen(first, self.colour, generator)), change_colours(x, *drawn), x)
        if x.shape[1] == 3:
            x = torch.where(each(self._chosen(first, self.grey, generator)), luma(x).expand_as(x), x)
        blurred = each(self._chosen(first, self.blur, generator))
        sigma = each(_uniform(first, *self.sigma, generator))
        if bool(blurred.any()):
            x = torch.where(blurred, gaussian_blur(x, sigma), x)
        x = torch.where(each(self._chosen(first, self.solarize, generator)) & (x >= 0.5), 1 - x, x)
        return x.unflatten(0, (-1, frames)).transpose(1, 2) if video else x

    def _chosen(self, x: Tensor, probability: float, generator: Generator | None) -> Bool[Tensor, "b 1 1 1"]:
        return _uniform(x, 0.0, 1.0, generator).view(-1, 1, 1, 1) < probability


@dataclass(frozen=True)
class MultiCrop:
    """Several views of every image, each drawn anew for each image (SwAV, arXiv:2006.09882, section 3.2).

    Images come and leave as a model takes them, normalised by channel; in between their pixels are in [0, 1].

    Args:
        views: how the views are drawn, the global ones first.
        mean: what was subtracted from each channel.
        std: what each channel was divided by.
    """

    views: tuple[View, ...]
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "b c *t h w"], generator: Generator | None = None
    ) -> list[Float[Tensor, "b c *t y x"]]:
        """Draw all views.

        Args:
            images: normalised images, or videos; values outside the range of pixels are clipped.

        Raises:
            ValueError: where mean and std are not those of the images' channels.
        """
        channels = images.shape[1]
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise ValueError(
                f"normalisation has {len(self.mean)} means and {len(self.std)} deviations, "
                f"the images {channels} channels"
            )
        with torch.autocast(images.device.type, enabled=False):
            shape = (1, -1, *[1] * (images.ndim - 2))
            mean = images.new_tensor(self.mean, dtype=torch.float32).view(shape)
            std = images.new_tensor(self.std, dtype=torch.float32).view(shape)
            pixels = (images.float() * std + mean).clamp(0, 1)
            drawn = [view.draw(pixels, generator) for view in self.views]
            return [((x - mean) / std).to(images.dtype) for x in drawn]


def dino_views(
    image_size: tuple[int, int],
    local_size: tuple[int, int],
    *,
    num_local: int = 8,
    global_lower: float = 0.4,
    local_upper: float = 0.4,
) -> tuple[View, ...]:
    """Return DINO's views: two global ones, one blurred always, one solarized at times, and local ones.

    Args:
        image_size: size of the global views.
        local_size: size of the local views.
        num_local: number of local views.
        global_lower: least part of the area in a global view; at most all of it.
        local_upper: greatest part of the area in a local view; at least a twentieth.
    """
    return (
        View(image_size, (global_lower, 1.0), blur=1.0),
        View(image_size, (global_lower, 1.0), blur=0.1, solarize=0.2),
        *[View(local_size, (min(0.05, local_upper), local_upper))] * num_local,
    )


def draw_boxes(
    images: Float[Tensor, "b c h w"], scale: tuple[float, float], generator: Generator | None = None
) -> Float[Tensor, "b 4"]:
    """Draw a box inside each image: part of the area in `scale`, ratio of the sides between 3/4 and 4/3.

    A side that would be longer than the image's is cut to it.

    Returns:
        Top, left, height and width as parts of the image's height and width.
    """
    height, width = images.shape[2:]
    area = _uniform(images, *scale, generator) * height * width
    ratio = _uniform(images, math.log(_RATIO[0]), math.log(_RATIO[1]), generator).exp()
    tall = ((area / ratio).sqrt() / height).clamp(max=1)
    wide = ((area * ratio).sqrt() / width).clamp(max=1)
    top = _uniform(images, 0.0, 1.0, generator) * (1 - tall)
    left = _uniform(images, 0.0, 1.0, generator) * (1 - wide)
    return torch.stack([top, left, tall, wide], dim=1)


def crop_and_resize(
    images: Float[Tensor, "b c h w"], boxes: Float[Tensor, "b 4"], size: tuple[int, int]
) -> Float[Tensor, "b c y x"]:
    """Cut a box out of each image and resize it by bicubic interpolation, clipped to [0, 1].

    Args:
        boxes: what `draw_boxes` gives.
        size: (height, width) wanted.
    """
    top, left, tall, wide = boxes.unbind(1)
    none = torch.zeros_like(top)
    rows = torch.stack([wide, none, 2 * left + wide - 1, none, tall, 2 * top + tall - 1], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), [len(images), images.shape[1], *size], align_corners=False)
    x = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return x.clamp(0, 1)


def change_colours(
    images: Float[Tensor, "b c h w"],
    brightness: Float[Tensor, " b"],
    contrast: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"],
    hue: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """Change the colours of each image by numbers of its own, in this order, clipped to [0, 1] after each.

    Args:
        brightness: added to the factor 1 of the pixels.
        contrast: added to the factor 1 of their distance to the image's mean luma.
        saturation: added to the factor 1 of their distance to their own luma.
        hue: turn of the chroma, in turns.
    """
    x = (images * _each(1 + brightness)).clamp(0, 1)
    level = luma(x).mean(dim=(1, 2, 3), keepdim=True)
    x = (level + (x - level) * _each(1 + contrast)).clamp(0, 1)
    if x.shape[1] != 3:
        return x
    grey = luma(x)
    x = (grey + (x - grey) * _each(1 + saturation)).clamp(0, 1)
    to_yiq = x.new_tensor(_YIQ)
    cos, sin = (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()
    none, one = torch.zeros_like(cos), torch.ones_like(cos)
    turn = torch.stack([one, none, none, none, cos, -sin, none, sin, cos], dim=1).view(-1, 3, 3)
    turned = to_yiq.inverse() @ turn @ to_yiq @ x.flatten(2)
    return turned.view_as(x).clamp(0, 1)


def luma(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the brightness that each pixel has for the eye; the mean of the channels where they are not
    3."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    weights = images.new_tensor(_YIQ[0]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def gaussian_blur(images: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Blur each image by a Gaussian of its own width, cut at three times the greatest width.

    Args:
        images: pixels; the outermost go on beyond the edge.
        sigma: standard deviation for each image, in pixels.
    """
    b, c, h, w = images.shape
    radius = math.ceil(3 * float(sigma.max()))
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = (-(places**2) / (2 * sigma[:, None] ** 2)).exp()
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)[:, None, None]
    x = F.pad(images, (radius,) * 4, mode="replicate").view(1, b * c, h + 2 * radius, w + 2 * radius)
    x = F.conv2d(F.conv2d(x, kernel, groups=b * c), kernel.transpose(2, 3), groups=b * c)
    return x.view(b, c, h, w)


def join_by_size(crops: Sequence[Float[Tensor, "b c *_"]]) -> list[Float[Tensor, "_ c *_"]]:
    """Put neighbouring crops of one size in one batch, crop by crop; a model runs once for each size."""
    runs: list[list[Tensor]] = []
    for crop in crops:
        if runs and runs[-1][0].shape == crop.shape:
            runs[-1].append(crop)
        else:
            runs.append([crop])
    return [torch.cat(run) for run in runs]


def _each(values: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    return values.view(-1, 1, 1, 1)


def _uniform(images: Tensor, low: float, high: float, generator: Generator | None) -> Float[Tensor, " b"]:
    """Draw a number for each image, by a generator that may be on another device."""
    device = images.device if generator is None else generator.device
    drawn = torch.rand(len(images), generator=generator, device=device, dtype=torch.float32)
    return low + (high - low) * drawn.to(images)


def _draw_around(images: Tensor, width: float, generator: Generator | None) -> Float[Tensor, " b"]:
    return _uniform(images, -width, width, generator)
