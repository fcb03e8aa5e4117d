"""Exported files: every format and precision, what they hold, and exports that are refused."""

import json
import os
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from tests.architecture.test_examples import ROOT, blocks
from tests.contracts.conftest import randomize_
from vit_pytorch import create_transform
from vit_pytorch.base import VisionModel
from vit_pytorch.export import deploy, formats
from vit_pytorch.export import executorch as executorch_format
from vit_pytorch.export import onnx as onnx_format
from vit_pytorch.export.bench_worker import file_step
from vit_pytorch.export.check import check_file
from vit_pytorch.export.deploy import export_model, load_exported
from vit_pytorch.export.job import ExportError, Format
from vit_pytorch.export.samples import Samples, random_samples
from vit_pytorch.export.timing import Cell
from vit_pytorch.export.verify import Comparison, check, compare, decision_of
from vit_pytorch.layers.positions import Learned
from vit_pytorch.preprocessing import Normalize, preprocessing_for, resize
from vit_pytorch.registry import find_entry
from vit_pytorch.tome import ToMeViT

CLASSES = tuple("0123456789")
COUNT = 40


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Scanned digits as bytes of the tiny models' size, and their classes."""
    scans = load_digits()
    images = torch.from_numpy((scans.images * 15).astype(np.uint8))[:, None]
    return resize(images.expand(-1, 3, -1, -1).contiguous(), (32, 32), "bilinear"), torch.from_numpy(
        scans.target
    )


