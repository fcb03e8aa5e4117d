"""Trained models that ship with the package: offline, as accurate as their cards say, and small."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from vit_pytorch import Predictor, create_model
from vit_pytorch.cli import main
from vit_pytorch.cli.finetune import start_layer
from vit_pytorch.cli.use import evaluation_loader
from vit_pytorch.data import open_data
from vit_pytorch.preprocessing import preprocessing_for
from vit_pytorch.trained import FOLDER, list_trained, read_card
from vit_pytorch.training.evaluation import evaluate
from vit_pytorch.training.predictor import open_classifier
from vit_pytorch.training.probing import embed, measure, read_features

ROOT = Path(__file__).parents[2]
# names the folder in which the data of the trained models are
VARIABLE = "VIT_TRAINED_DATA"
DIGITS = "vit_patch4_24.digits"


CLASSIFIERS = [name for name in list_trained() if read_card(name)["classes"]]
BACKBONES = [name for name in list_trained() if name not in CLASSIFIERS]


def open_splits(card, tmp_path):
    """Open the data of a card, where they are at hand."""
    folder = os.environ.get(VARIABLE, "")
    if "{folder}" in card["source"] and not folder:
        pytest.skip(f"{VARIABLE} does not name a folder with {card['data']}")
    if card["archive"]:
        with tarfile.open(Path(folder) / card["archive"]) as archive:
            archive.extractall(tmp_path, filter="data")
        folder = tmp_path
    splits = open_data(card["source"].format(folder=folder), seed=card["split_seed"], test_fraction=0.2)
    assert len(splits.test) == card["images"]["test"]
    return splits


def part_of(images, count):
    return images.subset(torch.linspace(0, len(images) - 1, count).long())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_accuracy_is_that_of_the_card(name, tmp_path):
    card = read_card(name)
    splits = open_splits(card, tmp_path)
    count = card["part"]["images"]
    images = part_of(splits.test, count)
    saved = open_classifier(name)
    assert list(splits.classes) == card["classes"] == list(saved.classes)
    loader = evaluation_loader(
        images, saved.preprocessing, len(saved.classes), batch_size=100, workers=0, on_bad="stop"
    )
    found = evaluate(saved.model, [loader], saved.problem, saved.preprocessing).accuracy
    # other processors round otherwise: an image or two on the border between two classes
    assert found == pytest.approx(card["part"]["accuracy"], abs=2.5 / count)


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_worth_what_the_card_says(name, tmp_path):
    card = read_card(name)
    splits, part = open_splits(card, tmp_path), card["part"]
    model = create_model(name, pretrained=True).eval()
    known, asked = (
        read_features(
            lambda images: embed(model, images),
            evaluation_loader(
                part_of(images, count), preprocessing_for(model), 10, batch_size=100, workers=0, on_bad="stop"
            ),
            torch.device("cpu"),
        )
        for images, count in ((splits.train, part["known"]), (splits.test, part["images"]))
    )
    assert measure("knn", known, asked) == pytest.approx(part["knn"], abs=2.5 / part["images"])
    assert card["knn_accuracy"] > card["untrained"]["knn"]
    assert card["linear_accuracy"] > card["untrained"]["linear"]


@pytest.mark.parametrize("name", list_trained())
def test_files(name):
    card, state = read_card(name), load_file(FOLDER / name / "model.safetensors")
    size = (FOLDER / name / "model.safetensors").stat().st_size
    assert size == card["bytes"] <= 4_000_000
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float16}
    assert card["name"] == name
    if card["classes"]:
        assert card["accuracy"] >= card["accuracy_single_precision"]
    assert min(len(card[part]) for part in ("terms", "terms_judged", "command", "commit")) > 0


def test_the_wheel_holds_them(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(
        ROOT / "vit_pytorch", source / "vit_pytorch", ignore=shutil.ignore_patterns("__pycache__")
    )
    for file in ("pyproject.toml", "README.md", "LICENSE", "proven_vit.py"):
        shutil.copy(ROOT / file, source)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 40_000_000
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    digits = load_digits().images[:20]
    np.save(tmp_path / "digits.npy", np.rint(digits * (255 / 16)).astype(np.uint8))
    code = (
        "import numpy, vit_pytorch; from vit_pytorch import Predictor\n"
        "from vit_pytorch.trained import list_trained\n"
        f"answers = Predictor({DIGITS!r}, top=1)(list(numpy.load('digits.npy')))\n"
        "print(vit_pytorch.__file__)\n"
        "print(*list_trained())\n"
        "print(*[answer['top'][0]['class'] for answer in answers])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    file, names, answers = ran.stdout.splitlines()
    assert file.startswith(str(tmp_path / "installed"))
    assert tuple(names.split()) == list_trained()
    right = sum(int(a) == b for a, b in zip(answers.split(), load_digits().target[:20], strict=True))
    assert right >= 18


def test_named_with_weights_without_or_changed():
    trained, fresh = create_model(DIGITS, pretrained=True), create_model(DIGITS)
    assert trained.load_report.kept == ()
    assert trained.default_cfg["label_names"] == tuple("0123456789")
    assert fresh.load_report is None
    assert "label_names" not in fresh.default_cfg
    assert fresh.default_cfg["interpolation"] == trained.default_cfg["interpolation"] == "bilinear"
    assert not torch.equal(trained.head.weight, fresh.head.weight)
    larger = create_model(DIGITS, pretrained=True, image_size=48)
    assert larger.default_cfg["input_size"] == (1, 48, 48)
    with pytest.warns(UserWarning, match="have their initial values"):
        other = create_model(DIGITS, pretrained=True, num_classes=3)
    assert other.num_classes == 3
    assert "label_names" not in other.default_cfg
    with pytest.raises(ValueError, match="no model is named"):
        create_model("vit_patch4_24.digit", pretrained=True)


def test_answers_are_those_of_the_folder(tmp_path):
    images = [np.rint(image * (255 / 16)).astype(np.uint8) for image in load_digits().images[:5]]
    assert Predictor(DIGITS)(images) == Predictor(FOLDER / DIGITS)(images)


def test_commands(tmp_path, capsys):
    image = tmp_path / "3.png"
    Image.fromarray(np.rint(load_digits().images[3] * (255 / 16)).astype(np.uint8)).save(image)
    assert main(["predict", DIGITS, str(image), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["top"][0]["class"] == "3"
    assert main(["explain", DIGITS, str(image), "--output", str(tmp_path / "explained"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["top"][0]["class"] == "3"
    assert "random weights" not in (tmp_path / "explained" / "report.html").read_text(encoding="utf-8")
    assert main(["evaluate", DIGITS, "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(
        read_card(DIGITS)["accuracy"], abs=0.01
    )


def test_models_lists_them(capsys):
    assert main(["models", "--pretrained", "--json"]) == 0
    assert [card["name"] for card in json.loads(capsys.readouterr().out)] == list(list_trained())
    assert main(["models", "digits", "--pretrained"]) == 0
    card, shown = read_card(DIGITS), capsys.readouterr().out
    assert all(part in shown for part in (DIGITS, f"{card['accuracy']:.2%}", card["data"], card["terms"]))
    assert main(["models", "densenet", "--pretrained"]) == 2
    assert "vit models --pretrained" in capsys.readouterr().err


def test_finetuning_starts_from_one():
    assert start_layer(DIGITS) == start_layer(str(FOLDER / DIGITS))
