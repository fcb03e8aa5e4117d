"""The range of values that images use: measured for a window, and checked where there is none."""

import warnings

import torch
from torch import Tensor

from vit_pytorch.data.datasets import ImageDataset
from vit_pytorch.data.decode import BadImageError

PERCENTILES = (0.5, 99.5)
# images that are looked at, spread evenly over the data, and values of each
SAMPLE, VALUES = 64, 10_000
FULL = {torch.uint8: 255.0, torch.int32: 65535.0}
SMALL_PART = 0.1


def measure_window(images: ImageDataset, channels: int) -> tuple[float, float]:
    """Return the percentiles 0.5 and 99.5 of the values in a sample of images.

    Args:
        images: As a rule those of training.
        channels: Of the images, where they are neither grey nor RGB.

    Raises:
        ValueError: The images have one value only, or none of the sample can be decoded.
    """
    values, _ = _sample(images, channels)
    low, high = (float(torch.quantile(values, part / 100)) for part in PERCENTILES)
    if not low < high:
        low, high = float(values.min()), float(values.max())
    if not low < high:
        raise ValueError(f"no window for images whose values are all {low:g}")
    return low, high


def check_range(images: ImageDataset, channels: int) -> None:
    """Warn where a sample of images uses less than a tenth of the range that its files have.

    12-bit images in files of 16 bits, for example, would all look black.
    """
    try:
        values, full = _sample(images, channels)
    except ValueError:
        # training will stop at the first bad image, and name it
        return
    if full is None:
        return
    low, high = (float(torch.quantile(values, part / 100)) for part in PERCENTILES)
    if high - low < SMALL_PART * full:
        advice = f" (data.window auto, or data.window=[{low:g},{high:g}], spreads them over all)"
        warnings.warn(
            f"images such as {images.name(0)} use {(high - low) / full:.1%} of their range: values {low:g} "
            f"to {high:g} of 0 to {full:g}{advice * (low < high)}",
            stacklevel=2,
        )


def _sample(images: ImageDataset, channels: int) -> tuple[Tensor, float | None]:
    """Return values of some images, and the largest value that their files can have, where it is one."""
    found: list[Tensor] = []
    ranges: set[float | None] = set()
    places = torch.linspace(0, len(images) - 1, min(SAMPLE, len(images))).long().unique()
    for index in places.tolist():
        try:
            values = images.values(index, channels)
        except (BadImageError, FileNotFoundError):
            continue
        ranges.add(FULL.get(values.dtype))
        flat = values.flatten()
        flat = flat[
            torch.linspace(0, len(flat) - 1, min(VALUES, len(flat)), dtype=torch.float64).long()
        ].float()
        found.append(flat[flat.isfinite()])
    if not found or not sum(map(len, found)):
        raise ValueError(f"none of {len(places)} images that were looked at has values")
    return torch.cat(found), ranges.pop() if len(ranges) == 1 else None
