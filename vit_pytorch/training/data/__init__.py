"""Images for training, evaluation and prediction.

``open_data`` names every kind of data, ``ImageData`` feeds it to Lightning.
"""

from vit_pytorch.training.data.datasets import ArrayImages, FileImages, ImageDataset, Splits
from vit_pytorch.training.data.decode import BadImageError, decode_image
from vit_pytorch.training.data.loader import ImageLoader
from vit_pytorch.training.data.module import ImageData
from vit_pytorch.training.data.prediction import find_images, load_images
from vit_pytorch.training.data.sources import open_data
from vit_pytorch.training.data.transforms import Augmentation, Preprocessing, eval_transform, train_transform

__all__ = [
    "ArrayImages",
    "Augmentation",
    "BadImageError",
    "FileImages",
    "ImageData",
    "ImageDataset",
    "ImageLoader",
    "Preprocessing",
    "Splits",
    "decode_image",
    "eval_transform",
    "find_images",
    "load_images",
    "open_data",
    "train_transform",
]
