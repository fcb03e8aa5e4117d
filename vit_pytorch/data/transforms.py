"""Augmentation of single images, before they are normalised, and batches of them.

The frames of a clip and the slices of a volume are treated alike: one crop, one flip and so on for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Video

from vit_pytorch.data.recolor import RandAugment
from vit_pytorch.preprocessing import (
    ChannelsFirst,
    Normalize,
    Preprocessing,
    ResizeAndCrop,
    eval_transform,
    fit_size,
)

Images = Float[Tensor, "b c *t h w"] | list[Float[Tensor, "c h w"]]


# largest strengths of augmentations that begin at 0, and the least part or ratio
MOST = {"degrees": 180, "shear": 80, "rand_augment": 20, "color_jitter": 10, "mixup": 100, "cutmix": 100}
LEAST = 0.001


@dataclass(frozen=True)
class Augmentation:
    """What varies between two looks at a training image; by default nothing does.

    Args:
        crop_scale: Area of a random resized crop, as a range of parts of the image; None for no such crop.
        crop_ratio: Width to height of that crop, as a range.
        shift: Pixels by which the image is moved at most in each direction, over a black border; not with
            ``crop_scale``.
        flip: Probability of a horizontal flip.
        degrees: Largest rotation either way.
        shear: Largest slant of upright lines either way, in degrees.
        translate: Largest movement, as a part of width and height.
        scale: Range of factors by which the image is enlarged.
        rand_augment: Number of RandAugment operations; 0 for none.
        rand_augment_magnitude: Their strength, 0 to 30.
        color_jitter: Largest change of brightness, contrast and saturation, as a part of each.
        random_erasing: Probability that a rectangle is blanked (with the mean, after normalisation).
        mixup: alpha of MixUp; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, each batch takes one of them.

    Raises:
        ValueError: A value is out of its range.
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shift: int = 0
    flip: float = 0.0
    degrees: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "random_erasing", "translate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.shift < 0:
            raise ValueError(f"shift must not be negative, got {self.shift}")
        for name, most in MOST.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in [0, {most}], got {getattr(self, name)}")
        if not 0 <= self.rand_augment_magnitude <= 30:
            raise ValueError(f"rand_augment_magnitude must be 0 to 30, got {self.rand_augment_magnitude}")
        for name in ("crop_scale", "crop_ratio", "scale"):
            bounds = getattr(self, name)
            if bounds is not None and not LEAST <= bounds[0] <= bounds[1] <= 1 / LEAST:
                raise ValueError(
                    f"{name} must be a range (low, high) with {LEAST} <= low <= high <= {1 / LEAST:g}, "
                    f"got {bounds}"
                )
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale must end at 1 at the most, got {self.crop_scale}")
        if self.crop_scale is not None and self.shift:
            raise ValueError(f"shift must be 0 together with crop_scale, got {self.shift}")

    @property
    def moves(self) -> bool:
        """Whether small affine changes (rotation, movement, enlargement) are asked for."""
        return bool(self.degrees or self.shear or self.translate or self.scale != (1.0, 1.0))

    @property
    def mixes(self) -> bool:
        """Whether MixUp or CutMix is asked for, so that labels become class probabilities."""
        return bool(self.mixup or self.cutmix)


UNCHANGED = Augmentation()


def collate(images: Sequence[Float[Tensor, "c *t h w"]], prep: Preprocessing) -> Images:
    """Make a batch of images: one tensor, or the list of them where sizes differ."""
    if prep.max_tokens is not None:
        return list(images)
    return torch.stack(list(images)) if images else torch.empty(0, prep.channels, *prep.size)


def move(images: Images, device: torch.device, dtype: torch.dtype | None = None) -> Images:
    """Put a batch of images on a device, and into another precision."""
    if isinstance(images, Tensor):
        return images.to(device, dtype)
    return [image.to(device, dtype) for image in images]


def check_native(augmentation: Augmentation) -> None:
    """Check that an augmentation suits images that differ in size.

    Raises:
        ValueError: It moves them within one size, or mixes them with each other.
    """
    a = augmentation
    if a.shift or a.mixes:
        raise ValueError(
            "with max_tokens images differ in size: shift, mixup and cutmix must be 0, "
            f"got {a.shift}, {a.mixup} and {a.cutmix}"
        )


class RandomRegion(v2.RandomResizedCrop):
    """Cut out what a random resized crop would, and leave its size as it is."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the region out."""
        return F.crop(inpt, **params)