@pytest.fixture(scope="module")
def model() -> VisionModel:
    """A tiny ViT that has learned digits for a few steps."""
    torch.manual_seed(0)
    entry = find_entry("vit_tiny_patch16_224")
    built = entry.build(**{**entry.tiny, "num_classes": 10})
    images, labels = digits()
    images = Normalize(preprocessing_for(built))(images)
    optimizer = torch.optim.AdamW(built.parameters(), lr=3e-3, fused=True)
    for step in range(80):
        batch = torch.arange(step * 16, step * 16 + 16) % 1600
        loss = torch.nn.functional.cross_entropy(built(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return built.eval()


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Digits that the model has not seen, without labels."""
    images, _ = digits()
    return Samples("digits", [None] * COUNT, lambda i: images[1700 + i])


def write(model: VisionModel, file: Path, format: str, samples: Samples, **options: Any) -> dict[str, Any]:
    prep = preprocessing_for(model)
    options = {"classes": CLASSES, **options}
    return export_model(model, file, format, prep=prep, samples=samples, name="tiny", batch_size=6, **options)


@pytest.mark.parametrize(
    ("format", "suffix", "precision"),
    [
        ("onnx", ".onnx", "fp32"),
        ("onnx", ".onnx", "fp16"),
        ("pt2", ".pt2", "fp32"),
        ("pt2", ".pt2", "bf16"),
        ("torchscript", ".ts", "fp32"),
        ("openvino", ".xml", "fp16"),
        ("executorch", ".pte", "fp32"),
    ],
)
def test_formats(model, samples, tmp_path, format, suffix, precision):
    if format in ("openvino", "executorch"):
        pytest.importorskip(format)
    file = tmp_path / f"tiny{suffix}"
    report = write(model, file, format, samples, precision=precision)
    assert report == json.loads((tmp_path / f"tiny{suffix}.json").read_text())
    found = report["verification"]
    assert (found["images"], found["labelled"], found["accuracy"]) == (COUNT, 0, None)
    assert found["flips"] == 0
    assert 0 <= found["mean_difference"] <= found["largest_difference"]
    if precision == "fp32":
        assert found["largest_difference"] < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {*report["files"], f"tiny{suffix}.json"}
    run = load_exported(file)
    images = Normalize(preprocessing_for(model))(torch.stack([samples.read(i) for i in range(3)]))
    with torch.no_grad():
        want = model(images).softmax(1)
    for batch in (1, 3):
        tolerance = 1e-5 if precision == "fp32" else 0.05
        torch.testing.assert_close(run(images[:batch]), want[:batch], rtol=0, atol=tolerance)


@pytest.mark.parametrize("opset", [5, 17, 99])
def test_an_operator_set_that_onnx_files_cannot_have(model, samples, tmp_path, opset):
    with pytest.raises(ExportError, match=rf"opset must be in \[18, \d+\], got {opset}"):
        write(model, tmp_path / "tiny.onnx", "onnx", samples, opset=opset)
    assert not any(tmp_path.iterdir())


def test_the_file_of_onnx_says_what_it_is(model, samples, tmp_path):
    import onnx

    write(model, tmp_path / "tiny.onnx", "onnx", samples, output="logits", opset=20)
    graph = onnx.load(tmp_path / "tiny.onnx")
    onnx.checker.check_model(graph)
    (given,), (found,) = graph.graph.input, graph.graph.output
    assert (given.name, found.name) == ("images", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert next(entry.version for entry in graph.opset_import if not entry.domain) == 20
    metadata = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert metadata["classes"] == list(CLASSES)
    assert metadata["preprocessing"]["crop_pct"] == model.default_cfg["crop_pct"]
    assert metadata["preprocessing"]["mean"] == list(model.default_cfg["mean"])
    assert metadata["license"] is None


def test_normalisation_in_the_graph(model, samples, tmp_path):
    report = write(model, tmp_path / "tiny.onnx", "onnx", samples, normalize_inside=True)
    assert report["input"]["images"]["dtype"] == "uint8"
    assert report["preprocessing"]["normalized_by"] == "the graph"
    images = torch.stack([samples.read(i) for i in range(2)])
    with torch.no_grad():
        want = model(Normalize(preprocessing_for(model))(images)).softmax(1)
    torch.testing.assert_close(load_exported(tmp_path / "tiny.onnx")(images), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("format", "suffix", "precision"),
    [("onnx", ".onnx", "fp32"), ("onnx", ".onnx", "int8"), ("openvino", ".xml", "fp32")],
)
def test_merged_tokens(model, samples, tmp_path, format, suffix, precision):
    """The file merges as the model around does, and is held against the one that merges nothing."""
    file = tmp_path / f"tiny{suffix}"
    options = {"calibration": samples} if precision == "int8" else {}
    options |= {"output": "features", "features": "pooled"}
    report = write(model, file, format, samples, merge_tokens=1, precision=precision, **options)
    assert report["merge_tokens"] == 1
    assert report["verification"]["largest_difference"] > 1e-4
    images = Normalize(preprocessing_for(model))(torch.stack([samples.read(i) for i in range(3)]))
    with torch.no_grad():
        merged = ToMeViT.around(model, merged=1).eval()
        want = merged.forward_head(merged.forward_features(images), pre_logits=True)
    apart = (load_exported(file)(images) - want).square().mean().sqrt() / want.std()
    assert apart < (1e-5 if precision == "fp32" else 0.2)


@pytest.mark.parametrize("features", ["cls", "mean", "patches", "maps"])
def test_features_of_merged_tokens(model, samples, tmp_path, features):
    """Every patch has the token that it went into."""
    file = tmp_path / "tiny.ts"
    report = write(model, file, "torchscript", samples, merge_tokens=1, output="features", features=features)
    images = Normalize(preprocessing_for(model))(torch.stack([samples.read(i) for i in range(3)]))
    with torch.no_grad():
        tokens = ToMeViT.around(model, merged=1).eval().forward_features(images)
    patches = tokens[:, 1:]
    maps = patches.transpose(1, 2).reshape(3, -1, *model.grid.shape)
    want = {"cls": tokens[:, 0], "mean": patches.mean(dim=1), "patches": patches, "maps": maps}[features]
    assert report["output"]["features"]["shape"] == ["batch", *want.shape[1:]]
    assert report["output"]["features"]["features"] == features
    torch.testing.assert_close(load_exported(file)(images), want, rtol=0, atol=1e-4)


def test_tokens_that_are_merged_at_the_cost_of_decisions(model, samples, tmp_path):
    with pytest.raises(ExportError, match=r"decisions flip, more than 0\.2%.*try fewer by --merge_tokens"):
        write(model, tmp_path / "tiny.onnx", "onnx", samples, merge_tokens=40)
    assert not any(tmp_path.iterdir())
    levit = find_entry("levit_128s").build(**find_entry("levit_128s").tiny).eval()
    with pytest.raises(ValueError, match=r"the base of a ToMeViT must be one of ViT, .* got LeViT"):
        write(levit, tmp_path / "tiny.onnx", "onnx", samples, merge_tokens=1)


def test_features_of_models_without_classes(tmp_path):
    entry = find_entry("vit_tiny_patch16_224")
    model = randomize_(entry.build(**{**entry.tiny, "num_classes": 0})).eval()
    noise = random_samples(preprocessing_for(model), 5)
    report = write(model, tmp_path / "tiny.pt2", "pt2", noise, classes=(), output="features")
    assert report["output"] == {"features": {"shape": ["batch", model.num_features], "dtype": "float32"}}
    assert report["verification"]["flips"] is None


@pytest.mark.parametrize(
    ("format", "suffix", "quantization"),
    [
        ("onnx", ".onnx", "static"),
        ("onnx", ".onnx", "dynamic"),
        ("executorch", ".pte", "static"),
        ("openvino", ".xml", "static"),
    ],
)
def test_int8_quantizes_every_layer(model, samples, tmp_path, format, suffix, quantization):
    pytest.importorskip("nncf" if format == "openvino" else format)
    labels = labelled(model, samples)
    report = write(
        model,
        tmp_path / f"tiny{suffix}",
        format,
        labels,
        precision="int8",
        quantization=quantization,
        calibration=samples if quantization == "static" else None,
        keep=("head",),
    )
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    kept = {"head"} | (convolutions if quantization == "dynamic" else set())
    assert set(report["layers_in_floating_point"]) == kept
    assert report["quantized_layers"] == len(layers - kept) > 5
    assert report["verification"]["accuracy"] == report["verification"]["model_accuracy"] == 1.0
    assert 0 < report["verification"]["largest_difference"] < 0.2


def test_convolutions_before_a_batch_norm_are_quantized(tmp_path, monkeypatch):
    # random weights decide nothing; what counts here are the layers
    monkeypatch.setattr(deploy, "check", lambda found, precision, *, noise: None)
    entry = find_entry("vit_tiny_patch16_224")
    model = randomize_(entry.build(**{**entry.tiny, "depth": 1, "stem": "conv"})).eval()
    images, _ = digits()
    samples = Samples("digits", [None] * COUNT, lambda i: images[i])
    options = {"precision": "int8", "calibration": samples, "classes": (), "keep": ("head",)}
    report = write(model, tmp_path / "tiny.onnx", "onnx", samples, **options)
    assert report["layers_in_floating_point"] == ["head"]
    assert report["quantized_layers"] == 4 + sum(isinstance(part, nn.Conv2d) for part in model.modules())


def labelled(model: VisionModel, samples: Samples) -> Samples:
    """Take the model's own clear decisions for labels."""
    images = Normalize(preprocessing_for(model))(torch.stack([samples.read(i) for i in range(COUNT)]))
    with torch.no_grad():
        top = model(images).softmax(1).topk(2)
    clear = (top.values[:, 0] - top.values[:, 1] > 0.3).nonzero().flatten().tolist()
    assert len(clear) > 5
    return Samples("labelled", [int(top.indices[i, 0]) for i in clear], lambda i: samples.read(clear[i]))


def test_layers_that_were_not_quantized_are_an_error(model, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "_quantized_weights", lambda graph: iter(()))
    with pytest.raises(ExportError, match=r"layers were not quantized: .*attention"):
        write(
            model,
            tmp_path / "tiny.onnx",
            "onnx",
            samples,
            precision="int8",
            calibration=samples,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_decides_otherwise_is_refused(model, samples, tmp_path, monkeypatch):
    def load(file, precision):
        run = formats.pt2.load(file, precision)
        return lambda images: run(images).roll(1, 1)

    broken = Format(".pt2", formats.pt2.write, load, ("fp32", "bf16"))
    monkeypatch.setitem(formats.FORMATS, "pt2", broken)
    with pytest.raises(ExportError, match=r"pt2 in fp32 is refused: 40 of 40 decisions flip.*try --format"):
        write(model, tmp_path / "tiny.pt2", "pt2", samples)
    with pytest.raises(ExportError, match=r"accuracy on \d+ images falls from 100.00% to 0.00%"):
        write(model, tmp_path / "tiny.pt2", "pt2", labelled(model, samples), precision="bf16")
    assert list(tmp_path.iterdir()) == []


def test_decisions_of_each_task(model, samples):
    """A value is no decision: the largest of one output is always the same, whatever it is."""

    def compared(problem: dict[str, object], change: float) -> Comparison:
        generator = torch.Generator().manual_seed(0)
        outputs = torch.randn(COUNT, 3, generator=generator)
        return compare(
            lambda images: outputs[: len(images)],
            lambda images: outputs[: len(images)] + change,
            samples,
            finish=nn.Identity(),
            decide=decision_of("logits", problem),
            batch_size=COUNT,
        )

    assert (compared({}, 5).decisions, compared({}, 5).flips) == (COUNT, 0)
    values = compared({"task": "regression"}, 5)
    assert (values.decisions, values.flips, values.accuracy) == (None, None, None)
    with pytest.raises(ExportError, match="outputs differ by"):
        check(values, "int8", noise=False)
    labels = {"task": "multilabel", "thresholds": [0.5, 0.01, 0.99]}
    assert (compared(labels, 0).decisions, compared(labels, 0).flips) == (3 * COUNT, 0)
    assert compared({**labels, "thresholds": [1e-9] * 3}, 5).flips == 0
    assert 0 < compared(labels, 5).flips < 3 * COUNT


@pytest.mark.parametrize("count", [COUNT, 500])
def test_labels_that_are_known_decide(count):
    """What is lost on one label may be won on another; one lost decision in few is more than 0.2 %."""
    truth = torch.arange(3 * count).view(count, 3) % 2
    outputs = 2.0 * truth - 1
    outputs[0, 0] *= -1
    won_and_lost = outputs.clone()
    won_and_lost[:2, 0] *= -1
    lost = outputs.clone()
    lost[1, 0] *= -1
    known = Samples("labels", [tuple(row) for row in truth.tolist()], lambda i: torch.tensor(i))

    def compared(found: torch.Tensor) -> Comparison:
        return compare(
            lambda places: outputs[places],
            lambda places: found[places],
            known,
            finish=nn.Identity(),
            decide=decision_of("logits", {"task": "multilabel", "thresholds": [0.5] * 3}),
            batch_size=count,
        )

    found = compared(won_and_lost)
    assert (found.flips, found.labelled, found.decisions) == (2, count, 3 * count)
    assert found.accuracy == found.model_accuracy == pytest.approx(1 - 1 / (3 * count))
    check(found, "int8", noise=False)
    if count == COUNT:
        with pytest.raises(
            ExportError, match="a single decision is more than that here: verify on 167 images"
        ):
            check(compared(lost), "int8", noise=False)
    else:
        check(compared(lost), "int8", noise=False)
        with pytest.raises(ExportError, match=r"falls from 99\.93% to 0\.07%, by more than 0\.2% \(500"):
            check(compared(-outputs), "int8", noise=False)


def test_a_runtime_that_fails_is_said_in_a_sentence(model, samples, tmp_path, monkeypatch):
    """Runtimes raise what they like, as a file is loaded or as it runs."""

    def fail(*_):
        raise RuntimeError("no kernel\nand much more")

    for load, when in ((fail, "as it is loaded"), (lambda file, precision: fail, "on a batch of 1")):
        monkeypatch.setitem(formats.FORMATS, "torchscript", replace(formats.torchscript.FORMAT, load=load))
        with pytest.raises(ExportError, match=rf"fp32 is refused: the file fails {when}: no kernel; the"):
            write(model, tmp_path / "a.ts", "torchscript", samples)
    assert list(tmp_path.iterdir()) == []


FOUND = {
    "source": "photographs",
    "images": 1000,
    "largest_difference": 0.1,
    "mean_difference": 0.01,
    "relative_difference": 1e-4,
    "decisions": 1000,
    "flips": 0,
    "labelled": 1000,
    "model_accuracy": 0.9,
    "accuracy": 0.9,
}


@pytest.mark.parametrize(
    ("precision", "noise", "changes", "message"),
    [
        ("fp32", False, {"flips": 1}, "1 of 1000 decisions flip, none may in fp32"),
        ("fp32", False, {"relative_difference": 2e-3}, "outputs differ by 2.0e-03"),
        ("fp32", False, {"relative_difference": float("nan")}, "outputs differ by nan"),
        ("int8", False, {"flips": 50, "accuracy": 0.8979}, "falls from 90.00% to 89.79%"),
        (
            "int8",
            False,
            {"flips": 3, "accuracy": None, "model_accuracy": None},
            "3 of 1000 decisions flip, more",
        ),
        ("bf16", True, {"relative_difference": 0.2}, "outputs differ"),
        ("fp16", False, {"flips": None, "relative_difference": 0.1}, "outputs differ"),
        (
            "int8",
            False,
            {"decisions": 3000, "flips": 7, "accuracy": None, "model_accuracy": None},
            "7 of 3000 decisions",
        ),
    ],
)
def test_thresholds(precision, noise, changes, message):
    with pytest.raises(ExportError, match=message):
        check(Comparison(**{**FOUND, **changes}), precision, noise=noise)


def test_thresholds_are_kept():
    check(Comparison(**FOUND), "fp32", noise=False)
    check(
        Comparison(**{**FOUND, "flips": 50, "accuracy": 0.8981, "relative_difference": 0.2}),
        "int8",
        noise=False,
    )
    check(Comparison(**{**FOUND, "flips": 2, "accuracy": None, "model_accuracy": None}), "int8", noise=False)
    check(Comparison(**{**FOUND, "flips": 50, "relative_difference": 0.05}), "bf16", noise=True)


@pytest.mark.parametrize(
    ("format", "file", "options", "message"),
    [
        (
            "onyx",
            "a.onnx",
            {},
            "format must be one of onnx, pt2, openvino, torchscript, aoti, executorch, coreml, got 'onyx'",
        ),
        ("tensorrt", "a.plan", {}, "not written here: export --format onnx and build an engine with trtexec"),
        ("onnx", "a.pt2", {}, r"a file of format onnx is called \*.onnx, got a.pt2"),
        ("onnx", "a.onnx", {"precision": "bf16"}, "not in bf16: ONNX Runtime has no bf16 kernels"),
        ("onnx", "a.onnx", {"precision": "int8"}, "name some by --calibrate"),
        ("pt2", "a.pt2", {"precision": "int8"}, "take --format onnx"),
        ("pt2", "a.pt2", {"keep": ("head",)}, "keep is for int8, got precision fp32"),
        ("onnx", "a.onnx", {"quantization": "dynamic"}, "quantization is for int8, got precision fp32"),
        (
            "coreml",
            "a.mlpackage",
            {"merge_tokens": 1},
            "coreml cannot merge tokens; those that can: onnx, pt2,",
        ),
        ("executorch", "a.pte", {"merge_tokens": 1}, "format executorch cannot merge tokens"),
        ("coreml", "a.mlpackage", {"normalize_inside": True}, "no bytes: export without --with-prepr"),
        ("openvino", "a.xml", {"precision": "int8", "quantization": "dynamic"}, "quantized by calibration"),
        ("executorch", "a.pte", {"precision": "int8", "quantization": "dynamic"}, "quantized by calibration"),
    ],
)
def test_what_is_not_offered(model, samples, tmp_path, format, file, options, message):
    """Nothing is read or traced before it is said."""
    for package in formats.FORMATS[format].packages if format in formats.FORMATS else ():
        pytest.importorskip(package)

    def read(index: int) -> torch.Tensor:
        raise AssertionError("an image was read")

    with pytest.raises(ExportError, match=message):
        write(model, tmp_path / file, format, replace(samples, read=read), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_pt2e_leaves_out_is_an_error(model, samples, tmp_path, monkeypatch):
    executorch = pytest.importorskip("vit_pytorch.export.executorch")
    pytest.importorskip("executorch")
    monkeypatch.setattr(executorch, "_is_product_of", lambda wanted: lambda node: False)
    with pytest.raises(ExportError, match=r"(\d+) of \1 layers were not quantized: .*; name them by --keep"):
        write(model, tmp_path / "a.pte", "executorch", samples, precision="int8", calibration=samples)


def test_core_ml_is_verified_where_it_runs(model, samples, tmp_path, monkeypatch):
    """The package holds the weights of all linear layers; its outputs can only be compared on a Mac."""
    coremltools = pytest.importorskip("coremltools")
    if formats.FORMATS["coreml"].runs_here:
        pytest.skip("a Mac verifies the file at once")
    file = tmp_path / "tiny.mlpackage"
    for precision in ("fp32", "fp16"):  # the second replaces the first
        report = write(model, file, "coreml", labelled(model, samples), precision=precision)
        assert report["verification"] is None
        assert report["linear_layers_compared"] == sum(
            isinstance(part, nn.Linear) for part in model.modules()
        )
        assert set(report["files"]) == {"tiny.mlpackage", "tiny.mlpackage.check.npz"}
    found = coremltools.models.MLModel(str(file), skip_model_load=True)
    assert json.loads(found.user_defined_metadata["classes"]) == list(CLASSES)

    def run(wrong):
        return lambda file, precision: lambda images: model(images).softmax(1).roll(wrong, 1)

    for wrong in (1, 0):
        ready = replace(formats.FORMATS["coreml"], load=run(wrong), platform="")
        monkeypatch.setitem(formats.FORMATS, "coreml", ready)
        if wrong:
            with pytest.raises(
                ExportError, match=r"not to be used: accuracy on \d+ images falls from 100.00%"
            ):
                check_file(file)
    verified = json.loads((tmp_path / "tiny.mlpackage.json").read_text())["verification"]
    assert verified is None
    assert check_file(file).accuracy == 1.0
    verified = json.loads((tmp_path / "tiny.mlpackage.json").read_text())["verification"]
    assert verified["flips"] == 0
    assert verified["labelled"] == verified["images"] > 5


@pytest.mark.parametrize(
    ("format", "suffix", "features"),
    [
        ("onnx", ".onnx", "cls"),
        ("onnx", ".onnx", "patches"),
        ("pt2", ".pt2", "maps"),
        ("pt2", ".pt2", "mean"),
        ("torchscript", ".ts", "maps"),
        ("openvino", ".xml", "pooled"),
        ("executorch", ".pte", "maps"),
    ],
)
def test_features(model, samples, tmp_path, format, suffix, features):
    if format in ("openvino", "executorch"):
        pytest.importorskip(format)
    file = tmp_path / f"a{suffix}"
    report = write(model, file, format, samples, output="features", features=features)
    images = Normalize(preprocessing_for(model))(torch.stack([samples.read(i) for i in range(3)]))
    with torch.no_grad():
        tokens = model.forward_features(images)
        (maps,) = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        want = {
            "pooled": model.forward_head(tokens, pre_logits=True),
            "cls": tokens[:, 0],
            "patches": tokens[:, 1:],
            "mean": tokens[:, 1:].mean(dim=1),
            "maps": maps,
        }[features]
    assert report["output"]["features"]["shape"] == ["batch", *want.shape[1:]]
    torch.testing.assert_close(load_exported(file)(images), want, rtol=0, atol=1e-4)


def test_features_that_a_model_lacks(samples, tmp_path):
    entry = find_entry("simple_vit_tiny_patch14_224")
    model = randomize_(entry.build(**entry.tiny)).eval()
    with pytest.raises(ValueError, match="SimpleViT has no class token here: take --features mean"):
        write(model, tmp_path / "a.pt2", "pt2", samples, classes=(), output="features", features="cls")


@pytest.fixture(scope="module")
def any_size() -> VisionModel:
    entry = find_entry("vit_tiny_patch16_224")
    options = {"num_classes": 10, "depth": 1, "positions": Learned(dynamic_img_size=True)}
    return randomize_(entry.build(**{**entry.tiny, **options})).eval()


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("vit_small_patch16_dinov3", None),
        ("vit_small_patch16_rope_mixed_224", None),
        ("eva02_tiny_patch14_224", "rope"),
        ("deit_tiny_distilled_patch16_224", Learned(dynamic_img_size=True)),
    ],
)
def test_other_positions_on_images_of_any_size(tmp_path, name, positions):
    """Rotations are computed for the grid of each image; `export_model` compares three more sizes."""
    entry = find_entry(name)
    chosen = {} if positions is None else {"positions": positions}
    model = randomize_(entry.build(**{**entry.tiny, "depth": 1, **chosen})).eval()
    noise = random_samples(preprocessing_for(model), 3)
    report = write(model, tmp_path / "a.pt2", "pt2", noise, classes=(), dynamic_size=True)
    assert report["input"]["images"]["multiple_of"] == list(model.grid.patch)
    assert len(report["verified_sizes"]) == 3


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("pt2", ".pt2")])
def test_images_of_any_size(any_size, tmp_path, format, suffix):
    noise = random_samples(preprocessing_for(any_size), 5)
    file = tmp_path / f"a{suffix}"
    report = write(any_size, file, format, noise, classes=(), dynamic_size=True)
    assert report["input"]["images"]["shape"] == ["batch", 3, "height", "width"]
    assert len(report["verified_sizes"]) == 3
    images = torch.randn(3, 3, 48, 20)
    with torch.no_grad():
        want = any_size(images).softmax(1)
    torch.testing.assert_close(load_exported(file)(images), want, rtol=0, atol=1e-5)
    # `vit bench` times it at the model's own size
    assert file_step(str(file), Cell("forward", "float32", 2))().shape == (2, 10)


