"""Using what was trained: evaluate, predict, models."""

import csv
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.cli.conftest import Vit
from vit_pytorch import create_model
from vit_pytorch.cli import COMMANDS, Status, main
from vit_pytorch.cli.api import Run
from vit_pytorch.data import eval_transform, load_images
from vit_pytorch.registry import list_models
from vit_pytorch.tome import ToMeViT
from vit_pytorch.training.saved import load_classifier


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> object:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    digits = load_digits()
    for i, name in enumerate(("a.png", "b.png", "more/c.png")):
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(folder / name)
    return folder


def test_evaluate_gives_the_summarys_figures(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((digits_run / "summary.json").read_text())
    for split in ("test", "val"):
        found = answer(capsys, "evaluate", digits_run, f"--split={split}", "--batch-size=50")
        assert found["confusion"] == summary[split]["confusion"]
        assert found["loss"] == pytest.approx(summary[split]["loss"], rel=1e-5)


def test_evaluate_all_splits_takes_each_image_once(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "evaluate", digits_run, "--split=all")["images"] == 1797


def test_evaluate_an_exported_model_needs_data(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(digits_run / "model")]) == 2
    assert "name some by --data" in capsys.readouterr().err
    assert answer(capsys, "evaluate", digits_run / "model", "--data=digits")["images"] == 360


def test_evaluate_refuses_data_with_other_classes(
    digits_run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(digits_run), f"--data={image_folder}"]) == 3
    message = capsys.readouterr().err
    assert "unknown to the model: one, two, zero" in message


