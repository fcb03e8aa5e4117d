"""How images, videos and volumes are prepared for a model; needs PyTorch and nothing else.

`create_transform` builds the preprocessing that a model's weights expect. Training, evaluation, prediction,
explanation and export go through the same modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from vit_pytorch.extras import install_command
from vit_pytorch.layers.arguments import check_arguments
from vit_pytorch.layers.blocks import is_tracing

Interpolation = Literal["nearest", "bilinear", "bicubic"]
CropMode = Literal["center", "squash", "border"]
MEDIA = ("video", "volume")
# Pillow's name of an image's channels
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# modes with transparency, which `Image.convert` drops
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
# EXIF's tag of how a photograph was held
ORIENTATION = 0x0112


def create_transform(model_or_cfg: nn.Module | Mapping[str, Any], train: bool = False) -> nn.Module:
    """Build the transform from an image to the input of a model, as its weights expect it.

    The transform takes a Pillow image, or a tensor `c h w` of bytes (0 to 255) or floats (0 to 1). For
    evaluation it resizes the image (with antialiasing), crops the center and normalizes; batches of tensors
    and, for models of videos and volumes, one clip `t c h w` are taken as well. A Pillow image whose EXIF
    orientation says that it is not upright is warned of, since it is taken as it is. For training it crops at
    random (8 % to 100 % of the area), flips half of the images and normalizes; that needs torchvision.

    Args:
        model_or_cfg: a model, whose `default_cfg` is read, ours or timm's; or such a mapping, with
            `input_size`, `mean`, `std`, `interpolation` and `crop_pct`.
        train: build the transform of training instead of that of evaluation.

    Returns:
        A module that returns a float tensor `c h w` (`c t h w` for clips).

    Raises:
        ValueError: if the configuration lacks something or asks for what is not known; if images of training
            keep their own sizes (`max_tokens`) or are clips; if `train` is neither True nor False.
        ImportError: if `train` is asked for without torchvision.
    """
    check_arguments(create_transform, train=train)
    prep = preprocessing_for(model_or_cfg)
    if not train:
        return nn.Sequential(ToTensor(prep.channels), *eval_transform(prep))
    if prep.frames is not None or prep.max_tokens is not None:
        raise ValueError(
            "create_transform(train=True) is for images of one size: for clips, volumes and max_tokens use "
            "vit_pytorch.data.train_transform"
        )
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError(
            f"the transform of training needs torchvision: {install_command('train')}"
        ) from error
    mode = v2.InterpolationMode(prep.interpolation)
    return nn.Sequential(
        ToTensor(prep.channels),
        v2.RandomResizedCrop(prep.image_size, interpolation=mode, antialias=True),
        v2.RandomHorizontalFlip(),
        Normalize(prep),
    )


def eval_transform(prep: Preprocessing) -> nn.Sequential:
    """Return the transform of evaluation (resize, center crop, normalize).

    It takes one image or a batch, or one clip `t c h w`, of which it makes `c t h w`.
    """
    steps = [fit_size(prep), Normalize(prep)]
    return nn.Sequential(*steps, *([] if prep.frames is None else [ChannelsFirst()]))


def preprocessing_for(model_or_cfg: nn.Module | Mapping[str, Any]) -> Preprocessing:
    """Read how images are prepared for a model from what it says of itself (see `create_transform`).

    Raises:
        ValueError: if the model takes no images, videos or volumes, or its configuration lacks something.
    """
    cfg: Any = model_or_cfg
    if isinstance(model_or_cfg, nn.Module):
        cfg = getattr(model_or_cfg, "default_cfg", None)
    if not isinstance(cfg, Mapping):
        raise ValueError(f"{type(model_or_cfg).__name__} has no default_cfg: pass its configuration instead")
    lacking = [key for key in ("input_size", "mean", "std", "interpolation", "crop_pct") if key not in cfg]
    if lacking:
        raise ValueError(f"the configuration of a model's images lacks {', '.join(lacking)}")
    try:
        return _read_preprocessing(cfg)
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"the configuration of a model does not say how its input is prepared: {error}"
        ) from error


def _read_preprocessing(cfg: Mapping[str, Any]) -> Preprocessing:
    if len(cfg["input_size"]) not in (3, 4):
        raise ValueError(
            f"a model of images, videos or volumes is wanted, got one whose input is {cfg['input_size']}"
        )
    channels, *frames, height, width = cfg["input_size"]
    # version 0.1 wrote both
    media = [kind for kind in MEDIA if kind in cfg]
    return Preprocessing(
        image_size=(height, width),
        channels=channels,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        crop_pct=cfg["crop_pct"],
        crop_mode=cfg.get("crop_mode", "center"),
        max_tokens=cfg.get("max_tokens"),
        patch_size=tuple(cfg.get("patch_size", Preprocessing.patch_size)),
        frames=frames[0] if frames else None,
        video=VideoConfig(**cfg.get("video", {})),
        window=_to_tuple(cfg.get("window")),
        volume=VolumeConfig(**{key: _to_tuple(value) for key, value in cfg.get("volume", {}).items()}),
        media=media[0] if len(media) == 1 else None,
    )


def _to_tuple(value: Any) -> Any:
    """Return a list of JSON as the tuple that it was."""
    return tuple(value) if isinstance(value, list) else value


def is_range(window: Sequence[float]) -> bool:
    """Return whether a window is two finite numbers, the lower one first."""
    return len(window) == 2 and -inf < window[0] < window[1] < inf


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Which frames of a video the model sees; it takes as many as its `frames`.

    Args:
        sampling: `random` takes frames `stride` apart: in training from anywhere in the video, in evaluation
            from its middle. `uniform` spreads the frames over the whole video: in training each is drawn
            from its share of the video, in evaluation it is the middle of that.
        stride: Frames of the video from one frame of a clip to the next, with `random`. Frames are counted,
            whatever their rate.
    """

    sampling: Literal["random", "uniform"] = "random"
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")

    def span(self, frames: int) -> int:
        """Frames of the video from the first to the last of a clip, both counted."""
        return (frames - 1) * self.stride + 1


