"""Features of images as files, against the model itself."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from tests.cli.test_use import answer
from tests.papers.reference import images as random_images
from vit_pytorch import ViT, create_model
from vit_pytorch.analysis.report.places import names_of_prefix
from vit_pytorch.cli import Status, main
from vit_pytorch.data import eval_transform, load_images
from vit_pytorch.preprocessing import preprocessing_for
from vit_pytorch.registry import find_entry
from vit_pytorch.training.features import check_features, compute_features
from vit_pytorch.training.probing import embed


def expected(folder: Path, images: Path, kind: str) -> torch.Tensor:
    """The features of all images at once."""
    model = create_model(folder)
    prep = preprocessing_for(model)
    transform = eval_transform(prep)
    batch = torch.stack([transform(image) for _, image in load_images([images], channels=prep.channels)])
    with torch.no_grad():
        tokens = model.forward_features(batch)
        prefix = model.num_prefix_tokens
        return {
            "pooled": lambda: embed(model, batch),
            "cls": lambda: tokens[:, 0],
            "mean": lambda: tokens[:, prefix:].mean(1),
            "patches": lambda: tokens[:, prefix:],
        }[kind]()


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with a class token and no classifier."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {
        "image_size": 20,
        "patch_size": 4,
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "dim_head": 8,
        "mlp_dim": 16,
    }
    ViT(**sizes, num_classes=0, channels=1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["pooled", "cls", "mean", "patches"])
def test_arrays_and_tables_hold_the_models_features(
    kind: str, saved_vit: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_folder / "one"
    features = expected(saved_vit, images, kind)
    command = ["embed", saved_vit, images, f"--features={kind}", "--batch_size=7"]
    for name in ("found.npz", "found.parquet"):
        said = answer(capsys, *command, "--output", tmp_path / name)
        assert said == {"output": str(tmp_path / name), "images": 20, "shape": list(features.shape[1:])}
    arrays = np.load(tmp_path / "found.npz")
    torch.testing.assert_close(torch.from_numpy(arrays["features"]), features, rtol=1e-4, atol=1e-5)
    assert arrays["paths"].tolist() == [str(path) for path, _ in load_images([images], channels=1)]
    table = pandas.read_parquet(tmp_path / "found.parquet")
    assert table["path"].tolist() == arrays["paths"].tolist()
    rows = np.stack(table["features"].tolist()).reshape(features.shape)
    np.testing.assert_array_equal(rows, arrays["features"])


@pytest.mark.parametrize(
    "name",
    [
        *("cait_xxs24_224", "xcit_nano_12_p16_224", "volo_d1_224", "crossvit_tiny_240"),
        *("deit_small_patch16_224_ats", "lookupvit_base_patch16_224_3x3", "coat_tiny"),
    ],
)
def test_the_class_token_is_that_of_the_final_norm(name: str) -> None:
    """Also where it comes after the last layer of patches, or tokens are dropped or merged there."""
    entry = find_entry(name)
    torch.manual_seed(0)
    model = entry.build(**entry.tiny).eval()
    pictures = random_images(*model.image_size)
    check_features(model, "cls")
    found = compute_features(model, pictures, "cls")
    if name == "coat_tiny":
        # each of three scales has one, of which the classifier sees a weighted sum
        assert found.equal(model.forward_features(pictures)[:, 2])
        assert names_of_prefix(model) == [f"class token of scale {scale}" for scale in (2, 3, 4)]
    else:
        assert found.equal(compute_features(model, pictures, "pooled"))


def test_features_of_a_run(digits_run: Path, image_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.npz"
    assert main(["embed", str(digits_run), str(image_folder / "two"), f"--output={file}", "--workers=1"]) == 0
    features = expected(digits_run, image_folder / "two", "pooled")
    torch.testing.assert_close(torch.from_numpy(np.load(file)["features"]), features, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_embedded(
    digits_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["embed", str(digits_run), str(image_folder / "one")]
    assert main([*command, "--output=found.txt"]) == Status.USAGE
    assert "--output must end in .npz or .parquet, got found.txt" in capsys.readouterr().err
    # the digits' recipe pools by the mean, without a class token
    assert main([*command, f"--output={tmp_path / 'x.npz'}", "--features=cls"]) == Status.USAGE
    assert "has no class token here: take --features mean or pooled" in capsys.readouterr().err
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<html>")
    with pytest.raises(SystemExit) as leave:
        main(
            ["embed", str(digits_run), str(bad), str(image_folder / "one"), f"--output={tmp_path / 'x.npz'}"]
        )
    assert leave.value.code == Status.DATA
    assert len(np.load(tmp_path / "x.npz")["features"]) == 20
    with pytest.warns(UserWarning, match="skipped"):
        assert (
            main(["embed", str(digits_run), str(bad), f"--output={tmp_path / 'y.npz'}", "--on-bad=skip"]) != 0
        )
    assert "none of the images could be decoded" in capsys.readouterr().err
    assert not (tmp_path / "y.npz").exists()


def test_a_run_has_a_model_card(digits_run: Path) -> None:
    card = (digits_run / "model" / "README.md").read_text()
    summary = json.loads((digits_run / "summary.json").read_text())
    assert f"accuracy {summary['test']['accuracy']:.2%}" in card
    for part in (
        "## Figures",
        "## Use",
        "## Data",
        "## Training",
        "## Limits",
        "vit predict FOLDER photo.jpg",
    ):
        assert part in card
    assert str(digits_run) not in card
    assert "None" not in card
    assert "\n\n\n" not in card


def test_figures_by_a_column(
    digits_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"zero": "0", "one": "1", "two": "2"}
    lines = ["image,label,split,camera,age"]
    ages = ("10", "9", "", "old", "-1.5")
    for name, label in names.items():
        for i in range(20):
            split = "test" if i % 2 else "train" if i % 4 else "val"
            camera = "left" if i % 3 else "right"
            lines.append(f"{image_folder / name / f'{i}.png'},{label},{split},{camera},{ages[i % 5]}")
    # the model has ten classes, and so must the data
    for label in range(3, 10):
        (tmp_path / f"{label}.png").write_bytes((image_folder / "one" / "1.png").read_bytes())
        lines.append(f"{label}.png,{label},train,left,9")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    found = answer(capsys, "evaluate", digits_run, f"--data=csv:{tmp_path / 'table.csv'}", "--by=camera")
    groups = found["by"]["camera"]
    assert {value: group["images"] for value, group in groups.items()} == {"left": 21, "right": 9}
    right = sum(round(group["accuracy"] * group["images"]) for group in groups.values())
    assert right == round(found["accuracy"] * 30)
    # numbers by their size, then words
    by_age = answer(capsys, "evaluate", digits_run, f"--data=csv:{tmp_path / 'table.csv'}", "--by=age")
    assert list(by_age["by"]["age"]) == ["-1.5", "9", "10", "", "old"]
    assert main(["evaluate", str(digits_run), "--by=camera"]) == Status.USAGE
    assert "--by names a column of a table (csv:FILE), and the data are digits" in capsys.readouterr().err