def test_a_file_that_takes_one_size_is_refused(any_size, tmp_path, monkeypatch):
    """Its own size, on which images are compared, would not show it."""

    def load(file, precision):
        run, size = formats.pt2.load(file, precision), any_size.image_size
        return lambda images: run(torch.nn.functional.interpolate(images, size))

    monkeypatch.setitem(formats.FORMATS, "pt2", replace(formats.pt2.FORMAT, load=load))
    noise = random_samples(preprocessing_for(any_size), 5)
    with pytest.raises(ExportError, match=r"on images of \d+ x \d+ outputs differ by"):
        write(any_size, tmp_path / "a.pt2", "pt2", noise, classes=(), dynamic_size=True)
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_refused_by_name(model, any_size, samples, tmp_path):
    with pytest.raises(ExportError, match=r"ViT takes images of one size.*Learned\(dynamic_img_size=True\)"):
        write(model, tmp_path / "a.pt2", "pt2", samples, dynamic_size=True)
    with pytest.raises(ExportError, match="format torchscript takes images of one size: take --format onnx"):
        write(any_size, tmp_path / "a.ts", "torchscript", samples, dynamic_size=True)


def test_unknown_layers_to_keep(model, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "write_float", lambda job, file: pytest.fail("a graph was written"))
    with pytest.raises(ExportError, match=r"no layer is named 'haed' to keep; layers are .*head"):
        write(
            model,
            tmp_path / "tiny.onnx",
            "onnx",
            samples,
            precision="int8",
            calibration=samples,
            keep=("haed",),
        )


