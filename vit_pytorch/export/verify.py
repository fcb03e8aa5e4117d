"""Holding an exported file against its model: on the same images, in the file's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_pytorch.export.job import ExportError, Output, Precision, Runtime, runtime_errors
from vit_pytorch.export.samples import Label, Samples

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
# the class of an image of which none is known, in a file for later
UNKNOWN = -1
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
        labelled: images whose class is known, or which of the labels they have.
        model_accuracy: right ones among the model's decisions on those; None if there are none.
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
    labels: list[Label] = []
    for images, known in samples.batches(batch_size):
        batch = finish(images)
        output = reference(batch)
        with runtime_errors(f"on a batch of {len(batch)}"):
            other = exported(batch)
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
    decisions = [] if decide is None else [decide(ours), decide(theirs)]
    # of several labels the truth is a row, of classes a number
    counted = [isinstance(label, tuple if decisions and decisions[0].ndim == 2 else int) for label in labels]
    count = sum(counted) if decisions else 0
    shares: list[float | None] = [None, None]
    if count:
        truth = torch.tensor([label for label, is_counted in zip(labels, counted, strict=True) if is_counted])
        shares = [float((decided[counted] == truth).double().mean()) for decided in decisions]
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
    labels = [samples.labels[i] for i in chosen]
    row = next((label for label in labels if isinstance(label, tuple)), None)
    unknown = UNKNOWN if row is None else (UNKNOWN,) * len(row)
    truth = np.array([unknown if label is None else label for label in labels])
    np.savez(file, images=images.numpy(), outputs=outputs.numpy(), labels=truth, source=samples.source)


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
        ours = reference(batch)
        with runtime_errors(f"on images of {size[0]} x {size[1]}"):
            theirs = exported(batch)
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

    In fp32 no decision may flip. In other precisions, and where tokens are merged, the share of right
    decisions may fall by 0.2 points; where no label is known, so many decisions may flip. Below 500 decisions
    none may be lost, since one is more than that. Features, values, and noise beyond fp32, must keep to
    `MAX_RELATIVE`.

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
    elif loss != "fp32" and found.flips is not None and found.decisions is not None and not noise:
        if found.accuracy is not None and found.model_accuracy is not None:
            if found.model_accuracy - found.accuracy > MAX_LOSS:
                wrong = (
                    f"accuracy on {found.labelled} images falls from {found.model_accuracy:.2%} to "
                    f"{found.accuracy:.2%}, by more than {MAX_LOSS:.1%}"
                )
        elif found.flips > MAX_LOSS * found.decisions:
            wrong = (
                f"{found.flips} of {found.decisions} decisions flip, more than {MAX_LOSS:.1%}; images whose "
                "classes or labels are known would show whether accuracy falls"
            )
        each = found.decisions // found.images
        needed = ceil(1 / MAX_LOSS / each)
        if wrong and (found.labelled or found.images) < needed:
            wrong += f"; a single decision is more than that here: verify on {needed} images or more"
    if wrong:
        raise ExportError(f"{wrong} ({found})")
