"""Images for prediction: files, folders and patterns as one stream."""

import glob
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from vit_pytorch.training.data.decode import BadImageError, decode_image
from vit_pytorch.training.data.folders import image_files
from vit_pytorch.training.data.loader import OnBad


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files that paths, folders (searched at any depth) and patterns name, each once, in order.

    A file named outright is taken whatever its extension; patterns may use ``**``.

    Raises:
        FileNotFoundError: A path or pattern names nothing.
        ValueError: A folder holds no images.
    """
    found: dict[Path, None] = {}
    for path in map(str, paths):
        names = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
        if not names:
            raise FileNotFoundError(f"no such image, folder or pattern: {path}")
        for name in map(Path, names):
            members = list(image_files(name)) if name.is_dir() else [name]
            if not members and len(names) == 1:
                raise ValueError(f"{name} holds no image files")
            found.update(dict.fromkeys(members))
    return list(found)


def load_images(
    paths: Iterable[str | Path], *, channels: int = 3, on_bad: OnBad = "stop"
) -> Iterator[tuple[Path, UInt8[Tensor, "c h w"]]]:
    """Yield each file that the paths name, with its image.

    Prepare an image for a model by ``eval_transform(data.preprocessing)``.

    Args:
        paths: Files, folders and patterns, as for :func:`find_images`.
        channels: 1 for grey, 3 for RGB.
        on_bad: Whether a file that cannot be decoded stops the iteration, or is left out with a warning.

    Yields:
        Path and image, values 0 to 255.

    Raises:
        BadImageError: A file cannot be decoded, and ``on_bad`` is ``stop``.
        FileNotFoundError: A path or pattern names nothing.
        ValueError: A folder holds no images.
    """
    for path in find_images(paths):
        try:
            image = decode_image(path, channels=channels)
        except BadImageError as error:
            if on_bad == "stop":
                raise
            warnings.warn(f"skipped {error}", stacklevel=2)
            continue
        yield path, image