def test_noise_does_not_verify_int8(model, tmp_path):
    noise = random_samples(preprocessing_for(model))
    with pytest.raises(ExportError, match="int8 is verified on images"):
        write(model, tmp_path / "tiny.onnx", "onnx", noise, precision="int8", calibration=noise)


def test_missing_packages_are_named():
    nncf = replace(formats.FORMATS["openvino"], int8_packages=("no_such",))
    with pytest.raises(ExportError, match=r"openvino in int8 needs no_such: pip install -e '.\[nncf\]'"):
        nncf.check_quantization("openvino", "static")
    absent = Format(
        ".x", lambda job, file: {}, lambda file, precision: torch.nn.Identity(), ("fp32",), ("no_such",)
    )
    with pytest.raises(ExportError, match=r"needs no_such: pip install -e '.\[export\]'"):
        absent.check("x", "fp32")


@pytest.mark.parametrize("name", ["levit_128s", "videomae_small_patch16_224"])
def test_other_architectures(tmp_path, name):
    entry = find_entry(name)
    model = randomize_(entry.build(**entry.tiny)).eval()
    noise = random_samples(preprocessing_for(model), 5)
    report = write(model, tmp_path / "tiny.onnx", "onnx", noise, classes=())
    assert report["verification"]["largest_difference"] < 1e-4


