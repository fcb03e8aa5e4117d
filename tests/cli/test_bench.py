"""`vit bench`: rows of figures, forms that are left out, wrong options."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import flip_a_bit
from vit_pytorch.cli import Status, bench, main
from vit_pytorch.registry import find_entry

FAST = ["--rounds=2", "--threads=1", "--batch=1"]


def test_a_run_its_exported_file_and_a_format(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digits.pt2"
    assert main(["export", str(digits_run), "--format=pt2", f"--output={file}", "--images=2"]) == 0
    capsys.readouterr()
    assert main(["bench", str(digits_run), str(file), "--form=eager,pt2", *FAST, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["form"]) for row in found["rows"]] == [
        (str(digits_run), "eager"),
        (str(digits_run), "pt2"),
        (str(file), "pt2"),
    ]
    for row in found["rows"]:
        assert row["ms"] > 0
        assert row["spread_ms"] >= 0
        assert row["images_per_second"] == pytest.approx(1000 / row["ms"])
        assert row["peak_mib"] > 50
        assert row["parameters"] == found["rows"][0]["parameters"]
    assert found["rows"][0]["flops"] > 0
    assert found["rows"][0]["ratio"] is None
    assert found["left_out"] == []
    flip_a_bit(file)
    assert main(["bench", str(file), *FAST]) == Status.USAGE
    assert f"{file} is damaged: its SHA-256 is not that of {file}.json" in capsys.readouterr().err
    Path(f"{file}.json").write_text("{}")
    assert main(["bench", str(file), *FAST]) == Status.USAGE
    assert "is no report of an exported file: it lacks format, precision" in capsys.readouterr().err


def test_trained_models_and_tags_are_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["cct_2_3x2_32.cifar10", "levit_128s.fb_dist_in1k"]
    assert main(["bench", *names, "--json", *FAST]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)["rows"]] == names


def test_an_error_in_the_process_of_a_model_is_a_sentence(
    digits_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(digits_run / "model", tmp_path / "model"))
    flip_a_bit(model / "model.safetensors")
    assert main(["bench", str(model), *FAST]) == Status.MODEL
    said = capfd.readouterr().err
    assert said.startswith(f"vit: error: a model cannot be timed: {model}/model.safetensors is damaged")
    assert "Traceback" not in said
    assert main(["bench", str(model), *FAST, "--debug"]) == Status.MODEL
    assert "bench_worker.py" in capfd.readouterr().err


def test_training_of_exported_forms_is_left_out(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(digits_run), "--form=eager,onnx", "--mode=train", "--precision=bf16", *FAST]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["model", "form", "mode", "precision", "batch", "ms"]
    assert len(lines) == 3
    assert lines[2].startswith("left out: ours ")
    assert lines[2].endswith("train bf16: an exported file is not trained")


def test_int8_of_a_format(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(digits_run), "--form=eager,onnx", "--precision=fp32,int8", *FAST, "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["form"], row["precision"]) for row in found["rows"]] == [
        ("eager", "fp32"),
        ("onnx", "fp32"),
        ("onnx", "int8"),
    ]
    assert len(found["left_out"]) == 1
    assert found["left_out"][0].endswith("eager, forward int8: int8 is of exported formats")


def test_a_peer_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert main(["bench", "levit_128s", "--peer=timm"]) == Status.USAGE
    assert "--peer timm needs one more package: pip install timm" in capsys.readouterr().err


def test_timm_beside(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "levit_128s", "--peer=timm", "--rounds=1", "--threads=1", "--batch=1", "--json"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == ["timm levit_128s", "levit_128s"]
    assert rows[1]["ratio_to"] == "timm levit_128s eager"
    # one round does not show how much times vary
    assert rows[1]["ratio"] is None
    assert rows[1]["flops"] == pytest.approx(rows[0]["flops"], rel=0.02)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["levit_128s", "--form=onyx"], Status.USAGE, "--form takes eager, compile, onnx"),
        (["levit_128s", "--precision=int4"], Status.USAGE, "takes fp32, bf16, fp16, int8, got int4"),
        (
            ["levit_128s", "--precision=int8", "--form=eager,pt2"],
            Status.USAGE,
            (
                "nothing can be timed: ours levit_128s eager, forward int8: int8 is of exported formats; "
                "ours levit_128s pt2, forward int8: take --format onnx"
            ),
        ),
        (["levit_128s", "--batch=0"], Status.USAGE, "--batch takes integers of at least 1, with commas"),
        (["levit_128s", "--batch=8,a"], Status.USAGE, "with commas between, got 8,a"),
        (["levit_128s", "--merge_tokens=-1"], Status.USAGE, "--merge_tokens takes integers of at least 0"),
        (["levit_128s", "--threads=0"], Status.USAGE, "threads must be at least 1, got 0"),
        (["levit_128s", "levit_128s"], Status.USAGE, "got several times: ours levit_128s eager"),
        (["levit_128s", "--form=eager,eager"], Status.USAGE, "each model and form is timed once"),
        (["levit_128s", "--rounds=a"], Status.USAGE, "rounds must be an integer, got a"),
        (["levit_129"], Status.MODEL, "no model is named 'levit_129'"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
) -> None:
    assert main(["bench", *options]) == status
    assert message in capsys.readouterr().err


def test_merged_tokens_beside_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = find_entry("vit_tiny_patch16_224")
    entry.build(**{**entry.tiny, "image_size": 64}).save_pretrained(tmp_path)
    arguments = ["bench", str(tmp_path), "--merge_tokens=0,60", *FAST, "--json"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    for form, reason in (("executorch", "cannot merge tokens"), ("coreml", "runs on darwin only")):
        if form == "coreml" and sys.platform == "darwin":
            continue
        assert main([*arguments[:2], f"--form={form}", "--merge_tokens=60", *FAST]) == Status.USAGE
        said = capsys.readouterr().err
        assert f"{form}, merging 60, forward fp32: the format {reason}" in said
    assert [(row["form"], row["merge_tokens"]) for row in rows] == [
        ("eager", 0),
        ("eager", 60),
    ]
    assert rows[1]["flops"] < rows[0]["flops"]
    assert rows[1]["parameters"] == rows[0]["parameters"]
    assert main(["bench", str(tmp_path), "--merge_tokens=some", *FAST]) == Status.USAGE
    assert (
        "--merge_tokens takes integers of at least 0, with commas between, got some"
        in capsys.readouterr().err
    )
