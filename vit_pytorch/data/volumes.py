"""Reading NIfTI volumes: their orientation, intensity and size made the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_pytorch.data.decode import BadImageError, open_regular
from vit_pytorch.extras import install_command
from vit_pytorch.preprocessing import VolumeConfig

EXTENSIONS = frozenset({".nii", ".nii.gz"})
MAX_VOXELS = 2**29
# mm; from cells under a microscope to whole bodies, beyond which a header is wrong
SMALLEST, LARGEST = 1e-5, 1e3
# Axes as they are shown: a slice has the patient's front at its top and the right side on its left.
ORIENTATION = "LPS"


def decode_volume(
    path: Path, config: VolumeConfig, size: tuple[int, int, int] | None = None
) -> Float[Tensor, "depth 1 h w"]:
    """Read a volume as a stack of slices.

    The slices are axial, from the feet to the head, in the orientation in which radiologists look at them,
    whatever the order of axes in the file (by its affine). Voxels that are not finite count as the darkest.
    Without ``spacing`` the pixels of a slice are made square, and its height and width stay its own.

    Args:
        path: The file.
        config: Intensity and size.
        size: Slices, height and width that the model takes; the volume's own if left out.

    Returns:
        Values 0 to 1; the first axis, with ``spacing`` all of them, in the size asked for.

    Raises:
        BadImageError: The file is no NIfTI file, is truncated, holds several volumes that are refused, values
            that are not numbers, one value only, or more than ``MAX_VOXELS``.
        OSError: The file cannot be read at all.
        ImportError: nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"volumes need nibabel: {install_command('volumes')}") from error
    with open_regular(path, "volume"):
        pass
    try:
        image = nibabel.load(path)
        voxels, spacing = _voxels(image, config, str(path))
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # readers raise many types on broken bytes, and nibabel has no list of them
        raise BadImageError(str(path), f"{type(error).__name__}: {error}", "volume") from error
    volume = torch.from_numpy(_scaled(voxels, config, str(path)))
    if config.spacing is None:
        pixel = min(spacing[1:])
        _, height, width = volume.shape
        square = max(1, round(height * spacing[1] / pixel)), max(1, round(width * spacing[2] / pixel))
        _check_size((len(volume), *square), spacing, str(path))
        return _resize(volume, (len(volume) if size is None else size[0], *square)).unsqueeze(1)
    scaled = [
        max(1, round(n * old / new))
        for n, old, new in zip(volume.shape, spacing, config.spacing, strict=True)
    ]
    _check_size(scaled, spacing, str(path))
    volume = _resize(volume, (scaled[0], scaled[1], scaled[2]))
    return (volume if size is None else _cut(volume, size)).unsqueeze(1)


def _check_size(size: Sequence[int], spacing: Sequence[float], name: str) -> None:
    """Check that a volume can be resampled: a wrong size of a voxel asks for any amount of memory."""
    if prod(size) > MAX_VOXELS:
        reason = (
            f"with voxels of {spacing} mm it is resampled to {tuple(size)}, more than {MAX_VOXELS} voxels"
        )
        raise BadImageError(name, reason, "volume")


def _voxels(
    image: Any, config: VolumeConfig, name: str
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], list[float]]:
    """Voxels (slice, down, across) of a file, and their size in mm."""
    import nibabel
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    if not isinstance(image, nibabel.Nifti1Pair):
        raise BadImageError(name, f"it is no NIfTI file but {type(image).__name__}", "volume")
    shape = image.shape
    if image.get_data_dtype().kind not in "buif":
        raise BadImageError(name, f"its voxels are no numbers but {image.get_data_dtype()}", "volume")
    if len(shape) < 3 or 0 in shape or prod(shape[:3]) > MAX_VOXELS:
        reason = f"it must have three axes and at most {MAX_VOXELS} voxels, got the shape {shape}"
        raise BadImageError(name, reason, "volume")
    if prod(shape[3:]) > 1 and config.series == "refuse":
        reason = f"it holds {prod(shape[3:])} volumes (shape {shape}); volume.series first takes the first"
        raise BadImageError(name, reason, "volume")
    place = (slice(None),) * 3 + (0,) * (len(shape) - 3)
    first = np.asarray(image.dataobj[place], dtype=np.float32)
    volume = nibabel.Nifti1Image(first, image.affine)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(ORIENTATION))
    volume = volume.as_reoriented(turn)
    spacing = [float(side) for side in reversed(volume.header.get_zooms()[:3])]
    if not all(SMALLEST <= side <= LARGEST for side in spacing):
        reason = f"its voxels must have a size between {SMALLEST:g} and {LARGEST:g} mm, got {spacing}"
        raise BadImageError(name, reason, "volume")
    return np.asarray(volume.dataobj).T, spacing


def _scaled(
    voxels: np.ndarray[Any, np.dtype[np.float32]], config: VolumeConfig, name: str
) -> np.ndarray[Any, np.dtype[np.float32]]:
    finite = np.isfinite(voxels)
    whole = bool(finite.all())
    known = voxels.ravel() if whole else voxels[finite]
    if not known.size or known.min() == known.max():
        value = f"the value {known[0]}" if known.size else "no finite value"
        raise BadImageError(name, f"all its voxels have {value}", "volume")
    low, high = map(float, config.window or np.percentile(known, config.percentiles))
    if low == high:
        # nearly all voxels are alike
        low, high = float(known.min()), float(known.max())
    if high - low > float(np.finfo(np.float32).max):
        reason = f"its values from {low:g} to {high:g} are further apart than single precision holds"
        raise BadImageError(name, reason, "volume")
    scaled = np.clip((voxels - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.ascontiguousarray(scaled if whole else np.where(finite, scaled, 0), dtype=np.float32)


def _resize(volume: Float[Tensor, "d h w"], size: tuple[int, int, int]) -> Float[Tensor, "d2 h2 w2"]:
    """Resample linearly, with a low-pass where it shrinks."""
    depth, height, width = size
    if volume.shape[1:] != (height, width):
        volume = F.interpolate(volume[None], (height, width), mode="bilinear", antialias=True)[0]
    if len(volume) != depth:
        flat = volume.reshape(1, 1, len(volume), height * width)
        volume = F.interpolate(flat, (depth, height * width), mode="bilinear", antialias=True)
        volume = volume.view(depth, height, width)
    return volume


def _cut(volume: Float[Tensor, "d h w"], size: tuple[int, int, int]) -> Float[Tensor, "d2 h2 w2"]:
    """Cut each axis to a size about its centre, or fill it up with zeros."""
    margins: list[int] = []
    for length, wanted in zip(reversed(volume.shape), reversed(size), strict=True):
        before = (wanted - length) // 2
        margins += [before, wanted - length - before]
    return F.pad(volume, margins)
