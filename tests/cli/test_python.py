"""Training and predicting in Python, as by the command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vit_pytorch
from tests.cli.test_use import answer
from tests.forked import environment
from vit_pytorch import Predictor, create_model, fit
from vit_pytorch.cli.api import Run
from vit_pytorch.cli.layers import UsageError
from vit_pytorch.data import BadImageError, decode_image

Capture = pytest.CaptureFixture[str]
TINY = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16}


@pytest.fixture
def image(image_folder: Path) -> Path:
    return image_folder / "one" / "0.png"


def test_fit_is_the_command(
    digits_run: Path, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit(
        "digits",
        epochs=1,
        batch_size=64,
        accelerator="cpu",
        model=TINY,
        schedule={"warmup_epochs": 0},
        seed=np.int64(1),
        output=None,
        recipe=None,
    )
    assert run.folder.parent == tmp_path / "runs"
    assert (run.summary["epochs"], run.summary["seed"]) == (1, 1)
    assert run.evaluate().as_dict()["accuracy"] == run.summary["test"]["accuracy"]
    assert run.evaluate(split="val").images == 142
    assert run.model.num_classes == 10
    assert run.predictor(top=1)(image)["image"] == str(image)
    assert Run(digits_run).evaluate().images == 360


def test_several_devices_do_not_run_the_program_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fabric starts further processes as copies of the program, all of which would then run twice."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(
        ValueError, match=r"devices=2 would start this program again: start it by torchrun --nproc-per-node 2"
    ):
        fit("digits", devices=2, epochs=1, accelerator="cpu", model=TINY, output=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_torchrun_starts(tmp_path: Path) -> None:
    """Every process has the finished run, also while the first one still reports."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from vit_pytorch import fit\n"
        "from vit_pytorch.training import run as module\n"
        "report = module.report\n"
        "module.report = lambda *args, **options: (time.sleep(2), report(*args, **options))\n"
        f"run = fit('digits', devices=2, epochs=1, batch_size=64, accelerator='cpu', model={TINY},\n"
        f"          output={str(tmp_path / 'run')!r})\n"
        "sys.stderr.write(f\"finished {run.summary['epochs']}\\n\")\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(program)], capture_output=True, text=True, env=environment(), timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished 1") == 2


