"""From a model to a verified file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.export.formats import FORMATS, find_format
from vit_pytorch.export.job import (
    DTYPES,
    OLDEST_OPSET,
    ExportError,
    ExportGraph,
    ExportJob,
    Format,
    Output,
    Precision,
    Quantization,
    RefusedError,
    Runtime,
    runtime_errors,
)
from vit_pytorch.export.layers import kept_layers, running_layers
from vit_pytorch.export.onnx import check_opset
from vit_pytorch.export.samples import Samples, normalized_batches
from vit_pytorch.export.verify import HINTS, Loss, check, check_sizes, compare, decision_of, write_check
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.preprocessing import MEDIA, ChannelsFirst, Normalize, Preprocessing
from vit_pytorch.storage import file_sha256, full_disk_named, making_folder
from vit_pytorch.tome import merging
from vit_pytorch.training.features import Features, check_features
from vit_pytorch.training.saved import TASK
from vit_pytorch.weights import read_settings


def export_model(
    model: VisionModel,
    file: str | os.PathLike[str],
    format: str,
    *,
    prep: Preprocessing,
    samples: Samples,
    name: str,
    classes: tuple[str, ...] = (),
    precision: Precision = "fp32",
    output: Output = "probabilities",
    temperature: float = 1.0,
    normalize_inside: bool = False,
    features: Features | None = None,
    dynamic_size: bool = False,
    merge_tokens: int = 0,
    opset: int = OLDEST_OPSET,
    quantization: Quantization = "static",
    calibration: Samples | None = None,
    keep: tuple[str, ...] = (),
    batch_size: int = 16,
) -> dict[str, Any]:
    """Write a model in a format of another runtime, and hold the file against the model on images.

    The file is loaded by its own runtime. Where it does not decide as the model does (`verify.check`),
    nothing is written. Otherwise the file is there, and beside it `FILE.json` with what this function
    returns; files of these names are replaced. A file that this machine cannot run is written unverified,
    with `FILE.check.npz`, by which `export.check` verifies it where it runs.

    Args:
        model: on the processor; put in eval mode.
        file: where to write, with the suffix of the format.
        format: a name in `FORMATS`.
        prep: how images are prepared for the model.
        samples: the images to verify with.
        name: what the report calls the model.
        classes: names of the classes; none for features.
        precision: number format of the computation.
        output: what comes out; "features" for a model without classes.
        temperature: divides logits before they become probabilities.
        normalize_inside: the graph takes bytes (0 to 255) of the model's size, and normalizes them itself.
        features: which, if the output is "features"; by default what the model itself returns.
        dynamic_size: the graph takes any height and width that the patch divides.
        merge_tokens: number of patches by which each block of a plain ViT has fewer (see `ToMeViT`); the file
            is held against the model that merges none.
        opset: ONNX operator set, of format "onnx".
        quantization: of int8: "static" needs `calibration`, "dynamic" finds ranges at run time.
        calibration: images for the ranges of activations.
        keep: layers that stay in floating point in int8, by names of modules.
        batch_size: images at once.

    Returns:
        The report: model, classes, preprocessing, licence, inputs, outputs, verification (None if this
        machine does not run the file), versions.

    Raises:
        ExportError: if the format or the precision is not offered or needs a package, or the file fails.
        ValueError: if the model's tokens cannot be merged.
    """
    kind = check_request(
        file,
        format,
        precision,
        normalize_inside=normalize_inside,
        merge_tokens=merge_tokens,
        opset=opset,
        quantization=quantization,
        keep=keep,
    )
    file = Path(file)
    step = check_model(
        model,
        format,
        prep=prep,
        output=output,
        features=features,
        normalize_inside=normalize_inside,
        dynamic_size=dynamic_size,
        merge_tokens=merge_tokens,
    )
    if precision == "int8" and samples.are_random:
        raise ExportError("int8 is verified on images: name some by --verify")
    if precision == "int8" and quantization == "static" and calibration is None:
        raise ExportError("static int8 needs images for the ranges of activations: name some by --calibrate")
    model.eval()
    inside = Normalize(prep) if normalize_inside else None
    reference = ExportGraph(model, output, inside, features, temperature)
    dtype = torch.float32 if kind.lowers else DTYPES[precision]
    lowered = merging(model, merge_tokens)
    lowered = lowered if dtype == reference.dtype else deepcopy(lowered).to(dtype)
    finish = _finish(prep, normalize_inside)
    example = finish(torch.stack([samples.read(0), samples.read(len(samples) - 1)]))
    description = describe(model, name, prep, classes, normalize_inside=normalize_inside)
    job = ExportJob(
        graph=ExportGraph(lowered, output, inside, features, temperature).eval(),
        example=example,
        precision=precision,
        metadata={key: json.dumps(value) for key, value in description.items()},
        opset=opset,
        quantization=quantization,
        calibration=[] if calibration is None else normalized_batches(calibration, finish, batch_size),
        keep=keep,
        size_step=step,
    )
    with (
        full_disk_named(file),
        making_folder(file.parent),
        TemporaryDirectory(dir=file.parent, prefix=".export-") as folder,
    ):
        written = Path(folder) / file.name
        if keep:
            kept_layers(job, running_layers(job))
        notes = {"max_batch": kind.max_batch, **kind.write(job, written)}
        if calibration is not None:
            notes["calibration"] = {"source": calibration.source, "images": len(calibration)}
        max_batch = notes.pop("max_batch")
        if kind.runs_here:
            loss: Loss = "merged" if merge_tokens else precision
            try:
                with runtime_errors("as it is loaded"):
                    run = kind.load(written, precision)
                found = compare(
                    reference,
                    run,
                    samples,
                    finish=finish,
                    decide=decision_of(output, model.default_cfg.get(TASK, {})),
                    batch_size=min(batch_size, max_batch),
                )
                check(found, loss, noise=samples.are_random)
                if job.size_step is not None:
                    notes["verified_sizes"] = check_sizes(reference, run, example, job.size_step, precision)
            except ExportError as error:
                raise RefusedError(f"{format} in {precision} is refused: {error}; {HINTS[loss]}") from error
            verification = found.as_dict()
        else:
            verification = None
            write_check(Path(folder) / f"{file.name}.check.npz", reference, samples, finish)
        files = sorted(Path(folder).iterdir())
        report = {
            "file": file.name,
            "files": {part.name: _size(part) for part in files},
            "sha256": {
                part.relative_to(folder).as_posix(): file_sha256(part)
                for part in sorted(Path(folder).rglob("*"))
                if part.is_file()
            },
            "format": format,
            "precision": precision,
            "merge_tokens": merge_tokens,
            **notes,
            "input": {
                "images": {
                    "shape": ["batch", prep.channels, "height", "width"]
                    if dynamic_size
                    else ["batch", *example.shape[1:]],
                    "max_batch": max_batch,
                    "dtype": str(example.dtype).removeprefix("torch."),
                    **({} if step is None else {"multiple_of": list(step)}),
                }
            },
            "output": {
                output: {
                    "shape": ["batch", *_output_shape(reference, job)],
                    "dtype": "float32",
                    **({"temperature": temperature} if output == "probabilities" else {}),
                    **({} if features is None else {"features": features}),
                }
            },
            **description,
            "verification": verification,
            "versions": {package: version(package) for package in ("torch", *kind.packages)},
        }
        (Path(folder) / f"{file.name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        for part in Path(folder).iterdir():
            # only a file is replaced in one step
            if (file.parent / part.name).is_dir():
                shutil.rmtree(file.parent / part.name)
            os.replace(part, file.parent / part.name)
    return report


def check_request(
    file: str | os.PathLike[str],
    format: str,
    precision: Precision,
    *,
    normalize_inside: bool,
    merge_tokens: int,
    opset: int,
    quantization: Quantization,
    keep: tuple[str, ...],
) -> Format:
    """Check what `export_model` is asked for, as far as that needs neither the model nor images.

    Args:
        file: as of `export_model`, like all others.

    Returns:
        The format.

    Raises:
        ExportError: if the format does not have what is asked for, or needs a package, or the file cannot be
            one of the format.
        ValueError: if `merge_tokens` is negative or no integer.
    """
    kind, file = find_format(format), Path(file)
    kind.check(format, precision)
    if precision == "int8":
        kind.check_quantization(format, quantization)
    elif quantization != "static":
        raise ExportError(f"quantization is for int8, got precision {precision}")
    if keep and precision != "int8":
        raise ExportError(f"keep is for int8, got precision {precision}")
    if format == "onnx":
        check_opset(opset)
    elif opset != OLDEST_OPSET:
        raise ExportError(f"opset is for format onnx, got {format}")
    if normalize_inside and not kind.takes_bytes:
        raise ExportError(f"a file of format {format} takes no bytes: export without --with-preprocessing")
    check_integer("merge_tokens", merge_tokens, least=0)
    if merge_tokens and not kind.merges_tokens:
        able = ", ".join(name for name, each in FORMATS.items() if each.merges_tokens)
        raise ExportError(f"format {format} cannot merge tokens; those that can: {able}")
    if file.suffix != kind.suffix:
        raise ExportError(f"a file of format {format} is called *{kind.suffix}, got {file.name}")
    if file.is_dir() and not (kind.manifest and (file / kind.manifest).is_file()):
        raise ExportError(f"{file} is a folder, and a file is to be written there")
    return kind


def check_model(
    model: VisionModel,
    format: str,
    *,
    prep: Preprocessing,
    output: Output,
    features: Features | None,
    normalize_inside: bool,
    dynamic_size: bool,
    merge_tokens: int,
) -> tuple[int, ...] | None:
    """Check that a model can be exported as `export_model` is asked to, before images are read.

    Args:
        model: as of `export_model`, like all others.

    Returns:
        What divides height and width, if these are dynamic.

    Raises:
        ExportError: if the model takes images of another kind, or has not what is asked for.
        ValueError: if it lacks the features, or its tokens cannot be merged.
    """
    if prep.max_tokens is not None:
        raise ExportError("the model's images keep their own sizes (max_tokens), and a file takes one size")
    if normalize_inside and prep.frames is not None:
        raise ExportError("only images are normalized in the graph, not clips or volumes")
    if features is not None:
        if output != "features":
            raise ExportError(f"features {features!r} are computed instead of {output}")
        check_features(model, features)
    merging(model, merge_tokens)
    return find_size_step(model, format, find_format(format)) if dynamic_size else None


def load_exported(file: str | os.PathLike[str]) -> Runtime:
    """Load a file that `export_model` wrote with its own runtime, as its report says.

    Returns:
        A function from a batch to outputs, tensors on the processor.

    Raises:
        FileNotFoundError: if the file or its report is not there.
        ValueError: if either is damaged.
    """
    file = Path(file)
    report = read_report(file)
    kind = find_format(report["format"])
    kind.check(report["format"], report["precision"])
    return kind.load(file, report["precision"])


def read_report(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the report that `export_model` wrote beside a file, and hold the file against it.

    Raises:
        FileNotFoundError: if the file or its report is not there.
        ValueError: if the report is none, or the SHA-256 of a file that it describes is another.
    """
    file = Path(file)
    place = Path(f"{file}.json")
    report = read_settings(place)
    missing = [key for key in ("format", "precision", "parameters", "input") if key not in report]
    if missing:
        raise ValueError(f"{place} is no report of an exported file: it lacks {', '.join(missing)}")
    # reports of version 0.1 have none
    for name, digest in report.get("sha256", {}).items():
        if file_sha256(file.parent / name) != digest:
            raise ValueError(
                f"{file.parent / name} is damaged: its SHA-256 is not that of {place}; export it again"
            )
    return report


