"""Images at their own aspect ratio: sizes, loading, and a run that trains, evaluates and predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made_pictures import picture

from vit_pytorch.cli import main
from vit_pytorch.data import Augmentation, ImageData
from vit_pytorch.preprocessing import fit_tokens
from vit_pytorch.training.saved import load_classifier

SIZES = [(20, 30), (30, 20), (9, 50), (33, 33), (8, 8)]


def test_sizes_keep_the_budget_and_the_aspect_ratio():
    patch, largest = (4, 8), (64, 128)
    for height in (1, 5, 16, 63, 200, 1000):
        for width in (1, 7, 32, 129, 400, 3000):
            for budget in (1, 2, 7, 64, 300):
                size = fit_tokens((height, width), patch=patch, largest=largest, max_tokens=budget)
                rows, columns = size[0] // 4, size[1] // 8
                assert size == (rows * 4, columns * 8)
                assert 1 <= rows * columns <= budget
                assert size[0] <= 64
                assert size[1] <= 128
                assert size[0] < height + 4
                assert size[1] < width + 8


@pytest.mark.parametrize(
    ("size", "budget", "want"),
    [
        ((64, 64), 16, (64, 64)),
        ((640, 640), 16, (64, 64)),
        ((320, 640), 32, (64, 128)),
        ((100, 60), 1000, (96, 64)),
        ((24, 1000), 64, (16, 128)),
        ((90, 90), 30, (80, 80)),
        ((90, 42), 14, (64, 48)),
    ],
)
def test_size_of(size, budget, want):
    """The fifth is held by the largest width; in the last, 5 x 3 patches would be one too many."""
    assert fit_tokens(size, patch=(16, 16), largest=(128, 128), max_tokens=budget) == want


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of pictures of five sizes: dark and light ones."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            made = picture(100 * label + i, SIZES[i % len(SIZES)])
            made.point(lambda value, label=label: value // 2 + 127 * label).save(root / name / f"{i:02}.png")
    return root


def test_batches_are_lists(folder):
    data = ImageData(
        str(folder),
        image_size=32,
        batch_size=8,
        max_tokens=20,
        patch_size=(4, 4),
        augmentation=Augmentation(crop_scale=(0.5, 1.0), flip=0.5, random_erasing=0.5),
    )
    seen = set()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for images, labels in loader:
            assert isinstance(images, list)
            assert len(images) == len(labels)
            for image in images:
                assert image.dtype == torch.float32
                assert image.shape[0] == 3
                assert image.shape[1] % 4 == image.shape[2] % 4 == 0
                assert image.shape[1] * image.shape[2] <= 20 * 16
                seen.add(tuple(image.shape[1:]))
    assert len(seen) > 4


def test_what_needs_one_size_is_refused(folder):
    for augmentation in (Augmentation(mixup=0.2), Augmentation(cutmix=1.0), Augmentation(shift=2)):
        with pytest.raises(ValueError, match="shift, mixup and cutmix must be 0, got"):
            ImageData(str(folder), max_tokens=20, augmentation=augmentation)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        ImageData(str(folder), max_tokens=0).preprocessing  # noqa: B018


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("name", ["navit_tiny_patch16", "navit_nested_tiny_patch16"])
def test_run_on_mixed_sizes(folder, tmp_path, capsys, name):
    run = tmp_path / "run"
    model = ["image-size=32", "patch-size=4", "dim=16", "depth=1", "heads=2", "dim-head=8", "mlp-dim=16"]
    options = [f"--model.{option}" for option in [f"name={name}", "token-dropout-prob=0.2", *model]]
    options += ["--data.max-tokens=30", "--data.test-fraction=0.2", "--epochs=6", "--batch-size=8"]
    options += ["--accelerator=cpu", "--workers=0", "--optimizer.lr=0.01", "--schedule.warmup-epochs=0"]
    options += ["--augmentation.mixup=0", "--augmentation.cutmix=0", "--augmentation.shift=0"]
    source = f"--data.source={folder}"
    assert main(["train", f"--output={run}", source, *options]) == 0
    saved = load_classifier(run)
    assert saved.preprocessing.max_tokens == 30
    assert saved.preprocessing.patch_size == (4, 4)
    assert json.loads((run / "summary.json").read_text())["test"]["accuracy"] > 0.9
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
    assert main(["predict", str(run), str(folder / "light"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 20
    assert sum(entry["top"][0]["class"] == "light" for entry in found) > 17


def test_models_of_one_size_are_refused(folder, tmp_path, capsys):
    options = ["--model.name=vit_tiny_patch16_224", "--data.max-tokens=30", f"--data.source={folder}"]
    assert main(["train", f"--output={tmp_path / 'run'}", *options]) != 0
    assert "such as navit_small_patch16; got vit_tiny_patch16_224" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*"))