def test_settings_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown option '--epoch_number'"):
        fit("digits", epoch_number=3)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        fit(tmp_path / "nowhere", output=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": np.zeros((2, 8, 8))}, "data must be a path or a name, got ndarray"),
        ({"data": b"digits"}, "data must be a path or a name, got bytes"),
        ({"output": 5}, "output must be a path or a name, got int"),
        ({"model": torch.nn.Identity()}, "model must be text, .* a list or a mapping, got Identity"),
        ({"epochs": np.int64(0)}, "epochs must be at least 1, got 0"),
        ({"optimizer": {"lr": np.float32(-1)}}, r"lr must be .* got -1\.0"),
        ({"data.window": np.array([4095, 0])}, r"data\.window must be a range .* got \(4095\.0, 0\.0\)"),
        ({"batch_size": torch.tensor(1.5)}, "batch_size must be an integer, got 1.5"),
    ],
)
def test_settings_that_are_not_text(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        fit(**settings)
    assert list(tmp_path.iterdir()) == []


def test_a_predictor_answers_as_the_command(
    digits_run: Path, image_folder: Path, image: Path, capsys: Capture
) -> None:
    predict = Predictor(digits_run, batch_size=7)
    (expected,) = answer(capsys, "predict", digits_run, image)
    found = predict(image)
    assert predict(str(image)) == found
    assert found["image"] == expected["image"]
    assert [each["class"] for each in found["top"]] == [each["class"] for each in expected["top"]]
    assert next(predict.stream(str(image))) == found
    folder = predict(image_folder / "one")
    assert [found["image"] for found in folder] == [
        found["image"] for found in answer(capsys, "predict", digits_run, image_folder / "one")
    ]
    assert predict([image, image_folder / "two" / "1.png"])[1]["image"].endswith("1.png")
    assert len(predict(str(image_folder / "*" / "3.png"))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 1.5}, "top must be an integer, got 1.5"),
        ({"top": True}, "top must be an integer, got True"),
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"batch_size": "8"}, "batch_size must be an integer, got '8'"),
        ({"workers": 1.0}, "workers must be an integer, got 1.0"),
        ({"workers": -1}, r"workers must be in \[0, 256\], got -1"),
        ({"tta": "no"}, "tta must be True or False, got 'no'"),
        ({"calibrated": 1}, "calibrated must be True or False, got 1"),
        ({"device": 0}, "device must be a string, a device or None, got 0"),
    ],
)
def test_a_predictors_options(options: dict[str, object], message: str, digits_run: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(digits_run, **options)


def test_what_a_predictor_is_not_made_of(digits_run: Path, image: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder of a run or .* or a SavedClassifier, got ViT"):
        Predictor(create_model(digits_run))
    with pytest.raises(ValueError, match="step is for videos, which this model does not take"):
        next(Predictor(digits_run).stream([image], step=2))


def test_images_in_memory_give_what_their_files_do(digits_run: Path, image: Path) -> None:
    predict = Predictor(digits_run)
    expected = predict(image)["top"]
    opened = Image.open(image)
    pixels = decode_image(image, channels=1)
    forms = [opened, opened.convert("RGB"), np.array(opened), pixels, pixels.float() / 255]
    forms += [pixels.expand(3, -1, -1), np.array(opened.convert("RGB"))]
    forms += [(pixels.float() / 255).to(kind) for kind in (torch.float64, torch.float16)]
    for form in forms:
        found = predict(form)["top"]
        assert [each["class"] for each in found] == [each["class"] for each in expected]
        assert [each["probability"] for each in found] == pytest.approx(
            [each["probability"] for each in expected], abs=1e-3
        )
    assert len(predict(forms)) == len(predict(torch.stack([pixels] * 9))) == 9


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (["a.png", np.zeros((4, 4), np.uint8)], "a list holds paths or images, not both"),
        (
            np.zeros((3, 4, 5), np.uint8),
            r"\(h, w, c\), of which c is 1 here .*, got uint8 of shape \(3, 4, 5\)",
        ),
        (np.zeros((4, 4), np.float32), r"an array holds bytes .*, got float32 of shape \(4, 4\)"),
        (torch.full((1, 4, 4), 3.0), r"floats from 0 to 1.*from 3 to 3"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"of shape \(c, h, w\), got torch.uint8 of shape \(4, 4\)"),
        ({"image": 1}, "got dict"),
        (np.ma.masked_array(np.zeros((4, 4), np.uint8), mask=np.eye(4)), r"must have no mask.*array\.filled"),
        (b"\xff\xd8", "got bytes"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 of shape \(0, 4, 3\)"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), r"got torch.uint8 of shape \(3, 0, 4\)"),
    ],
)
def test_what_is_no_image(form: object, message: str, digits_run: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(digits_run)(form)


@pytest.mark.parametrize(
    "address", ["https://example.org/x.jpg", "S3://bucket/x.jpg", "git+ssh://host/x.jpg"]
)
def test_addresses_are_not_fetched(address: str, digits_run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="addresses are not fetched: download it first"):
        Predictor(digits_run)(address)


def test_arrays_of_16_bits_are_scaled_as_files(digits_run: Path, tmp_path: Path) -> None:
    array = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(array).save(tmp_path / "wide.png")
    predict = Predictor(digits_run, top=10)
    expected = predict(tmp_path / "wide.png")["top"]
    assert predict(array)["top"] == expected
    assert predict(array.astype(">u2"))["top"] == expected
    with pytest.warns(UserWarning, match="of 16 bits are below 256, so that it is black"):
        predict(array // 257)


def test_pillow_images_without_a_range(digits_run: Path) -> None:
    with pytest.raises(BadImageError, match="Pillow mode 'F' has no range of its own"):
        Predictor(digits_run)(Image.new("F", (8, 8)))


def test_workers_read_the_same(digits_run: Path, image_folder: Path, capsys: Capture) -> None:
    (image_folder.parent / "bad.png").write_bytes(b"<html>")
    alone, helped = (
        answer(capsys, "predict", digits_run, image_folder / "one", "--batch_size=6", f"--workers={workers}")
        for workers in (0, 2)
    )
    assert alone == helped
    with pytest.raises(BadImageError, match=r"bad\.png"):
        list(Predictor(digits_run, workers=1).stream([image_folder.parent / "bad.png"]))


def test_ten_views_are_averaged(digits_run: Path, image: Path, capsys: Capture) -> None:
    predict = Predictor(digits_run, tta=True, top=10)
    views = predict.prepare(Image.open(image))
    size = predict.preprocessing.image_size
    assert views.shape == (10, 1, *size)
    # corners: upper left and right, lower left and right; then those of the mirror image
    assert torch.allclose(views[5:9], views[[1, 0, 3, 2]].flip(-1), atol=1e-6)
    with torch.no_grad():
        expected = predict.model(views).softmax(1).mean(0)
    found = {each["class"]: each["probability"] for each in predict(image)["top"]}
    assert found == pytest.approx({str(i): float(expected[i]) for i in range(10)}, abs=1e-5)
    (said,) = answer(capsys, "predict", digits_run, image, "--tta=true", "--top=10")
    assert said["top"][0]["probability"] == pytest.approx(max(found.values()), abs=1e-5)


def test_calibrated_probabilities(digits_run: Path, image: Path) -> None:
    temperature = json.loads((digits_run / "summary.json").read_text())["test"]["temperature"]
    predict = Predictor(digits_run, calibrated=True, top=10)
    with torch.no_grad():
        expected = (predict.model(predict.prepare(Image.open(image))[None])[0] / temperature).softmax(0)
    assert predict(image)["top"][0]["probability"] == pytest.approx(float(expected.max()), rel=1e-4)


def test_the_package_stays_light() -> None:
    code = (
        "import sys, vit_pytorch; print(vit_pytorch.Predictor.__name__);"
        "print(sorted({'lightning', 'torchmetrics'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Predictor", "[]"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vit_pytorch.nothing