def describe(
    model: VisionModel, name: str, prep: Preprocessing, classes: tuple[str, ...], *, normalize_inside: bool
) -> dict[str, Any]:
    """Return what whoever runs a file must know: its model, classes, task, preprocessing and licence."""
    preprocessing: dict[str, Any] = {
        "image_size": list(prep.image_size),
        "channels": prep.channels,
        "interpolation": prep.interpolation,
        "antialias": prep.interpolation != "nearest",
        "crop_pct": prep.crop_pct,
        "crop_mode": prep.crop_mode,
        "normalized_by": "the graph" if normalize_inside else "the caller",
        "mean": list(prep.mean),
        "std": list(prep.std),
        "window": None if prep.window is None else list(prep.window),
    }
    if prep.frames is not None:
        kinds = MEDIA if prep.media is None else (prep.media,)
        preprocessing |= {"frames": prep.frames, **{kind: asdict(getattr(prep, kind)) for kind in kinds}}
    return {
        "model": name,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "classes": list(classes),
        # temperature, thresholds, or mean and standard deviation, which turn logits into answers
        **({TASK: model.default_cfg[TASK]} if TASK in model.default_cfg else {}),
        "preprocessing": preprocessing,
        "license": getattr(model.load_report, "license", None),
    }


def find_size_step(model: VisionModel, format: str, kind: Format) -> tuple[int, ...]:
    """Return what divides height and width of a model that takes images of any size.

    Raises:
        ExportError: if the model or the format takes images of one size, with what to do.
    """
    if not (isinstance(model, IsotropicModel) and model.any_size and len(model.grid.shape) == 2):
        raise ExportError(
            f"a file of this {type(model).__name__} takes images of one size: any size is for models of one "
            "sequence with positions=Learned(dynamic_img_size=True), or with rotary ones alone"
        )
    if not kind.dynamic_size:
        raise ExportError(f"format {format} takes images of one size: take --format onnx or pt2")
    return model.grid.patch


def _output_shape(reference: ExportGraph, job: ExportJob) -> list[int]:
    """Return the shape of a graph's output for one image of the example's size."""
    with torch.no_grad():
        return list(reference(job.example).shape[1:])


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())


def _finish(prep: Preprocessing, normalize_inside: bool) -> Callable[[Tensor], Tensor]:
    """Return what turns a batch of samples into what a graph takes."""
    if normalize_inside:
        return nn.Identity()
    if prep.frames is None:
        return Normalize(prep)
    to_channels_first = ChannelsFirst()
    normalize = Normalize(prep)
    return lambda clips: torch.stack([to_channels_first(normalize(clip)) for clip in clips])
