"""Images, videos and volumes for training, evaluation and prediction.

``open_data`` names every kind of data, ``ImageData`` feeds it to Lightning.
"""

from typing import TYPE_CHECKING, Any

from vit_pytorch.data.datasets import ArrayImages, FileImages, ImageDataset, Splits, TaskName
from vit_pytorch.data.decode import BadImageError, decode_image
from vit_pytorch.data.loader import ImageLoader
from vit_pytorch.data.media import VideoFiles, VolumeFiles
from vit_pytorch.data.prediction import find_clips, find_images, load_images, read_parts
from vit_pytorch.data.reader import LoadingError
from vit_pytorch.data.record import (
    ImageRecord,
    find_duplicates,
    find_equal_pixels,
    read_record,
    record_images,
)
from vit_pytorch.data.sources import open_data
from vit_pytorch.data.stream import StreamConfig
from vit_pytorch.data.transforms import Augmentation, train_transform
from vit_pytorch.data.windows import check_range, measure_window
from vit_pytorch.preprocessing import Preprocessing, VideoConfig, VolumeConfig, eval_transform

if TYPE_CHECKING:
    from vit_pytorch.data.module import ImageData

__all__ = [
    "ArrayImages",
    "Augmentation",
    "BadImageError",
    "FileImages",
    "ImageData",
    "ImageDataset",
    "ImageLoader",
    "ImageRecord",
    "LoadingError",
    "Preprocessing",
    "Splits",
    "StreamConfig",
    "TaskName",
    "VideoConfig",
    "VideoFiles",
    "VolumeConfig",
    "VolumeFiles",
    "check_range",
    "decode_image",
    "eval_transform",
    "find_clips",
    "find_duplicates",
    "find_equal_pixels",
    "find_images",
    "load_images",
    "measure_window",
    "open_data",
    "read_parts",
    "read_record",
    "record_images",
    "train_transform",
]


def __getattr__(name: str) -> Any:
    """Import `ImageData` when it is asked for: Lightning, which it needs, takes seconds to import."""
    if name != "ImageData":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vit_pytorch.data.module import ImageData

    return ImageData
