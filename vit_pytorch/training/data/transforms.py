"""From decoded images to what a model sees: preprocessing, and augmentation of single images.

The frames of a clip and the slices of a volume are treated alike: one crop, one flip and so on for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Video

from vit_pytorch.training.data.clips import VideoConfig
from vit_pytorch.training.data.native import FitTokens, RandomRegion
from vit_pytorch.training.data.volumes import VolumeConfig

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Images = Float[Tensor, "b c *t h w"] | list[Float[Tensor, "c h w"]]


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
        for name in ("shift", "degrees", "shear", "rand_augment", "color_jitter", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.rand_augment_magnitude <= 30:
            raise ValueError(f"rand_augment_magnitude must be 0 to 30, got {self.rand_augment_magnitude}")
        for name in ("crop_scale", "crop_ratio", "scale"):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be a range (low, high) with 0 < low <= high, got {bounds}")
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale must end at 1 at the most, got {self.crop_scale}")
        if self.crop_scale is not None and self.shift:
            raise ValueError(f"shift must be 0 together with crop_scale, got {self.shift}")

    @property
    def moves(self) -> bool:
        """Whether small affine changes (rotation, movement, enlargement) are asked for."""
        return bool(self.degrees or self.shear or self.translate or self.scale != (1.0, 1.0))

    @property
    def recolors(self) -> bool:
        """Whether RandAugment or colour jitter is asked for."""
        return bool(self.rand_augment or self.color_jitter)

    @property
    def mixes(self) -> bool:
        """Whether MixUp or CutMix is asked for, so that labels become class probabilities."""
        return bool(self.mixup or self.cutmix)


UNCHANGED = Augmentation()


@dataclass(frozen=True)
class Preprocessing:
    """What a model is given, the same in training and evaluation.

    Args:
        image_size: Height and width.
        channels: 1 for grey, 3 for RGB.
        mean: Subtracted after scaling to 0 to 1; one value, or one per channel.
        std: Divides after that; likewise.
        interpolation: How images are resized.
        crop_pct: Part of the resized height and width that the centre crop keeps.
        max_tokens: Patches of an image at most, where images keep their aspect ratio and come as a list
            of different sizes, each a multiple of the patch and ``image_size`` at most; None for one size.
        patch_size: Height and width of a patch, where ``max_tokens`` is given.
        frames: Frames of a clip, or slices of a volume; None for images.
        video: Which frames of a video are taken.
        volume: How volumes are brought to one intensity and size.
        window: Values of an image's file that become 0 and 255 (0 and 1 for the model), what lies outside
            being clipped; None for the whole range of its 8 or 16 bits.

    Raises:
        ValueError: A value is out of its range.
    """

    image_size: tuple[int, int]
    channels: int = 3
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    max_tokens: int | None = None
    patch_size: tuple[int, int] = (16, 16)
    frames: int | None = None
    video: VideoConfig = field(default_factory=VideoConfig)
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window must be a range (low, high) with low < high, got {self.window}")
        if self.window is not None and self.frames is not None:
            raise ValueError("window is for images; volumes have one of their own (volume.window)")
        if self.frames is not None and (self.frames < 1 or self.max_tokens is not None):
            raise ValueError(
                "frames must be at least 1, without max_tokens, "
                f"got {self.frames} and max_tokens={self.max_tokens}"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1, got {self.crop_pct}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} must have 1 or {self.channels} values, got {len(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @property
    def mode(self) -> v2.InterpolationMode:
        """The interpolation, as torchvision names it."""
        return v2.InterpolationMode(self.interpolation)

    @property
    def size(self) -> tuple[int, ...]:
        """Extent of the model's input along each of its axes."""
        return self.image_size if self.frames is None else (self.frames, *self.image_size)


def collate(images: Sequence[Float[Tensor, "c *t h w"]], prep: Preprocessing) -> Images:
    """Make a batch of images: one tensor, or the list of them where sizes differ."""
    if prep.max_tokens is not None:
        return list(images)
    return torch.stack(list(images)) if images else torch.empty(0, prep.channels, *prep.size)


def move(images: Images, device: torch.device) -> Images:
    """Put a batch of images on a device."""
    return images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]


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


def fit_size(prep: Preprocessing) -> v2.Transform:
    """Return the transform that brings an image to a size that the model takes."""
    if prep.max_tokens is None:
        return CoverAndCrop(prep)
    return FitTokens(
        patch=prep.patch_size, largest=prep.image_size, max_tokens=prep.max_tokens, mode=prep.mode
    )


class CoverAndCrop(v2.Transform):
    """Resize without distortion until the image covers ``image_size / crop_pct``, then cut out the centre."""

    def __init__(self, prep: Preprocessing) -> None:
        super().__init__()
        self.size = list(prep.image_size)
        self.cover = [int(side / prep.crop_pct) for side in prep.image_size]
        self.mode = prep.mode

    def forward(self, image: Shaped[Tensor, "*b c h w"]) -> Shaped[Tensor, "*b c h2 w2"]:
        """Return the image at the model's size."""
        height, width = image.shape[-2:]
        factor = max(self.cover[0] / height, self.cover[1] / width)
        resized = [max(self.cover[0], round(height * factor)), max(self.cover[1], round(width * factor))]
        if resized != [height, width]:
            image = F.resize(image, resized, interpolation=self.mode, antialias=True)
        return F.center_crop(image, self.size)


class ChannelsFirst(v2.Transform):
    """Put the channels of a clip before its frames, as models take it."""

    def forward(self, clip: Float[Tensor, "t c h w"]) -> Float[Tensor, "c t h w"]:
        """Return the clip with its first two axes exchanged."""
        return clip.transpose(0, 1)


def normalize(prep: Preprocessing) -> v2.Transform:
    """Return the transform from values 0 to 255, or floats 0 to 1, to normalised floats."""
    mean, std = (list(values) * (prep.channels // len(values)) for values in (prep.mean, prep.std))
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def eval_transform(prep: Preprocessing) -> v2.Transform:
    """Return the transform of evaluation (resize, centre crop, normalise).

    It takes one image or a batch, or one clip ``t c h w``, of which it makes ``c t h w``.
    """
    steps = [fit_size(prep), normalize(prep)]
    return v2.Compose(steps if prep.frames is None else [*steps, ChannelsFirst()])


def train_transform(prep: Preprocessing, augmentation: Augmentation) -> v2.Transform:
    """Return the transform of training for one image (``c h w``, values 0 to 255), or one clip (``t c h w``).

    The order is that of DeiT: crop, flip, affine changes, RandAugment, colour, normalise, erase. It draws
    from torch's global generator, once for all frames of a clip, of which it makes ``c t h w``.

    Raises:
        ValueError: Images shall keep their aspect ratio, and be augmented in a way that needs one size.
    """
    a = augmentation
    steps: list[v2.Transform] = []
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
                interpolation=prep.mode,
                antialias=True,
            )
        )
    else:
        steps.append(CoverAndCrop(prep))
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
                interpolation=prep.mode,
            )
        )
    if a.rand_augment:
        steps.append(
            v2.RandAugment(a.rand_augment, magnitude=a.rand_augment_magnitude, interpolation=prep.mode)
        )
    if a.color_jitter:
        steps.append(v2.ColorJitter(a.color_jitter, a.color_jitter, a.color_jitter))
    steps.append(normalize(prep))
    if a.random_erasing:
        steps.append(v2.RandomErasing(a.random_erasing))
    if prep.frames is not None:
        steps.append(ChannelsFirst())
    return v2.Compose(steps)


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