def test_evaluate_on_data_that_lack_a_class(
    digits_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels are those of the model, by name; the classes that no image has are named."""
    for digit, name in (("1", "one"), ("2", "two")):
        shutil.copytree(image_folder / name, tmp_path / digit)
    found = answer(capsys, "evaluate", digits_run, f"--data={tmp_path}", "--split=all")
    said = answer(capsys, "predict", digits_run, tmp_path, "--top=1")
    expected = [[0] * 10 for _ in range(10)]
    for each in said:
        expected[int(Path(each["image"]).parent.name)][int(each["top"][0]["class"])] += 1
    assert found["confusion"] == expected
    assert found["absent"] == ["0", *"3456789"]
    assert main(["evaluate", str(digits_run), f"--data={tmp_path}", "--split=all"]) == 0
    assert "images (classes that no image has, 8: '0', '3', '4', …; balanced" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["test", "all"])
def test_evaluate_measures_data_without_splits_whole(
    split: str, digits_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No part of a test set is held out of it; one class is enough, and so is one image of a class."""
    (tmp_path / "1").mkdir()
    shutil.copy(image_folder / "one" / "0.png", tmp_path / "1")
    command = ("evaluate", digits_run, f"--data={tmp_path}", f"--split={split}")
    assert answer(capsys, *command)["images"] == 1
    shutil.copytree(image_folder / "two", tmp_path / "2")
    found = answer(capsys, *command)
    assert found["images"] == 1 + len(list((image_folder / "two").iterdir()))
    said = answer(capsys, "predict", digits_run, tmp_path, "--top=1")
    right = [each["top"][0]["class"] == Path(each["image"]).parent.name for each in said]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def test_evaluate_measures_a_test_split_alone(
    digits_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And never another split, which a folder of a table does not have."""
    shutil.copytree(image_folder / "one", tmp_path / "Test" / "1")
    shutil.copytree(image_folder / "two", tmp_path / "Test" / "2")
    (tmp_path / "list.csv").write_text(
        "image,label,split\n" + "".join(f"Test/1/{i}.png,1,test\n" for i in range(3))
    )
    table = f"csv:{tmp_path / 'list.csv'}"
    assert answer(capsys, "evaluate", digits_run, f"--data={tmp_path}")["images"] == 40
    assert answer(capsys, "evaluate", digits_run, f"--data={table}", "--split=all")["images"] == 3
    assert Run(digits_run).evaluate(table).confusion.sum() == 3
    for data in (tmp_path, table):
        assert main(["evaluate", str(digits_run), f"--data={data}", "--split=val"]) == Status.USAGE
        assert "the data has no val split; it has test" in capsys.readouterr().err


def test_evaluate_knows_no_other_split_of_data_without_splits(
    digits_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(image_folder / "one", tmp_path / "1")
    assert main(["evaluate", str(digits_run), f"--data={tmp_path}", "--split=train"]) != 0
    assert "the data has no train split; it has test" in capsys.readouterr().err


def test_warnings_are_sentences(digits_run: Path, pictures: Path, vit: Vit) -> None:
    """Without the place in the source, which `--debug` shows."""
    (pictures / "notes.txt").write_text("no image")
    shown = warnings.formatwarning
    done = vit("predict", digits_run, pictures)
    assert done.stderr.splitlines() == [
        f"vit: warning: left out: file of another type (1: {pictures / 'notes.txt'})"
    ]
    assert "UserWarning: left out: file" in vit("predict", digits_run, pictures, "--debug").stderr
    assert main(["--version"]) == 0
    assert warnings.formatwarning is shown


def test_evaluate_with_merged_tokens(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures of a model that was saved with merging, and not those of the model as it is."""
    ToMeViT.around(create_model(digits_run), merged=2).save_pretrained(tmp_path)
    saved = answer(capsys, "evaluate", tmp_path, "--data=digits")
    merged = answer(capsys, "evaluate", digits_run, "--merge_tokens=2")
    assert merged["loss"] == saved["loss"] != answer(capsys, "evaluate", digits_run)["loss"]
    assert main(["evaluate", str(digits_run), "--neighbours=3"]) == Status.USAGE
    assert "--neighbours is for --probe knn" in capsys.readouterr().err
    probe = ["--data=digits", "--probe=knn"]
    probed = answer(capsys, "evaluate", digits_run, "--merge_tokens=2", *probe)
    assert probed["accuracy"] == answer(capsys, "evaluate", tmp_path, *probe)["accuracy"]
    assert main(["evaluate", str(digits_run), "--merge_tokens=-1"]) == Status.USAGE
    assert "merge_tokens must be at least 0, got -1" in capsys.readouterr().err


def test_evaluate_as_a_table(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(digits_run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test: accuracy ")
    assert len(lines) == 12


def test_predict_files_folders_and_patterns(
    digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = answer(capsys, "predict", digits_run, pictures)
    assert [Path(found["image"]).name for found in everything] == ["a.png", "b.png", "c.png"]
    one = answer(capsys, "predict", digits_run, pictures / "b.png", "--top=10")
    assert sum(entry["probability"] for entry in one[0]["top"]) == pytest.approx(1)
    assert [entry["class"] for entry in one[0]["top"][:3]] == [
        entry["class"] for entry in everything[1]["top"]
    ]
    assert len(answer(capsys, "predict", digits_run, pictures / "*.png", "--batch-size=1")) == 2


def test_predict_agrees_with_the_model(
    digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_classifier(digits_run)
    (found,) = answer(capsys, "predict", digits_run / "model", pictures / "a.png", "--top=1")
    ((_, image),) = load_images([pictures / "a.png"], channels=1)
    with torch.no_grad():
        probabilities = saved.model(eval_transform(saved.preprocessing)(image)[None]).softmax(1)[0]
    assert found["top"][0]["class"] == saved.classes[int(probabilities.argmax())]
    assert found["top"][0]["probability"] == pytest.approx(probabilities.max().item(), rel=1e-4)


def test_predict_as_a_table(digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(digits_run), str(pictures / "a.png"), "--top=2"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "1.", "2."]
    assert row.startswith(str(pictures / "a.png"))


def test_a_broken_image_is_reported_stops_or_is_skipped(
    digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.png").write_bytes(b"<html>")
    for options in ([], ["--json"], ["--csv=-"]):
        with pytest.raises(SystemExit) as leave:
            main(["predict", str(digits_run), str(pictures), *options])
        assert leave.value.code == Status.DATA
        said = capsys.readouterr()
        assert "broken.png" in said.err
        assert "broken.png" not in said.out
        assert all(name in said.out for name in ("a.png", "b.png", "c.png"))
    assert main(["predict", str(digits_run), str(pictures), "--on-bad=stop"]) == Status.DATA
    assert "broken.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="broken"):
        assert len(answer(capsys, "predict", digits_run, pictures, "--on-bad=skip")) == 3


def test_predictions_as_a_csv_file(
    digits_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = answer(capsys, "predict", digits_run, pictures, "--top=2")
    file = tmp_path / "found.csv"
    command = ["predict", str(digits_run), str(pictures), "--top=2", "--batch-size=2"]
    assert main([*command, "--csv", str(file)]) == 0
    assert capsys.readouterr().out == ""
    with file.open(newline="") as opened:
        header, *rows = csv.reader(opened)
    assert header == ["path", "class", "probability", "class_2", "probability_2"]
    for row, found in zip(rows, expected, strict=True):
        assert row[0] == found["image"]
        assert row[1::2] == [entry["class"] for entry in found["top"]]
        assert [float(value) for value in row[2::2]] == pytest.approx(
            [entry["probability"] for entry in found["top"]]
        )
    assert main([*command, "--csv=-"]) == 0
    assert capsys.readouterr().out == file.read_text()
    assert main([*command, "--csv=-", "--json"]) == Status.USAGE
    assert "got both --csv and --json" in capsys.readouterr().err


def test_predictions_come_one_after_the_other(
    digits_run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed does not wait for the last image."""
    printed: list[str] = []

    def image_or_stop(path: Path, **_: object) -> torch.Tensor:
        if path.name == "c.png":
            printed.append(capsys.readouterr().out)
        return torch.zeros(1, 24, 24, dtype=torch.uint8)

    monkeypatch.setattr("vit_pytorch.training.predictor.decode_image", image_or_stop)
    for form in ("--json", "--csv=-"):
        assert main(["predict", str(digits_run), str(pictures), "--batch-size=1", form]) == 0
        assert "a.png" in printed[-1]
        assert "c.png" in capsys.readouterr().out


def test_names_in_any_script(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("数字.png", "ψηφίο.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    assert main(["predict", str(digits_run), str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr().out
    assert "数字.png" in shown
    assert [Path(found["image"]).name for found in json.loads(shown)] == ["ψηφίο.png", "数字.png"]


@pytest.mark.parametrize(
    "command",
    [
        "predict RUN IMAGES --csv PLACE/x.csv",
        "embed RUN IMAGES --output PLACE/x.npz",
        "export RUN --format pt2 --output PLACE/x.pt2",
        "explain RUN IMAGES --output PLACE",
    ],
)
def test_the_folder_of_an_output_is_made_for_it(
    command: str, digits_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not where nothing is written to it."""
    place = tmp_path / "new" / "below"

    def run(model: Path, images: Path) -> int:
        words = {"RUN": model, "IMAGES": images}
        return main([str(words.get(word, word)).replace("PLACE", str(place)) for word in command.split()])

    assert run(tmp_path / "nowhere", pictures) == Status.MODEL
    assert not place.parent.exists()
    if "IMAGES" in command:
        (tmp_path / "bad.png").write_bytes(b"no image")
        command += " --on_bad stop"
        assert run(digits_run, tmp_path / "bad.png") == Status.DATA
        assert not place.parent.exists()
    assert run(digits_run, pictures) == 0
    assert any(place.iterdir())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "x.png"], "the name of the run must not be empty"),
        (["RUN", ""], "no such image, folder or pattern: ''"),
        ([""], "images"),
    ],
)
def test_empty_names(
    arguments: list[str], message: str, digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(digits_run) if word == "RUN" else word for word in arguments]
    assert main(["predict", *words]) in (Status.USAGE, Status.DATA)
    assert message in capsys.readouterr().err


def test_create_model_takes_a_run_or_its_model(digits_run: Path, tmp_path: Path) -> None:
    saved = load_classifier(digits_run).model
    images = torch.rand(2, 1, 24, 24)
    for folder in (digits_run, str(digits_run / "model")):
        model = create_model(folder)
        assert type(model) is type(saved)
        assert not model.training
        assert model.default_cfg["label_names"] == tuple("0123456789")
        assert torch.equal(model(images), saved(images))
    with pytest.warns(UserWarning, match=r"head\.weight, head\.bias .* have their initial values"):
        other = create_model(digits_run, num_classes=3)
    assert other(images).shape == (2, 3)
    # names and temperature are those of the old classifier
    assert not {"label_names", "problem"} & other.default_cfg.keys()
    other.save_pretrained(tmp_path)
    assert load_classifier(tmp_path).classes == ("0", "1", "2")
    assert torch.equal(other.forward_features(images), saved.forward_features(images))
    with pytest.raises(ValueError, match=r"its own weights and arguments; .* got pretrained, depth"):
        create_model(digits_run, pretrained=True, depth=3)


def test_sources_of_data_are_not_predicted(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(digits_run), f"csv:{tmp_path}/a.csv"]) == Status.DATA
    assert "`vit evaluate RUN --data` takes such sources of data" in capsys.readouterr().err


def test_create_model_says_what_a_folder_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder: nowhere/model"):
        create_model("nowhere/model")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(NotADirectoryError, match=r"model\.onnx is a file; expected the folder of a run"):
        create_model(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match="on the Hub, give hf-hub:google/vit-b as the weights"):
        create_model("google/vit-b", pretrained=True)
    with pytest.raises(FileNotFoundError, match=r"has no model \(no model/config\.json, no config\.json\)"):
        create_model(tmp_path)
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "holds no configuration, but a list"),
        ('{"architecture": "ResNet"}', "must be one of .*ViT.* got 'ResNet'"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            create_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit_base_patch16_224").mkdir()
    assert create_model("vit_base_patch16_224", depth=1).num_classes == 1000


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", name, "x.png"]) == 4
    assert name in capsys.readouterr().err


def test_models_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["name"] for row in answer(capsys, "models")] == list_models()
    (row,) = answer(capsys, "models", "vit_base_patch16_224")
    assert row["parameters"] == 86_567_656
    assert row["architecture"] == "ViT"
    assert main(["models", "*tiny*16*"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(list_models("*tiny*16*"))


def test_models_without_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "efficientnet"]) == 2
    assert "'efficientnet'" in capsys.readouterr().err


def test_listing_models_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vit_pytorch.cli import main; main(['models']);"
        "heavy = {'lightning', 'torchvision', 'matplotlib', 'sklearn'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_listing_models_needs_no_extra() -> None:
    code = (
        "import sys; extras = ('lightning', 'torchvision', 'jsonargparse', 'docstring_parser',"
        "'sklearn', 'matplotlib', 'PIL'); sys.modules.update(dict.fromkeys(extras));"
        "from vit_pytorch.cli import main; print(main(['models', 'deit*', '--json']), main(['train']),"
        "main(['trian']), main(['models', 'efficientnet']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 2 2 2"
    assert "deit_tiny_distilled_patch16_224" in done.stdout
    assert "vit train needs more packages: pip install -e '.[train]'" in done.stderr
    assert "the nearest one is 'train'" in done.stderr


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert command in listed
        with pytest.raises(SystemExit) as leave:
            main([command, "--help"])
        assert leave.value.code == 0
        assert f"usage: vit {command}" in capsys.readouterr().out