PAGE = (ROOT / "docs" / "deploy.md").read_text()


@pytest.fixture(scope="module")
def documented(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder that the documentation's Python programs worked in, and what they computed."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("deploy")
    names: dict[str, Any] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _, code in blocks(PAGE):
            exec(compile(code, "deploy.md", "exec"), names)
    with torch.no_grad():
        photo = create_transform(names["model"])(Image.open(folder / "photo.jpg"))[None]
        names["want"] = names["model"](photo).softmax(1)
    return folder, names


def program(language: str) -> str:
    """Return the documentation's program in a language."""
    match = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    assert match is not None
    return match[1]


@pytest.mark.parametrize("found", ["by_onnx", "by_torch", "by_openvino"])
def test_the_programs_of_the_documentation_decide_as_the_model(documented, found):
    """They prepare the image by themselves, with Pillow and NumPy."""
    _, names = documented
    torch.testing.assert_close(torch.as_tensor(names[found]), names["want"], rtol=0, atol=1e-3)


def test_the_program_for_executorch(model, documented, monkeypatch):
    """It shares `prepare` with those before it; a model of twelve layers takes a minute to lower."""
    pytest.importorskip("executorch")
    folder, names = documented
    monkeypatch.chdir(folder)
    prep = preprocessing_for(model)
    options = {"prep": prep, "samples": random_samples(prep, 3), "name": "example", "classes": CLASSES}
    export_model(model, "model.pte", "executorch", **options)
    with executorch_format.quiet():
        exec(compile(program("python executorch"), "deploy.md", "exec"), names)
    with torch.no_grad():
        want = model(create_transform(model)(Image.open("photo.jpg"))[None]).softmax(1)
    torch.testing.assert_close(names["by_executorch"], want, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def of_bytes(documented) -> tuple[Path, torch.Tensor]:
    """A folder with an image of the model's size and a file that takes bytes; and what the model says."""
    folder, names = documented
    model, prep = names["model"], preprocessing_for(names["model"])
    picture = Image.open(folder / "photo.jpg").resize((64, 64))
    picture.save(folder / "small.png")
    picture.save(folder / "small.ppm")
    classes = ("cat", "dog", "flower")
    options = {"prep": prep, "samples": random_samples(prep, 3), "name": "example", "classes": classes}
    export_model(model, folder / "bytes.onnx", "onnx", normalize_inside=True, **options)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        return folder, model(Normalize(prep)(pixels)).softmax(1)


def check_lines(text: str, want: torch.Tensor) -> None:
    """Check what a program printed."""
    lines = [line.split() for line in text.splitlines()]
    assert [name for name, _ in lines] == ["cat", "dog", "flower"]
    found = torch.tensor([[float(probability) for _, probability in lines]])
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4)


def test_the_program_in_cpp(of_bytes):
    folder, want = of_bytes
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"), None)
    if library is None:
        pytest.skip("this build of onnxruntime has no shared library of its own")
    (folder / "libonnxruntime.so").symlink_to(library)
    (folder / "libonnxruntime.so.1").symlink_to(library)
    (folder / "classify.cpp").write_text(program("cpp"))
    check = [
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        "-x",
        "c++",
        "-include",
        "onnxruntime_cxx_api.h",
        "/dev/null",
    ]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        pytest.skip("g++ does not find ONNX Runtime's headers: name their folder in CPATH")
    build = [
        "g++",
        "-std=c++17",
        "classify.cpp",
        "-o",
        "classify",
        "-L.",
        "-lonnxruntime",
        "-Wl,-rpath,$ORIGIN",
    ]
    subprocess.run(build, cwd=folder, check=True)
    run = ["./classify", "bytes.onnx", "small.ppm"]
    check_lines(subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True).stdout, want)
    assert subprocess.run(["./classify", "bytes.onnx", "small.png"], cwd=folder, check=False).returncode == 1


def test_the_page_for_a_browser(of_bytes, tmp_path):
    folder, want = of_bytes
    runtime = os.environ.get("ONNXRUNTIME_WEB")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if runtime is None:
        pytest.skip("npm install onnxruntime-web, and name its folder dist in ONNXRUNTIME_WEB")
    if browser is None or driver is None:
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    for file in Path(runtime).glob("ort*wasm*"):
        (tmp_path / file.name).symlink_to(file)
    shutil.copy(folder / "bytes.onnx", tmp_path)
    (tmp_path / "index.html").write_text(program("html"))
    handler = partial(Quiet, directory=str(tmp_path))
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument("--force-color-profile=srgb")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            window.get(f"http://127.0.0.1:{server.server_port}/")
            window.find_element("id", "file").send_keys(str(folder / "small.png"))
            WebDriverWait(window, 60).until(lambda page: page.find_element("id", "result").text)
            check_lines(window.find_element("id", "result").text, want)
        finally:
            window.quit()
            server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """A web server that does not log."""

    def log_message(self, format: str, *values: Any) -> None:
        """Log nothing."""
