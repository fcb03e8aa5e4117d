"""Learning without labels goes on from trained weights, and what is kept is no worse than they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.cli.conftest import TINY
from tests.cli.test_pretrain import pretrain, settings
from vit_pytorch.cli import main
from vit_pytorch.create import load_model, open_model
from vit_pytorch.data import open_data
from vit_pytorch.trained import trained_folder
from vit_pytorch.training.history import read_lines, read_rows
from vit_pytorch.training.probing import embed

COMMON = ["--recipe=digits", "--accelerator=cpu", "--monitor.neighbours=5", "--monitor.pictures_every=null"]
LIVELY = ["--optimizer.lr=0.01", "--schedule.warmup_epochs=0"]
# far too high a rate for weights that know something
HARMFUL = ["--optimizer.lr=0.05", "--clip=null", "--schedule.warmup_epochs=0"]


@pytest.fixture(scope="module")
def data(idx_folder: Path) -> str:
    return f"--data=idx:{idx_folder}"


@pytest.fixture(scope="module")
def start(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that has learned something."""
    folder = tmp_path_factory.mktemp("runs") / "start"
    options = [
        "--model.stem=linear",
        "--model.pool=mean",
        "--epochs=8",
        "--optimizer.lr=0.005",
        "--ema=null",
        "--batch-size=32",
    ]
    assert main(["train", "--accelerator=cpu", data, *TINY, *options, "--output", str(folder)]) == 0
    return folder


def go_on(start: Path, data: str, folder: Path, *options: str) -> dict[str, Any]:
    """Go on by SimMIM; return the summary."""
    given = ["--method=simmim", data, "--weights", start, *COMMON, "--epochs=2", *options, "--output", folder]
    assert pretrain(*given) == 0
    return json.loads((folder / "summary.json").read_text())


def encoder(folder: Path) -> dict[str, torch.Tensor]:
    state = load_model(folder).state_dict()
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def test_weights_that_become_worse_are_not_kept(start: Path, data: str, tmp_path: Path) -> None:
    summary = go_on(start, data, tmp_path / "run", *HARMFUL)
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    before = summary["start_knn_accuracy"]
    assert max(row["val/knn_accuracy"] for row in rows) < before
    assert summary["knn_accuracy"]["val"] == pytest.approx(before)
    assert (summary["checkpoint"], summary["selected_by"]) == ("epoch-0000", "knn")
    kept, given = encoder(tmp_path / "run"), encoder(start)
    assert kept.keys() == given.keys()
    assert all(value.equal(given[name]) for name, value in kept.items())
    text = (tmp_path / "run" / "summary.md").read_text()
    assert f"nearest neighbours on val before the first step: {before:.2%}" in text
    assert "those with the best nearest neighbours in validation" in text


def test_the_last_weights_are_kept_where_that_is_asked_for(start: Path, data: str, tmp_path: Path) -> None:
    summary = go_on(start, data, tmp_path / "run", *HARMFUL, "--select=last")
    (*_, last) = read_rows(tmp_path / "run" / "metrics.csv")
    assert (summary["checkpoint"], summary["selected_by"]) == ("epoch-0002", "last")
    assert summary["start_knn_accuracy"] is None
    assert summary["knn_accuracy"]["val"] == pytest.approx(last["val/knn_accuracy"])


def test_an_anchor_keeps_features_near_those_of_the_start(start: Path, data: str, tmp_path: Path) -> None:
    splits = open_data(data.removeprefix("--data="), seed=0)
    images = torch.stack([splits.val.read(index, 1) for index in range(len(splits.val))]).float() / 127.5 - 1
    first = load_model(start)
    images = F.interpolate(images, first.image_size, mode="bilinear")
    distances = []
    for anchor in ("0", "10"):
        go_on(start, data, tmp_path / anchor, *LIVELY, "--select=last", f"--anchor={anchor}")
        with torch.no_grad():
            found, wanted = embed(load_model(tmp_path / anchor), images), embed(first, images)
        distances.append(1 - F.cosine_similarity(found, wanted).mean().item())
    free, held = distances
    assert held < free / 3
    for anchor in ("0", "10"):
        steps = [row for row in read_lines(tmp_path / anchor / "metrics.jsonl") if row["event"] == "step"]
        assert steps
        assert all(("train/distance" in row) == (anchor == "10") for row in steps)


def test_the_architecture_is_that_of_the_weights(start: Path) -> None:
    """By `--weights` alone, or by `--model`."""
    own = load_model(start)
    for options in (["--weights", str(start)], ["--model", str(start)]):
        found = settings(*options).model
        assert found["name"] == "vit_tiny_patch16_224"
        assert (found["dim"], found["depth"], found["pool"]) == (16, 1, "mean")
        assert found["image_size"] == own.image_size[0]
    assert settings("--weights", str(start), "--model", "cait_xxs24_224").model["name"] == "cait_xxs24_224"


def test_names_are_weights(tmp_path: Path) -> None:
    """Those of models that ship, and of published ones; a saved copy is no worse."""
    name = "vit_patch4_32_mae.cifar10"
    open_model(name).save_pretrained(tmp_path / "copy")
    for weights, place in ((name, trained_folder(name)), (str(tmp_path / "copy"), tmp_path / "copy")):
        found = settings("--weights", weights)
        assert Path(found.weights) == place
        assert (found.model["name"], found.model["patch_size"]) == ("vit_tiny_patch16_224", 4)
        model = load_model(place)
        assert (found.model["dim"], found.model["depth"]) == (model.num_features, len(model.blocks))
    assert settings("--weights=vit_tiny_patch16_224").weights == "published"
    tagged = settings("--weights=vit_tiny_patch16_224.augreg_in21k")
    assert tagged.weights == "hf-hub:timm/vit_tiny_patch16_224.augreg_in21k"
    assert tagged.model["name"] == "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--anchor=1"], "anchor holds features to those of the weights"),
        (["--anchor=-1"], r"anchor must be in \[0, 1000\], got -1.0"),
    ],
)
def test_anchors_that_hold_nothing(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(*options)


def test_neighbours_need_classes(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(image_folder.rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(file.read_bytes())
    given = ["--data", flat, *COMMON, "--epochs=1", "--select=knn", "--output", tmp_path / "run"]
    assert pretrain(*given) != 0
    assert "select=knn needs images of classes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