def train_transform(
    prep: Preprocessing, augmentation: Augmentation, *, normalize: bool = True
) -> v2.Transform:
    """Return the transform of training for one image (``c h w``, values 0 to 255), or one clip (``t c h w``).

    The order is that of DeiT: crop, flip, affine changes, RandAugment, colour, normalise, erase. It draws
    from torch's global generator, once for all frames of a clip, of which it makes ``c t h w``.

    Args:
        prep: The model's input.
        augmentation: What varies.
        normalize: Whether images are normalised, and erased; or stay bytes.

    Raises:
        ValueError: Images shall keep their aspect ratio, and be augmented in a way that needs one size.
    """
    a = augmentation
    mode = v2.InterpolationMode(prep.interpolation)
    steps: list[nn.Module] = []
    if prep.max_tokens is not None:
        check_native(a)
        if a.crop_scale is not None:
            steps.append(RandomRegion(prep.image_size, scale=a.crop_scale, ratio=a.crop_ratio))
        steps.append(fit_size(prep))
    elif a.crop_scale is not None:
        steps.append(
            v2.RandomResizedCrop(
                prep.image_size,
                scale=a.crop_scale,
                ratio=a.crop_ratio,
                interpolation=mode,
                antialias=True,
            )
        )
    else:
        steps.append(ResizeAndCrop(prep))
    if a.shift:
        steps.append(v2.RandomCrop(prep.image_size, padding=a.shift))
    if a.flip:
        steps.append(v2.RandomHorizontalFlip(a.flip))
    if a.moves:
        steps.append(
            v2.RandomAffine(
                a.degrees,
                translate=(a.translate, a.translate),
                scale=a.scale,
                shear=a.shear,
                interpolation=mode,
            )
        )
    if a.rand_augment:
        steps.append(rand_augment(prep, a))
    if a.color_jitter:
        steps.append(v2.ColorJitter(a.color_jitter, a.color_jitter, a.color_jitter))
    if normalize:
        steps.append(Normalize(prep))
    if normalize and a.random_erasing:
        steps.append(v2.RandomErasing(a.random_erasing))
    if prep.frames is not None:
        steps.append(ChannelsFirst())
    return v2.Compose(steps)


def rand_augment(prep: Preprocessing, augmentation: Augmentation) -> RandAugment:
    """Return the RandAugment that an augmentation asks for."""
    return RandAugment(
        augmentation.rand_augment,
        magnitude=augmentation.rand_augment_magnitude,
        interpolation=v2.InterpolationMode(prep.interpolation),
    )


class Preparation:
    """Prepares images one by one, and then a batch of them; normalises all at once where that is the same.

    Args:
        prep: The model's input.
        augmentation: How images vary; None for evaluation.
    """

    def __init__(self, prep: Preprocessing, augmentation: Augmentation | None) -> None:
        self.prep = prep
        erases = augmentation is not None and augmentation.random_erasing > 0
        # what is erased is erased after it is normalised
        self.together = prep.max_tokens is None and prep.frames is None and not erases
        if augmentation is not None:
            self.single: nn.Module = train_transform(prep, augmentation, normalize=not self.together)
        else:
            self.single = fit_size(prep) if self.together else eval_transform(prep)
        self.normalize = Normalize(prep)

    def collate(self, images: Sequence[Shaped[Tensor, "c *t h w"]]) -> Images:
        """Make a batch of prepared images; see `collate`."""
        if not self.together or not images:
            return collate(images, self.prep)
        # Decoders put a pixel's channels beside each other, and so does what convolutions are fastest with.
        # Line by line, and an image at a time while it is in the cache, to the bits of `Normalize`.
        channels, height, width = images[0].shape
        mean, std = (part.flatten().repeat(width) for part in (self.normalize.mean, self.normalize.std))
        pixels = torch.empty(len(images), height, width * channels)
        for lines, image in zip(pixels, images, strict=True):
            lines.unflatten(1, (width, channels)).copy_(image.movedim(0, -1))
            lines.div_(255).sub_(mean).div_(std)
        return pixels.unflatten(2, (width, channels)).movedim(-1, 1)


class AsStored:
    """Leaves images as they are stored, and puts those of one size into a batch of bytes."""

    single: nn.Module = nn.Identity()

    def collate(self, images: Sequence[Shaped[Tensor, "c h w"]]) -> Images:
        """Return one tensor, or the list of images where sizes differ."""
        alike = len({image.shape for image in images}) == 1
        return torch.stack(list(images)) if alike else list(images)


Mix = Callable[[Tensor, Tensor], tuple[Float[Tensor, "b c *t h w"], Float[Tensor, "b k"]]]


def mix_transform(augmentation: Augmentation, num_classes: int) -> Mix | None:
    """Return MixUp, CutMix or a choice between them for a batch, or None if neither is asked for.

    It takes images and integer labels, gives images and class probabilities, and draws from torch's global
    generator.
    """
    a = augmentation
    choices: list[v2.Transform] = []
    if a.mixup:
        choices.append(v2.MixUp(alpha=a.mixup, num_classes=num_classes))
    if a.cutmix:
        choices.append(v2.CutMix(alpha=a.cutmix, num_classes=num_classes))
    if not choices:
        return None
    mix = v2.RandomChoice(choices)

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if images.ndim == 4:
            return mix(images, labels)
        clips, probabilities = mix(Video(images), labels)
        return clips.as_subclass(Tensor), probabilities

    return mixed