@dataclass(frozen=True, kw_only=True)
class VolumeConfig:
    """How volumes are brought to the intensity and the size that the model takes.

    Args:
        window: Values that become 0 and 1, such as Hounsfield units; what lies outside is clipped. By
            default the percentiles of each volume.
        percentiles: Of a volume's voxels, which become 0 and 1 where there is no window.
        spacing: Size of a voxel in mm, from slice to slice, down and across: volumes are resampled to it,
            then cut or filled with zeros about their centre. By default all slices together become the
            model's `frames`, and each is prepared as an image is.
        series: What happens to a file of several volumes (4-D): it is `refuse`d as a bad file, or its `first`
            volume is taken.
    """

    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    spacing: tuple[float, float, float] | None = None
    series: Literal["refuse", "first"] = "refuse"

    def __post_init__(self) -> None:
        if self.window is not None and not is_range(self.window):
            raise ValueError(f"window must be a range (low, high) with low < high, got {self.window}")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(
                f"percentiles must be a range (low, high) with 0 <= low < high <= 100, got {self.percentiles}"
            )
        if self.spacing is not None and not all(0 < size < inf for size in self.spacing):
            raise ValueError(f"spacing must be positive and finite, got {self.spacing}")


@dataclass(frozen=True)
class Preprocessing:
    """What a model is given, the same in training and evaluation.

    Args:
        image_size: Height and width.
        channels: 1 for grey, 3 for RGB.
        mean: Subtracted after scaling to 0 to 1; one value, or one per channel.
        std: Divides after that; likewise.
        interpolation: How images are resized.
        crop_pct: Part of the resized height and width that the center crop keeps.
        crop_mode: `center` keeps the aspect ratio, so that the crop leaves out what is longer; `squash` does
            not, and resizes whole images to the size before the crop; `border` keeps the aspect ratio and
            whole images, with a border of the colour `mean` where they are shorter.
        max_tokens: Patches of an image at most, where images keep their aspect ratio and come as a list
            of different sizes, each a multiple of the patch and `image_size` at most; None for one size.
        patch_size: Height and width of a patch, where `max_tokens` is given.
        frames: Frames of a clip, or slices of a volume; None for images.
        video: Which frames of a video are taken.
        volume: How volumes are brought to one intensity and size.
        media: What was trained on, "video" or "volume"; None for images, and where it is not known.
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
    crop_mode: CropMode = "center"
    max_tokens: int | None = None
    patch_size: tuple[int, int] = (16, 16)
    frames: int | None = None
    video: VideoConfig = field(default_factory=VideoConfig)
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    media: str | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.media not in (None, *MEDIA):
            raise ValueError(f"media must be one of {', '.join(MEDIA)}, got {self.media!r}")
        if self.window is not None and not is_range(self.window):
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
        for name, known in (("interpolation", Interpolation), ("crop_mode", CropMode)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}"
                )
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1, got {self.crop_pct}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} must have 1 or {self.channels} values, got {len(values)}")
            if not all(isfinite(value) for value in values):
                raise ValueError(f"{name} must be finite, got {values}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @property
    def size(self) -> tuple[int, ...]:
        """Extent of the model's input along each of its axes."""
        return self.image_size if self.frames is None else (self.frames, *self.image_size)


