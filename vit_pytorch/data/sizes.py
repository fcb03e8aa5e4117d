"""How large the images of a dataset are, by a few of them."""

from itertools import islice
from pathlib import Path
from statistics import median_low

import torch

from vit_pytorch.data.datasets import FileImages, ImageDataset
from vit_pytorch.data.folders import split_folders
from vit_pytorch.data.listing import Listing
from vit_pytorch.data.shards import first_images
from vit_pytorch.data.sources import CSV_OPTIONS, split_options, split_patterns
from vit_pytorch.data.tables import read_table

LOOKED_AT = 5
# height and width up to which images count as small pictures
SMALL = 64


def holds_photographs(source: str) -> bool:
    """Return whether the images of a dataset are larger than small pictures; False where that is not known.

    Args:
        source: The data, as `open_data` takes it; of folders, tables and shards a few images are looked at.
    """
    images = _first_images(source)
    size = typical_size(images) if images is not None else None
    return size is not None and min(size) > SMALL


def typical_size(images: ImageDataset) -> tuple[int, int] | None:
    """Return the median height and the median width of a few images; None where none of them can be read."""
    sizes: list[torch.Size] = []
    for index in range(0, len(images), max(1, len(images) // LOOKED_AT))[:LOOKED_AT]:
        try:
            sizes.append(images[index][0].shape)
        except (Exception, SystemExit):
            # whatever it is, training stops at it by name or skips it, as it is told
            continue
    return (median_low(s[-2] for s in sizes), median_low(s[-1] for s in sizes)) if sizes else None


def _first_images(source: str) -> ImageDataset | None:
    """Open images of a table, or a few of a folder or of shards; None for what is none of these."""
    kind, separator, rest = source.partition(":")
    if kind == "wds" and separator:
        return first_images(split_patterns(rest)[0], LOOKED_AT)
    if kind == "csv" and separator:
        name, options = split_options(rest, kind, CSV_OPTIONS)
        parts, _ = read_table(
            Path(name).expanduser(), task=None, needs_labels=False, needs_train=True, **options
        )
        return parts["train"]
    folder = Path(rest if kind == "folder" and separator else source).expanduser()
    if not folder.is_dir():
        return None
    listing = Listing(FileImages.extensions, FileImages.is_known)
    place = split_folders(folder).get("train", folder)
    return FileImages(list(islice(listing.files_below(place), LOOKED_AT)))
