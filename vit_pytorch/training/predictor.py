"""Using a trained model on images: in Python as one object, which the `vit` command uses, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from vit_pytorch.base import VisionModel
from vit_pytorch.create import open_model
from vit_pytorch.data import (
    BadImageError,
    Preprocessing,
    decode_image,
    eval_transform,
    find_clips,
    find_images,
)
from vit_pytorch.data.arrays import scale, to_tensor
from vit_pytorch.data.datasets import convert_channels
from vit_pytorch.data.decode import from_pillow
from vit_pytorch.data.loader import QuietDataLoader, check_workers
from vit_pytorch.data.prediction import read_parts
from vit_pytorch.data.transforms import collate
from vit_pytorch.layers.arguments import check_arguments, check_integer
from vit_pytorch.preprocessing import Normalize, ResizeAndCrop
from vit_pytorch.training.evaluation import compute_outputs
from vit_pytorch.training.problems import Answer
from vit_pytorch.training.saved import SavedClassifier, read_classifier

# how much larger than the model's input images are before ten crops are taken
CROP = 0.875
OnBad = Callable[[BadImageError], None]
Scores = Float[Tensor, "n k"]


class Predictor:
    """A trained model that answers for images, as `vit predict` does.

    `Predictor("runs/photos-0001")("x.jpg")["top"]` is such as `[{"class": "cat", "probability": 0.93}, ...]`.

    Args:
        model: folder of a run or of a model, name of a model (with its published weights), or a classifier
            that is read already
        top: number of classes or labels in an answer, the most probable first; default 3
        batch_size: images that the model sees at once
        workers: processes that read images; 0 reads them in this one, as videos and volumes are
        tta: mean of the probabilities over ten views of each image: the centre and the four corners of the
            image 1 / 0.875 as large, and their mirror images; of classes and labels
        calibrated: divide logits by the temperature that the run chose on its validation images
        device: where the model is used; default a GPU where there is one

    Raises:
        FileNotFoundError: if there is no model
        ValueError: if the model has no classifier, or an option does not fit it
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | SavedClassifier,
        *,
        top: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        tta: bool = False,
        calibrated: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        check_integer("batch_size", batch_size)
        check_workers(workers)
        check_arguments(Predictor.__init__, tta=tta, calibrated=calibrated, device=device)
        self.saved = model if isinstance(model, SavedClassifier) else open_classifier(model)
        self.problem = self.saved.problem.calibrated() if calibrated else self.saved.problem
        self.preprocessing = self.saved.preprocessing
        self.top = self.problem.check_top(top)
        self.batch_size, self.workers = batch_size, workers
        prep = self.preprocessing
        if workers and prep.frames is not None:
            raise ValueError("workers read images; videos and volumes are read one after the other, without")
        if tta and (
            prep.frames is not None or prep.max_tokens is not None or self.problem.task == "regression"
        ):
            raise ValueError("tta is for classes and labels of images of one size, which this model has not")
        self.tta = tta
        self.transform: nn.Module = TenViews(prep) if tta else eval_transform(prep)
        self.model = put_on_device(self.saved.model, device)

    def __call__(self, images: Any) -> Answer | list[Answer]:
        """Answer for an image, or for several.

        Args:
            images: path of a file; a Pillow image; an array (h, w) or (h, w, c) of bytes or of 16 bits
                without sign, or of any numbers if the model has a window; a tensor (c, h, w) of bytes or of
                floats from 0 to 1, black to white. Or a list of such, a tensor (b, c, h, w), or a folder or
                pattern of files, which give a list of answers. Addresses (http:) are not fetched. A window
                acts as on the values of files.

        Returns:
            What `vit predict --json` prints of an image: `image` where it has a path; of classes `top`, of
            several labels `labels` and `top`, of values `values`.

        Raises:
            BadImageError: if an image cannot be decoded
            FileNotFoundError: if a path names nothing, or is an address
            ValueError: if something is no image
        """
        if isinstance(images, str | os.PathLike):
            if Path(images).is_file():
                return next(self.stream([images]))
            return list(self.stream([images]))
        if isinstance(images, Tensor) and images.ndim == 4:
            return self._answers(list(images))
        if not isinstance(images, Sequence) or isinstance(images, bytes):
            return self._answers([images])[0]
        if images and all(isinstance(image, str | os.PathLike) for image in images):
            return list(self.stream(images))
        if any(isinstance(image, str | os.PathLike) for image in images):
            raise ValueError("a list holds paths or images, not both")
        return self._answers(images)

    def stream(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        on_bad: OnBad | None = None,
        step: int | None = None,
    ) -> Iterator[Answer]:
        """Yield an answer for each file that paths, folders and patterns name, in order, batch by batch.

        Args:
            paths: images; videos or volumes for a model of these; one path, or several
            on_bad: called with the error of a file that cannot be decoded; raised by default
            step: frames of a video from the start of one clip to that of the next; a clip's length by default

        Yields:
            Answers as `__call__` returns them; for a video or volume under `video` or `volume`, and for a
            video those of its clips.
        """
        if step is not None:
            check_integer("step", step)
            if self.preprocessing.frames is None or self.preprocessing.media == "volume":
                raise ValueError("step is for videos, which this model does not take")
        several = [paths] if isinstance(paths, str | os.PathLike) else paths
        names = [os.fspath(path) for path in several]
        if self.preprocessing.frames is not None:
            yield from self._stream_clips(names, on_bad or _stop, step)
            return
        batches = prepared_batches(
            names,
            self.preprocessing,
            self.transform,
            batch_size=self.batch_size,
            workers=self.workers,
            on_bad=on_bad or _stop,
        )
        for found, images in batches:
            for name, scores in zip(found, self.scores(images), strict=True):
                yield {"image": name, **self.problem.answer(scores, self.top)}

    @torch.no_grad()
    def scores(self, images: Sequence[Tensor]) -> Scores:
        """Return probabilities, or values, of prepared images, on the CPU."""
        if self.tta:
            views = torch.stack(list(images))
            outputs = compute_outputs(self.model, views.flatten(0, 1))
            return self.problem.scores(outputs).unflatten(0, views.shape[:2]).mean(dim=1)
        return self.problem.scores(compute_outputs(self.model, collate(images, self.preprocessing)))

    def prepare(self, image: Any) -> Tensor:
        """Return an image in memory as the model takes it; see `__call__`."""
        return self.transform(as_pixels(image, self.preprocessing))

    def _answers(self, images: Sequence[Any]) -> list[Answer]:
        if self.preprocessing.frames is not None:
            raise ValueError("clips and volumes are read from their files: pass paths")
        rest, answers = iter(images), []
        while batch := list(islice(rest, self.batch_size)):
            scores = self.scores([self.prepare(image) for image in batch])
            answers += [self.problem.answer(row, self.top) for row in scores]
        return answers

    def _stream_clips(self, paths: Sequence[str], on_bad: OnBad, step: int | None) -> Iterator[Answer]:
        """Answer for each clip of a video, and for the video by the mean over its clips; or for a volume."""
        for path in find_clips(paths):
            try:
                spans, scores = self._score_parts(path, step)
            except BadImageError as error:
                on_bad(error)
                continue
            whole = self.problem.answer(scores.mean(dim=0), self.top)
            if not spans:
                yield {"volume": str(path), **whole}
                continue
            clips = [
                {"start": start, "end": end, **self.problem.answer(row, self.top)}
                for (start, end), row in zip(spans, scores, strict=True)
            ]
            yield {"video": str(path), **whole, "clips": clips}

    def _score_parts(self, path: Path, step: int | None) -> tuple[list[tuple[float, float]], Scores]:
        """Return start and end of the clips of a video, none for a volume; and the scores of each."""
        parts = read_parts(path, self.preprocessing, step=step)
        spans: list[tuple[float, float]] = []
        scores = []
        while batch := list(islice(parts, self.batch_size)):
            scores.append(self.scores([self.transform(part.clip) for part in batch]))
            spans += [part.seconds for part in batch if part.seconds is not None]
        return spans, torch.cat(scores)


