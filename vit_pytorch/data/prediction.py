"""Images, videos and volumes for prediction: files, folders and patterns as one stream."""

import glob
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Shaped, UInt8
from torch import Tensor

from vit_pytorch.data import video, volumes
from vit_pytorch.data.clips import sliding_clips
from vit_pytorch.data.datasets import convert_channels
from vit_pytorch.data.decode import EXTENSIONS, BadImageError, decode_image, is_image
from vit_pytorch.data.listing import Listing, describe_left_out, extension, likely_path
from vit_pytorch.data.loader import OnBad
from vit_pytorch.preprocessing import Preprocessing


class Part(NamedTuple):
    """What a model looks at at once: a clip of a video, or a volume.

    Args:
        seconds: Start and end of the part of the video that the clip stands for; None for a volume.
        clip: Frames or slices, not yet prepared for the model.
    """

    seconds: tuple[float, float] | None
    clip: Shaped[Tensor, "t c h w"]


def find_images(
    paths: str | Path | Iterable[str | Path], extensions: Collection[str] = EXTENSIONS, kind: str = "image"
) -> list[Path]:
    """Return the files that paths, folders (searched at any depth) and patterns name, each once, in order.

    A file named outright is taken whatever its extension; patterns may use ``**``. What is left out of a
    folder is named in a warning.

    Args:
        paths: Files, folders and patterns.
        extensions: How names of files in folders end.
        kind: What messages call the files.

    Raises:
        FileNotFoundError: A path or pattern names nothing.
        ValueError: A folder holds no images.
    """
    found: dict[Path, None] = {}
    left_out: dict[str, list[Path]] = {}
    for path in map(str, [paths] if isinstance(paths, str | Path) else paths):
        # an empty name, as of a shell's unset variable, is not the folder at hand
        names = [path] if path and Path(path).exists() else sorted(glob.glob(path, recursive=True))
        if not names:
            brackets = "; in a pattern [ begins a choice of letters, and [[] is the bracket itself" * (
                "[" in path
            )
            raise FileNotFoundError(
                f"no such {kind}, folder or pattern: {path or repr(path)}{likely_path(path) or brackets}"
            )
        for name in map(Path, names):
            if not name.is_dir():
                # also a link to nothing, which is a file that cannot be read
                found[name] = None
                continue
            listing = Listing(extensions, is_image if extensions is EXTENSIONS else None)
            for above in (name, *name.resolve().parents):
                listing.claim(above)
            members = list(listing.files_below(name))
            for reason, others in listing.left_out.items():
                left_out.setdefault(reason, []).extend(others)
            if not members and len(names) == 1:
                raise ValueError(f"{name} holds no {kind} files")
            found.update(dict.fromkeys(members))
    if left_out:
        warnings.warn(f"left out: {describe_left_out(left_out)}", stacklevel=2)
    return list(found)


def load_images(
    paths: str | Path | Iterable[str | Path],
    *,
    channels: int = 3,
    window: tuple[float, float] | None = None,
    on_bad: OnBad | Callable[[BadImageError], None] = "stop",
) -> Iterator[tuple[Path, UInt8[Tensor, "c h w"]]]:
    """Yield each file that the paths name, with its image.

    Prepare an image for a model by ``eval_transform(data.preprocessing)``.

    Args:
        paths: Files, folders and patterns, as for :func:`find_images`.
        channels: 1 for grey, 3 for RGB, or as many as the files have.
        window: Values of the files that become 0 and 255, as the model's preprocessing has it.
        on_bad: Whether a file that cannot be decoded stops the iteration, or is left out with a warning; or
            what is called with the error, after which the iteration goes on.

    Yields:
        Path and image, values 0 to 255.

    Raises:
        BadImageError: A file cannot be decoded, and ``on_bad`` is ``stop``.
        FileNotFoundError: A path or pattern names nothing.
        ValueError: A folder holds no images.
    """
    for path in find_images(paths):
        try:
            image = decode_image(path, channels=channels, window=window)
        except BadImageError as error:
            if on_bad == "stop":
                raise
            if on_bad == "skip":
                warnings.warn(f"skipped {error}", stacklevel=2)
            else:
                on_bad(error)
            continue
        yield path, image


def find_clips(paths: Iterable[str | Path]) -> list[Path]:
    """Return the videos and volumes that paths, folders and patterns name, as :func:`find_images` does."""
    return find_images(paths, video.EXTENSIONS | volumes.EXTENSIONS, "video or volume")


def read_parts(path: Path, prep: Preprocessing, *, step: int | None = None) -> Iterator[Part]:
    """Yield the clips of a video one after the other, or the volume that a NIfTI file holds.

    Args:
        path: The file; a volume where its name says so.
        prep: The model's input.
        step: Frames from the start of one clip to that of the next; the clip's own length if left out.

    Raises:
        BadImageError: The file cannot be decoded, or the model was trained on the other kind.
    """
    assert prep.frames is not None, "models of videos and volumes take frames"
    kind = "volume" if extension(path.name) in volumes.EXTENSIONS else "video"
    if prep.media not in (None, kind):
        raise BadImageError(str(path), f"the model was trained on {prep.media}s", kind)
    if kind == "volume":
        volume = volumes.decode_volume(path, prep.volume, (prep.frames, *prep.image_size))
        yield Part(None, convert_channels(volume, prep.channels))
        return
    with video.VideoReader(path) as reader:
        for start, end, frames in sliding_clips(reader.count, prep.frames, prep.video, step):
            seconds = reader.seconds(start), reader.seconds(end)
            yield Part(seconds, convert_channels(reader.read(frames), prep.channels))
