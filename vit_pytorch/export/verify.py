"""Holding an exported file against its model: on the same images, in the file's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_pytorch.export.job import ExportError, Output, Precision, Runtime
from vit_pytorch.export.samples import Samples

HINTS = {
    "fp32": "the format's converter is at fault: try --format pt2 or onnx",
    "fp16": "try --precision bf16 or fp32",
    "bf16": "try --precision fp16 or fp32",
    "int8": "try other or more images by --calibrate and --calibration_images, --keep for the first and the "
    "last layers, or in ONNX --quantization dynamic",
    "merged": "try fewer by --merge_tokens",
}
# images for a file that runs elsewhere: of 224 x 224 about 60 MB
IMAGES_FOR_LATER = 100
# Largest loss of accuracy, and part of decisions that may flip where labels are unknown, beyond fp32.
MAX_LOSS = 0.002
# Largest root mean square difference, as a part of the standard deviation of the model's outputs. It
# decides where there are no decisions, and fp32 must keep it in addition.
MAX_RELATIVE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 0.25, "merged": 0.25}
# What a file may lose, by its precision, or because it merges tokens.
Loss = Precision | Literal["merged"]
Decide = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """What a file computes beside its model.

    Args:
        source: which images were compared.
        images: how many.
        largest_difference: between outputs.
        mean_difference: of all outputs.
        relative_difference: root mean square difference over the standard deviation of the model's outputs.
        decisions: one for each image, of several labels one for each label; None for features and values.
        flips: how many of them differ; None likewise.
        labelled: images whose class is known.
        model_accuracy: the model's accuracy on those; None if there are none.
        accuracy: the file's.
    """

    source: str
    images: int
    largest_difference: float
    mean_difference: float
    relative_difference: float
    decisions: int | None
    flips: int | None
    labelled: int
    model_accuracy: float | None
    accuracy: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        differences = f"largest difference {self.largest_difference:.1e}, mean {self.mean_difference:.1e}"
        text = f"{self.images} images ({self.source}): {differences}"
        if self.flips is not None:
            text += f", {self.flips} decisions flip"
        if self.accuracy is not None:
            text += f", accuracy {self.accuracy:.2%}, the model's {self.model_accuracy:.2%}"
        return text


def decision_of(output: Output, problem: Mapping[str, Any]) -> Decide | None:
    """Return what decides by outputs: the largest one of classes, thresholds of labels; None if nothing does.

    Args:
        output: what comes out.
        problem: task and thresholds, as a report has them; of classes perhaps nothing.
    """
    if output == "features" or problem.get("task") == "regression":
        return None
    if problem.get("task") == "multilabel":
        logits = torch.tensor(problem["thresholds"], dtype=torch.float64).logit()
        return lambda outputs: outputs >= logits
    return lambda outputs: outputs.argmax(1)


@torch.no_grad()
def compare(
    reference: Callable[[Tensor], Tensor],
    exported: Runtime,
    samples: Samples,
    *,
    finish: Callable[[Tensor], Tensor],
    decide: Decide | None,
    batch_size: int,
) -> Comparison:
    """Run a model and its exported file on images.

    Args:
        reference: the model, as it is deployed.
        exported: the file, loaded by its runtime.
        samples: the images.
        finish: prepares a batch of them for both.
        decide: from `decision_of`.
        batch_size: images at once, after the first, which comes alone.

    Raises:
        ExportError: if shapes differ or outputs are not finite.
    """
    outputs: list[Tensor] = []
    others: list[Tensor] = []
    labels: list[int | None] = []
    for images, known in samples.batches(batch_size):
        batch = finish(images)
        output, other = reference(batch), exported(batch)
        if output.shape != other.shape or not bool(other.isfinite().all()):
            raise ExportError(
                f"the file's outputs have shape {tuple(other.shape)}, the model's {tuple(output.shape)}"
                if output.shape != other.shape
                else "the file's outputs are not finite"
            )
        outputs.append(output.double())
        others.append(other.double())
        labels += known
    ours, theirs = torch.cat(outputs), torch.cat(others)
    difference = (ours - theirs).abs()
    # -1 is no decision
    truth = torch.tensor([-1 if label is None else label for label in labels])
    decisions = [] if decide is None else [decide(ours), decide(theirs)]
    # an image of several labels has no class to compare with
    count = int((truth >= 0).sum()) if decisions and decisions[0].ndim == 1 else 0
    shares = [float((decided == truth).sum() / count) for decided in decisions] if count else [None, None]
    return Comparison(
        source=samples.source,
        images=len(ours),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        relative_difference=float(difference.square().mean().sqrt() / ours.std()),
        decisions=decisions[0].numel() if decisions else None,
        flips=int((decisions[0] != decisions[1]).sum()) if decisions else None,
        labelled=count,
        model_accuracy=shares[0],
        accuracy=shares[1],
    )


@torch.no_grad()
def write_check(
    file: Path,
    reference: Callable[[Tensor], Tensor],
    samples: Samples,
    finish: Callable[[Tensor], Tensor],
) -> None:
    """Write images, evenly spread over samples, and what a model computes of them, for `export.check`.

    Args:
        file: FILE.check.npz.
        reference: the model, as it is deployed.
        samples: the images.
        finish: prepares a batch of them.
    """
    count = min(IMAGES_FOR_LATER, len(samples))
    chosen = [i * len(samples) // count for i in range(count)]
    images = torch.cat([finish(samples.read(i)[None]) for i in chosen])
    outputs = torch.cat([reference(part) for part in images.split(16)])
    # -1 is an unknown class
    labels = np.array([-1 if label is None else label for label in (samples.labels[i] for i in chosen)])
    np.savez(file, images=images.numpy(), outputs=outputs.numpy(), labels=labels, source=samples.source)


@torch.no_grad()
def check_sizes(
    reference: Callable[[Tensor], Tensor],
    exported: Runtime,
    images: Tensor,
    step: tuple[int, ...],
    precision: Precision,
) -> list[list[int]]:
    """Check a file on smaller, larger and non-square images, and return their sizes.

    Args:
        reference: the model, as it is deployed.
        exported: the file, loaded by its runtime.
        images: as both take them, of the model's own size.
        step: what divides height and width.
        precision: number format of the file.

    Raises:
        ExportError: if a size fails, or outputs differ by more than `MAX_RELATIVE`.
    """
    rows, columns = (extent // s for extent, s in zip(images.shape[2:], step, strict=True))
    grids = [(rows + 1, columns + 3), (max(rows // 2, 1), columns + 2), (rows + 2, max(columns - 1, 1))]
    sizes = [[grid[0] * step[0], grid[1] * step[1]] for grid in grids]
    for size in sizes:
        batch = F.interpolate(images.float(), size, mode="bilinear", antialias=True).to(images.dtype)
        try:
            ours, theirs = reference(batch), exported(batch)
        except Exception as error:  # runtimes raise what they like
            raise ExportError(f"the file fails on images of {size[0]} x {size[1]}: {error}") from error
        apart = float((ours - theirs).square().mean().sqrt() / ours.std())
        # not (… <= limit), since a comparison with NaN is false
        if not apart <= MAX_RELATIVE[precision]:
            raise ExportError(
                f"on images of {size[0]} x {size[1]} outputs differ by {apart:.1e} of their standard "
                f"deviation, at most {MAX_RELATIVE[precision]:.0e} in {precision}"
            )
    return sizes


def check(found: Comparison, loss: Loss, *, noise: bool) -> None:
    """Check that a file decides as its model does.

    In fp32 no decision may flip. In other precisions, and where tokens are merged, accuracy may fall by 0.2
    points; where labels are not known, so many decisions may flip. Features, values, and noise beyond fp32,
    must keep to `MAX_RELATIVE`.

    Raises:
        ExportError: if it does not, with the figures.
    """
    wrong = ""
    if found.flips is None or noise or loss == "fp32":
        limit = MAX_RELATIVE[loss]
        # not (… <= limit), since a comparison with NaN is false
        if not found.relative_difference <= limit:
            wrong = (
                f"outputs differ by {found.relative_difference:.1e} of their standard deviation, "
                f"at most {limit:.0e} {'with merged tokens' if loss == 'merged' else f'in {loss}'}"
            )
    if found.flips is not None and loss == "fp32" and found.flips:
        wrong = f"{found.flips} of {found.decisions} decisions flip, none may in fp32"
    elif loss != "fp32" and found.flips is not None and not noise:
        if found.accuracy is not None and found.model_accuracy is not None:
            if found.model_accuracy - found.accuracy > MAX_LOSS:
                wrong = (
                    f"accuracy on {found.labelled} images falls from {found.model_accuracy:.2%} to "
                    f"{found.accuracy:.2%}, by more than {MAX_LOSS:.1%}"
                )
        elif found.flips > MAX_LOSS * (found.decisions or 0):
            cure = "; images of classes (in folders called as these are) would show whether accuracy falls"
            wrong = f"{found.flips} of {found.decisions} decisions flip, more than {MAX_LOSS:.1%}" + cure * (
                found.decisions == found.images
            )
    if wrong:
        raise ExportError(f"{wrong} ({found})")
