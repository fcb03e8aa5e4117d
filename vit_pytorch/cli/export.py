"""`vit export`: a model as a file of another runtime, verified on images."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vit_pytorch.cli.functions import call
from vit_pytorch.cli.layers import UsageError
from vit_pytorch.cli.tables import print_json
from vit_pytorch.cli.use import _open, _record, data_config
from vit_pytorch.create import comes_trained, create_model, is_named
from vit_pytorch.export.deploy import check_model, check_request, export_model
from vit_pytorch.export.job import OLDEST_OPSET, Output, Precision, Quantization
from vit_pytorch.export.samples import (
    RANDOM,
    Samples,
    random_samples,
    samples_from_dataset,
    samples_from_files,
)
from vit_pytorch.export.verify import Comparison
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.preprocessing import preprocessing_for
from vit_pytorch.registry import entries
from vit_pytorch.training.config import CONFIG
from vit_pytorch.training.features import Features
from vit_pytorch.training.problems import Classification
from vit_pytorch.training.runs import check_creatable
from vit_pytorch.training.saved import SavedClassifier, read_classifier

SOURCES = ("digits", "csv:", "folder:", "idx:", "hf:", "wds:", "video:", "nifti:")


def export(arguments: Sequence[str]) -> None:
    """Parse the options of `vit export` and run it."""
    call(print_export, "export", arguments, positional=["model"])


def print_export(
    model: str,
    format: str,
    output: str,
    precision: Precision = "fp32",
    pretrained: bool | str = False,
    verify: str | None = None,
    images: int = 1000,
    calibrate: str | None = None,
    calibration_images: int = 128,
    quantization: Quantization = "static",
    keep: str = "",
    outputs: Literal["probabilities", "logits"] = "probabilities",
    calibrated: bool = False,
    features: Features | None = None,
    dynamic: str = "batch",
    merge_tokens: int = 0,
    with_preprocessing: bool = False,
    opset: int = OLDEST_OPSET,
    batch_size: int = 16,
    as_json: bool = False,
) -> None:
    """Export a model to another runtime; the file is verified on images, or not written.

    Args:
        model: Folder of a run or of a model, or the name of a model.
        format: `onnx`, `pt2` (torch.export), `openvino`, `torchscript`, `aoti` (compiled by AOTInductor),
            `executorch` or `coreml` (verified on a Mac by `python -m vit_pytorch.export.check FILE`).
        output: The file, in a folder that is made if need be; a report is written beside it as FILE.json.
            Files of these names are replaced.
        precision: `fp32`, `fp16`, `bf16` or `int8`, as far as the format has them.
        pretrained: For a named model: `true` for its published weights, or a checkpoint. Trained models that
            ship with the package always have their weights.
        verify: Images to hold the file against the model: a folder (labels are names of folders that are
            classes); the validation images of `digits`, `idx:…`, `hf:…`, `wds:…`, `video:…` or `nifti:…`;
            `random` for noise. By default the run's validation images.
        images: How many of them, at most, evenly spread.
        calibrate: Images for the ranges of static int8: a folder, or the training images of such a source; by
            default the run's training images.
        calibration_images: How many of them, at most.
        quantization: Of int8: `static` ranges of activations by calibration, or `dynamic` ones at run time.
        keep: Layers that stay in floating point in int8, by names of modules, with commas between.
        outputs: What a classifier's file computes, `probabilities` or `logits`; a model without classes gives
            its features.
        calibrated: Divide logits by the temperature that the run chose on its validation images, for the
            probabilities of `vit predict --calibrated`.
        features: Compute features instead: `pooled` for what enters the classifier; after the final norm,
            `cls` for the class token, `mean` for the mean of the patches, `patches` for all, `maps` for
            these as maps.
        dynamic: Axes of the input that stay open: `batch`, or `batch,size` for height and width, too, where
            the model takes any size.
        merge_tokens: Number of patches by which each block of a plain ViT has fewer: those that are most
            alike become one. The file is held against the model that merges none.
        with_preprocessing: Put the normalisation into the graph, which then takes bytes (0 to 255) of the
            model's size.
        opset: ONNX operator set, 18 or higher.
        batch_size: Images that are compared at once.
        as_json: Print the report instead of one line.

    Raises:
        FileNotFoundError: Where there is no model or no such image.
        ValueError: Where a package is missing, an option does not fit the format, or the file does not decide
            as the model does.
    """
    for name, value in (
        ("images", images),
        ("batch_size", batch_size),
        ("calibration_images", calibration_images),
    ):
        check_integer(name, value)
    axes = dynamic.split(",")
    if not {"batch", "size"}.issuperset(axes):
        raise UsageError(f"--dynamic must be batch, or batch,size, got {dynamic}")
    kept = tuple(name for name in keep.split(",") if name)
    needs_calibration = precision == "int8" and quantization == "static"
    if calibrate is not None and not needs_calibration:
        raise UsageError("--calibrate is for --precision int8 with --quantization static")
    check_request(
        output,
        format,
        precision,
        normalize_inside=with_preprocessing,
        merge_tokens=merge_tokens,
        opset=opset,
        quantization=quantization,
        keep=kept,
    )
    check_creatable(Path(output).parent)
    built = create_model(model, pretrained=pretrained or comes_trained(model)).eval()
    if model in entries() and pretrained is False:
        warnings.warn(f"{model} has random weights; published ones come by --pretrained=true", stacklevel=2)
    saved = (
        read_classifier(built, model)
        if built.num_classes
        else SavedClassifier(built, Classification(()), preprocessing_for(built))
    )
    if features is None and saved.problem.task != "classify" and outputs != "logits":
        what = "values in standard deviations" if saved.problem.task == "regression" else "logits of labels"
        raise UsageError(
            f"a model of task {saved.problem.task} is exported with --outputs logits, its {what}"
        )
    computed: Output = outputs if saved.classes and features is None else "features"
    temperature = 1.0
    if calibrated:
        if computed != "probabilities":
            raise UsageError(
                f"--calibrated is for probabilities of classes, and the file computes {computed}"
            )
        problem = saved.problem.calibrated()
        assert isinstance(problem, Classification), "probabilities are those of classes"
        temperature = problem.temperature or temperature
    check_model(
        built,
        format,
        prep=saved.preprocessing,
        output=computed,
        features=features,
        normalize_inside=with_preprocessing,
        dynamic_size="size" in axes,
        merge_tokens=merge_tokens,
    )
    report = export_model(
        built,
        output,
        format,
        prep=saved.preprocessing,
        samples=_samples(model, verify, "verify", saved, images),
        name=model if is_named(model) else Path(model).resolve().name,
        classes=saved.classes,
        precision=precision,
        output=computed,
        temperature=temperature,
        normalize_inside=with_preprocessing,
        features=features,
        dynamic_size="size" in axes,
        merge_tokens=merge_tokens,
        opset=opset,
        quantization=quantization,
        calibration=_samples(model, calibrate, "calibrate", saved, calibration_images)
        if needs_calibration
        else None,
        keep=kept,
        batch_size=batch_size,
    )
    if as_json:
        print_json(report)
    else:
        print(_line(report, output))


def _samples(
    model: str, source: str | None, use: Literal["verify", "calibrate"], saved: SavedClassifier, count: int
) -> Samples:
    """Open the images that an option names, or the run's own: validation to verify, training to calibrate.

    Raises:
        UsageError: if there is neither.
    """
    prep = saved.preprocessing
    if source == RANDOM and use == "verify":
        return random_samples(prep)
    if source is None:
        if not (Path(model) / CONFIG).is_file():
            noise = ", or --verify random for noise" if use == "verify" else ""
            raise UsageError(f"{model} is no run with images of its own: name some by --{use} FOLDER{noise}")
        splits = _open(data_config(Path(model), None), _record(model, None), "stop", saved.problem.task)
        chosen, name = (splits.val, "validation") if use == "verify" else (splits.train, "training")
        return samples_from_dataset(chosen, prep, count=count, source=f"the run's {name} images")
    if not source.startswith(SOURCES) or Path(source).exists():
        return samples_from_files(source, saved.classes, prep, count=count)
    splits = _open(data_config(Path(model), source), None, "stop", saved.problem.task, whole=True)
    if saved.classes:
        splits = splits.with_names(saved.classes)
    chosen = splits.val if use == "verify" else splits.train
    return samples_from_dataset(chosen, prep, count=count, source=source)


def _line(report: dict[str, Any], output: str) -> str:
    """Return what the command says of a report."""
    size = sum(report["files"].values()) / 1e6
    parts = [f"{output}: {report['format']} {report['precision']}, {size:.1f} MB"]
    if "quantized_layers" in report:
        parts.append(f"{report['quantized_layers']} layers in int8")
    if report["verification"] is None:
        later = f"python -m vit_pytorch.export.check {output}"
        parts.append(
            f"NOT VERIFIED, since format {report['format']} does not run here; where it does: {later}"
        )
    else:
        parts.append(str(Comparison(**report["verification"])))
    return "; ".join(parts)
