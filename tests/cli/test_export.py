"""`vit export`: files from runs and named models, verified on the run's own images or on others."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import TINY, train
from vit_pytorch import Predictor
from vit_pytorch.cli import Status, main
from vit_pytorch.export.deploy import load_exported


def test_a_run_is_verified_on_its_validation_images(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "digits.onnx"
    assert main(["export", str(digits_run), "--format=onnx", f"--output={file}"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{file}: onnx fp32, ")
    assert "142 images (the run's validation images)" in line
    assert "0 decisions flip" in line
    report = json.loads(Path(f"{file}.json").read_text())
    summary = json.loads((digits_run / "summary.json").read_text())
    assert report["verification"]["accuracy"] == pytest.approx(summary["val"]["accuracy"])
    assert report["classes"] == list("0123456789")
    shape = {"shape": ["batch", 10], "dtype": "float32"}
    assert report["output"] == {"probabilities": {**shape, "temperature": 1.0}}


def test_json_and_preprocessing_inside(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digits.pt2"
    arguments = [str(digits_run), "--format=pt2", f"--output={file}", "--with-preprocessing", "--images=10"]
    assert main(["export", *arguments, "--verify=digits", "--outputs=logits", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["input"]["images"]["dtype"] == "uint8"
    assert (report["verification"]["images"], report["verification"]["source"]) == (10, "digits")
    assert list(report["output"]) == ["logits"]
    summary = json.loads((digits_run / "summary.json").read_text())
    assert report["problem"] == {"task": "classify", "temperature": summary["test"]["temperature"]}


def test_calibrated_probabilities(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file gives the probabilities of `vit predict --calibrated`; the report says what divides logits."""
    file = tmp_path / "digits.pt2"
    arguments = [str(digits_run), "--format=pt2", f"--output={file}", "--images=10", "--calibrated", "--json"]
    assert main(["export", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    temperature = report["output"]["probabilities"]["temperature"]
    assert temperature == report["problem"]["temperature"] != 1
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    predictor = Predictor(digits_run, calibrated=True, top=10)
    expected = {each["class"]: each["probability"] for each in predictor(image)["top"]}
    found = load_exported(file)(predictor.prepare(image)[None])[0].tolist()
    assert found == pytest.approx([expected[name] for name in report["classes"]], abs=1e-5)
    assert main(["export", *arguments, "--outputs=logits"]) == 2
    assert "--calibrated is for probabilities of classes" in capsys.readouterr().err


def test_features_of_a_classifier(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digits.pt2"
    arguments = [str(digits_run), "--format=pt2", f"--output={file}", "--images=10", "--features=mean"]
    assert main(["export", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["output"]) == ["features"]
    assert report["verification"]["flips"] is None


def test_what_this_machine_cannot_run_is_said_to_be_unverified(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("coremltools")
    file = tmp_path / "digits.mlpackage"
    assert main(["export", str(digits_run), "--format=coreml", f"--output={file}"]) == 0
    line = capsys.readouterr().out
    if sys.platform == "darwin":
        assert "0 decisions flip" in line
    else:
        assert "NOT VERIFIED, since format coreml does not run here" in line
        assert f"python -m vit_pytorch.export.check {file}" in line


def test_a_folder_of_images_labels_them_by_its_folders(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train("--output", run, "--data", image_folder, "--epochs=2", *TINY, "--batch-size=8") == 0
    capsys.readouterr()
    arguments = ["export", str(run), "--format=pt2", f"--output={tmp_path / 'a.pt2'}", "--json"]
    assert main([*arguments, f"--verify={image_folder}"]) == 0
    found = json.loads(capsys.readouterr().out)["verification"]
    assert (found["images"], found["labelled"], found["source"]) == (60, 60, str(image_folder))
    assert main([*arguments, f"--verify={image_folder / 'one' / '1*.png'}"]) == 0
    found = json.loads(capsys.readouterr().out)["verification"]
    assert (found["images"], found["labelled"]) == (11, 11)


def test_images_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"--output={tmp_path / 'a.pt2'}"
    with pytest.warns(UserWarning, match="levit_128s has random weights"):
        assert main(["export", "levit_128s", "--format=pt2", output]) == 2
    message = capsys.readouterr().err
    assert (
        "levit_128s is no run with images of its own: name some by --verify FOLDER, or --verify random"
        in message
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--format=onyx"], Status.USAGE, "format must be one of onnx"),
        (["--format=tensorrt"], Status.USAGE, "trtexec"),
        (
            ["--format=pt2", "--dynamic=width"],
            Status.USAGE,
            "--dynamic must be batch, or batch,size, got width",
        ),
        (["--format=pt2", "--dynamic=batch,size"], Status.USAGE, "takes images of one size"),
        (["--format=pt2", "--features=tokens"], Status.USAGE, "features"),
        (["--format=pt2", "--calibrate=x"], Status.USAGE, "--calibrate is for --precision int8"),
        (["--format=pt2", "--opset=20"], Status.USAGE, "opset is for format onnx, got pt2"),
        (["--format=pt2", "--images=0"], Status.USAGE, "images must be at least 1, got 0"),
        (
            ["--format=pt2", "--quantization=dynamic"],
            Status.USAGE,
            "quantization is for int8, got precision fp32",
        ),
        (["--format=pt2", "--merge_tokens=-1"], Status.USAGE, "merge_tokens must be at least 0, got -1"),
        (["--format=pt2", "--batch_size=x"], Status.USAGE, "batch_size must be an integer, got x"),
        ([], Status.USAGE, "vit export needs --format"),
        (["--format=pt2", "--precision=fp8"], Status.USAGE, "precision"),
        (["--format=pt2", "--verify=nowhere"], Status.DATA, "nowhere"),
        (["--format=onnx"], Status.USAGE, "a file of format onnx is called"),
        # what does not fit together is said before the model and the images are opened
        (["--format=onnx", "--verify=nowhere"], Status.USAGE, "a file of format onnx is called"),
        (["--format=pt2", "--verify=nowhere", "--dynamic=batch,size"], Status.USAGE, "images of one size"),
        (["--format=pt2", "--verify=nowhere", "--keep=head"], Status.USAGE, "keep is for int8"),
    ],
)
def test_wrong_options(
    digits_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    message: str,
) -> None:
    arguments = ["export", str(digits_run), f"--output={tmp_path / 'a.pt2'}", *options]
    assert main(arguments) == status
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