def fit_tokens(
    size: tuple[int, int], *, patch: tuple[int, int], largest: tuple[int, int], max_tokens: int
) -> tuple[int, int]:
    """Return the size at which an image is cut into whole patches, within a number of tokens.

    The aspect ratio is kept as far as whole patches allow, and nothing is enlarged but to fill a patch.

    Args:
        size: height and width of the image.
        patch: height and width of a patch.
        largest: what height and width may be at most.
        max_tokens: patches of an image at most.
    """
    height, width = size
    factor = min(
        1.0,
        sqrt(max_tokens * patch[0] * patch[1] / (height * width)),
        largest[0] / height,
        largest[1] / width,
    )
    rows = min(max(1, round(height * factor / patch[0])), max_tokens, largest[0] // patch[0])
    columns = min(max(1, round(width * factor / patch[1])), max_tokens, largest[1] // patch[1])
    # Both may have been rounded up; the longer side gives way.
    if rows * columns > max_tokens:
        if rows > columns:
            rows = max_tokens // columns
        else:
            columns = max_tokens // rows
    return rows * patch[0], columns * patch[1]


def fit_size(prep: Preprocessing) -> nn.Module:
    """Return the module that brings an image to a size that the model takes."""
    return ResizeAndCrop(prep) if prep.max_tokens is None else FitTokens(prep)


def resize(
    images: Shaped[Tensor, "*b c h w"], size: Sequence[int], interpolation: Interpolation
) -> Shaped[Tensor, "*b c h2 w2"]:
    """Resize bytes or floats as Pillow does: with antialiasing where images shrink.

    Raises:
        ValueError: if images are neither bytes nor floats.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"expected images of dtype torch.uint8 or floats, got {images.dtype}")
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    # half precision has no kernel for it on the CPU
    images = images if images.dtype in (torch.uint8, torch.float64) else images.float()
    batch = images if images.ndim == 4 else images[None]
    nearest = interpolation == "nearest"
    # PyTorch's "nearest" takes other pixels than Pillow's
    mode = "nearest-exact" if nearest else interpolation
    resized = F.interpolate(batch, tuple(size), mode=mode, antialias=not nearest)
    return resized if images.ndim == 4 else resized[0]


class ToTensor(nn.Module):
    """From a Pillow image of the right channels to a tensor of bytes; tensors pass.

    Args:
        channels: channels of the model's input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, image: Any) -> Shaped[Tensor, "*b c h w"]:
        """Return the image as a tensor.

        Raises:
            ValueError: if it is no image, or has other channels or values.
        """
        if isinstance(image, Tensor):
            if is_tracing(image):
                return image
            if image.ndim < 3 or image.shape[-3] != self.channels or 0 in image.shape:
                raise ValueError(f"expected {self.channels} channels, got shape {tuple(image.shape)}")
            if image.is_floating_point() and not (image.min() >= 0 and image.max() <= 1):
                raise ValueError(
                    f"expected bytes, or floats from 0 to 1, got {image.dtype} from {image.min():g} to "
                    f"{image.max():g}"
                )
            return image
        if not hasattr(image, "mode"):
            raise ValueError(f"expected a Pillow image or a tensor (c, h, w), got {type(image).__name__}")
        mode = MODES.get(self.channels)
        if mode is None or image.mode != mode:
            cure = f"image.convert({mode!r})"
            if mode is None or image.mode.startswith(("I", "F")):
                cure = "a tensor of bytes, or of floats from 0 to 1"
            elif image.mode in TRANSPARENT or "transparency" in image.info:
                cure = (
                    "Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))."
                    f"convert({mode!r}), as files are read; image.convert alone drops transparency"
                )
            raise ValueError(
                f"expected an image of {self.channels} channels, got Pillow mode {image.mode!r}: pass {cure}"
            )
        pixels = torch.from_numpy(np.array(image))
        # read after the pixels: Pillow turns TIFF files upright itself, and then forgets this
        orientation = image.getexif().get(ORIENTATION, 1)
        if orientation != 1:
            warnings.warn(
                f"the image is not upright (EXIF orientation {orientation}): "
                "pass PIL.ImageOps.exif_transpose(image), as files are read",
                stacklevel=2,
            )
        return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


class ResizeAndCrop(nn.Module):
    """Resize until the image covers `image_size / crop_pct`, then crop the center.

    The sizes are rounded as in torchvision, timm and transformers. With `crop_mode="squash"` the image is
    resized to `image_size / crop_pct` whatever its aspect ratio; with "border" it is until it fits in there.

    Args:
        prep: the model's input.
    """

    def __init__(self, prep: Preprocessing) -> None:
        super().__init__()
        self.size = prep.image_size
        self.cover = tuple(int(side / prep.crop_pct) for side in prep.image_size)
        self.interpolation = prep.interpolation
        self.mode = prep.crop_mode
        self.mean = tuple(prep.mean)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of an image before it is cropped."""
        rows, columns = self.cover
        if self.mode == "squash":
            return rows, columns
        if self.mode == "border":
            ratio = max(height / rows, width / columns)
            return max(round(height / ratio), 1), max(round(width / ratio), 1)
        if rows == columns:
            # torchvision rounds the longer side down; for other shapes timm rounds to the nearest
            short = min(height, width)
            return int(rows * height / short), int(rows * width / short)
        ratio = min(height / rows, width / columns)
        return round(height / ratio), round(width / ratio)

    def forward(self, images: Shaped[Tensor, "*b c h w"]) -> Shaped[Tensor, "*b c h2 w2"]:
        """Return the images at the model's size."""
        images = resize(images, self.resized(*images.shape[-2:]), self.interpolation)
        if self.mode == "border":
            images = self.framed(images)
        (height, width), (rows, columns) = images.shape[-2:], self.size
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        return images[..., top : top + rows, left : left + columns]

    def framed(self, images: Shaped[Tensor, "*b c h w"]) -> Shaped[Tensor, "*b c h2 w2"]:
        """Return images with a border of the mean's colour up to the model's size at least."""
        (height, width), (rows, columns) = images.shape[-2:], self.size
        colour = torch.tensor(self.mean, device=images.device)
        if images.dtype == torch.uint8:
            colour = (255 * colour).round()
        canvas = colour.to(images.dtype).view(-1, 1, 1).expand(*images.shape[:-2], 1, 1)
        canvas = canvas.repeat(*[1] * (images.ndim - 2), max(height, rows), max(width, columns))
        top, left = max(rows - height, 0) // 2, max(columns - width, 0) // 2
        canvas[..., top : top + height, left : left + width] = images
        return canvas


class FitTokens(nn.Module):
    """Resize an image to whole patches, within a number of tokens (see `fit_tokens`).

    Args:
        prep: the model's input.
    """

    def __init__(self, prep: Preprocessing) -> None:
        super().__init__()
        self.prep = prep

    def forward(self, image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h2 w2"]:
        """Return the image at a size of its own."""
        prep = self.prep
        assert prep.max_tokens is not None, "images of one size are not fitted to tokens"
        height, width = image.shape[-2:]
        size = fit_tokens(
            (height, width),
            patch=prep.patch_size,
            largest=prep.image_size,
            max_tokens=prep.max_tokens,
        )
        return resize(image, size, prep.interpolation)


class Normalize(nn.Module):
    """Scale bytes to 0 to 1, subtract the mean and divide by the standard deviation; floats are not scaled.

    Args:
        prep: the model's input.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, prep: Preprocessing) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(tuple(getattr(prep, name)), dtype=torch.float32)
            self.register_buffer(name, values.expand(prep.channels).clone().view(-1, 1, 1), persistent=False)

    def forward(self, images: Shaped[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Return normalized images in single precision."""
        if images.dtype == torch.uint8:
            images = images.to(torch.float32) / 255
        return (images.to(torch.float32) - self.mean) / self.std

    def invert(self, images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Return normalized images as they were, values from 0 to 1, on the CPU and in single precision."""
        return (images.float().cpu() * self.std + self.mean).clamp(0, 1)


class ChannelsFirst(nn.Module):
    """Put the channels of a clip before its frames, as models take it."""

    def forward(self, clip: Float[Tensor, "t c h w"]) -> Float[Tensor, "c t h w"]:
        """Return the clip with its first two axes exchanged."""
        return clip.transpose(0, 1)
