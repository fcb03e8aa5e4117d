"""`vit explain`: pictures and a page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vit_pytorch.cli import Status, main
from vit_pytorch.cli.explain import at_full_size
from vit_pytorch.data import Preprocessing, eval_transform


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for digit, name in zip(load_digits().images, ("a.png", "b.png", "more/a.png"), strict=False):
        Image.fromarray((digit * 15).astype(np.uint8)).save(folder / name)
    return folder


def test_a_runs_digits_are_explained(
    digits_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(digits_run), str(pictures), "--top=2", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    output = tmp_path / "out"
    for _ in range(2):  # what is there is replaced
        arguments = ["explain", str(digits_run), str(pictures), "--output", str(output), "--top=2", "--json"]
        assert main(arguments) == 0
        found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (output / "report.html").stat().st_size
    for one, other in zip(found["images"], predicted, strict=True):
        assert one["image"] == other["image"]
        for ours, theirs in zip(one["top"], other["top"], strict=True):
            assert ours["class"] == theirs["class"]
            assert ours["probability"] == pytest.approx(theirs["probability"], rel=1e-4)
    written = {Path(path).name for one in found["images"] for path in one["pictures"]}
    kinds = ("original", "relevance", "rollout", "layers")
    assert written == {f"{stem}-{kind}.png" for stem in ("a", "b", "a-2") for kind in kinds}
    assert written | {"report.html"} == {path.name for path in output.iterdir()}
    assert "random weights" not in (output / "report.html").read_text()


def test_images_that_cannot_be_decoded_are_named_and_left_out(
    digits_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "a.png").write_bytes(b"no image")
    arguments = ["explain", str(digits_run), "--output", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit, match=str(Status.DATA.value)):
        main([*arguments, str(pictures)])
    out, err = capsys.readouterr()
    assert [Path(one["image"]).name for one in json.loads(out)["images"]] == ["b.png", "a.png"]
    assert f"{pictures}/a.png" in err
    assert "files that could not be read: 1, named above" in err
    shutil.rmtree(tmp_path / "out")
    assert main([*arguments, str(pictures / "a.png")]) == Status.DATA
    assert "none of the images could be decoded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_named_model_is_explained_with_a_warning(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "cct_2_3x2_32", str(pictures / "a.png"), "--top=1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["image", "1."]
    assert out[-1].startswith("explained/report.html (0.")
    text = (tmp_path / "explained" / "report.html").read_text()
    assert "cct_2_3x2_32 has random weights here" in text


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["nowhere/run", "IMAGE"], 4, "no such folder: nowhere/run"),
        (["RUN", "nowhere.png"], 3, "no such image, folder or pattern: nowhere.png"),
        (["RUN", "IMAGE", "--megabytes=0.01"], 2, "allow a larger page, or take fewer images"),
        (["RUN", "IMAGE", "--top=0"], 2, "top must be at least 1, got 0"),
        (["RUN", "IMAGE", "--megabytes=0"], 2, "megabytes must be positive, got 0.0"),
    ],
)
def test_what_cannot_be_explained(
    options: list[str],
    status: int,
    message: str,
    digits_run: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"RUN": str(digits_run), "IMAGE": str(pictures / "a.png")}
    arguments = [names.get(option, option) for option in options]
    assert main(["explain", *arguments, "--output", str(tmp_path / "out")]) == status
    assert message in capsys.readouterr().err


def test_the_picture_shows_what_the_model_sees() -> None:
    rows = torch.linspace(0, 255, 400)[:, None] + torch.zeros(300)
    image = rows.round().byte().expand(3, -1, -1)
    prep = Preprocessing(image_size=(64, 64), crop_pct=0.8, mean=(0.0,), std=(1.0,))
    large, seen = at_full_size(image, prep), eval_transform(prep)(image)
    assert large.shape == (3, 240, 240)
    small = torch.nn.functional.interpolate(large[None].float() / 255, (64, 64), mode="area")[0]
    assert (small - seen).abs().max() < 0.01
    digit = torch.zeros(1, 8, 8, dtype=torch.uint8)
    assert at_full_size(digit, Preprocessing(image_size=(24, 24), channels=1)).shape == (1, 24, 24)
    native = Preprocessing(image_size=(64, 64), max_tokens=16, patch_size=(8, 8))
    assert at_full_size(image, native).shape[1] % 8 == 0