class _PreparedFiles(Dataset[tuple[str, Tensor | BadImageError]]):
    """Images in files, prepared for a model; an item is the path and the image, or what is wrong with it."""

    def __init__(self, paths: Sequence[Path], prep: Preprocessing, transform: nn.Module) -> None:
        self.paths, self.prep, self.transform = paths, prep, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor | BadImageError]:
        path = self.paths[index]
        try:
            image = decode_image(path, channels=self.prep.channels, window=self.prep.window)
        except BadImageError as error:
            return str(path), error
        return str(path), self.transform(image)


def prepared_batches(
    paths: Iterable[str],
    prep: Preprocessing,
    transform: nn.Module,
    *,
    batch_size: int,
    workers: int,
    on_bad: OnBad,
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Yield names and prepared images of the files that paths, folders and patterns name, batch by batch.

    Args:
        paths: files, folders and patterns
        prep: the model's input
        transform: from an image to the model's input
        batch_size: images of a batch
        workers: processes that read files
        on_bad: called with the error of a file that cannot be decoded, which is then left out
    """
    loader = QuietDataLoader(
        _PreparedFiles(find_images(paths), prep, transform),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        # its own generator: reading files must not move the global one
        generator=torch.Generator(),
    )
    for batch in loader:
        whole = []
        for name, prepared in batch:
            if isinstance(prepared, BadImageError):
                on_bad(prepared)
            else:
                whole.append((name, prepared))
        if whole:
            yield [name for name, _ in whole], [image for _, image in whole]


def open_classifier(model: str | os.PathLike[str]) -> SavedClassifier:
    """Read a classifier: a run, a model folder, or a named model with its published weights."""
    if not isinstance(model, str | os.PathLike):
        raise ValueError(
            "model must be the folder of a run or of a model, the name of one, or a SavedClassifier, "
            f"got {type(model).__name__}"
        )
    if not os.fspath(model):
        raise ValueError("the name of the run must not be empty")
    return read_classifier(open_model(model), model)


def put_on_device(model: VisionModel, device: str | torch.device | None = None) -> VisionModel:
    """Put a model where it is used, by default on a GPU where there is one, in eval mode."""
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


class TenViews(nn.Module):
    """From an image to ten views of it for a model, as `Predictor` describes them.

    Args:
        prep: the model's input
    """

    def __init__(self, prep: Preprocessing) -> None:
        super().__init__()
        height, width = prep.image_size
        self.resize = ResizeAndCrop(replace(prep, image_size=(round(height / CROP), round(width / CROP))))
        self.views = v2.TenCrop(prep.image_size)
        self.normalize = Normalize(prep)

    def forward(self, image: Shaped[Tensor, "c h w"]) -> Float[Tensor, "10 c h2 w2"]:
        """Return the views."""
        return self.normalize(torch.stack(self.views(self.resize(image))))


def as_pixels(image: Any, prep: Preprocessing) -> Shaped[Tensor, "c h w"]:
    """Return an image in memory as a tensor with the channels that a model takes.

    Raises:
        BadImageError: if it is a Pillow image of more than 8 bits, or of other channels
        ValueError: if it is no image, or of another shape or range, or has 8 bits where the model's window
            is of more
    """
    if isinstance(image, Image.Image):
        return scale(from_pillow(image, prep.channels), prep.window)
    if isinstance(image, np.ndarray):
        if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
            raise ValueError("an array must have no mask, since a model has none: fill it (array.filled)")
        ranged = image.dtype.newbyteorder("=") in (np.uint8, np.uint16) or prep.window is not None
        strange = image.ndim not in (2, 3) or 0 in image.shape
        if not ranged or strange or (image.ndim == 3 and image.shape[2] not in (1, 3, prep.channels)):
            raise ValueError(
                "an array holds bytes or 16 bits without sign, (h, w) or (h, w, c), of which c is "
                f"{prep.channels} here (or 1 or 3, for grey and RGB), "
                f"got {image.dtype} of shape {image.shape}"
            )
        values = scale(to_tensor(image), prep.window)
        image = values[None] if image.ndim == 2 else values.permute(2, 0, 1)
    elif isinstance(image, Tensor) and image.dtype == torch.uint8:
        image = scale(image, prep.window)
    if not isinstance(image, Tensor):
        raise ValueError(
            f"an image is a path, a Pillow image, an array or a tensor, got {type(image).__name__}"
        )
    whole = image.is_floating_point() and image.numel() and not (image.min() >= 0 and image.max() <= 1)
    no_pixels = image.dtype != torch.uint8 and not image.is_floating_point()
    if image.ndim != 3 or no_pixels or whole or 0 in image.shape:
        raise ValueError(
            "a tensor holds bytes, or floats from 0 to 1, of shape (c, h, w), got "
            f"{image.dtype} of shape {tuple(image.shape)}"
            + (f" from {image.min():g} to {image.max():g}" if whole else "")
        )
    return convert_channels(image, prep.channels)


def _stop(error: BadImageError) -> None:
    raise error
