"""What somebody types first: few epochs, help, other programs' words, any folder of images."""

import json
import os
import re
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.cli.conftest import TINY, train
from vit_pytorch.cli import Status, main
from vit_pytorch.cli.aliases import ALIASES, ANSWERS
from vit_pytorch.cli.help import GROUPS
from vit_pytorch.cli.layers import long_options
from vit_pytorch.cli.pretrain import read_pretraining
from vit_pytorch.cli.train import read_command
from vit_pytorch.registry import ELSEWHERE, entries, find_entry
from vit_pytorch.training.config import RunConfig, TrainConfig, write_config
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.pretraining.config import PretrainConfig
from vit_pytorch.training.recipes import PRETRAIN, find_recipe, list_recipes


def settings(*arguments: str) -> TrainConfig:
    return read_command(long_options(arguments), None)[0]


def pretraining(*arguments: str) -> PretrainConfig:
    return read_pretraining(long_options(arguments, ("data", "model", "method")), None)[0]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command prints that shows something and leaves."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leave:
        main([*map(str, arguments)])
    assert leave.value.code == 0
    return capsys.readouterr().out


def draw(path: Path, size: tuple[int, int] = (12, 12), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def check_bent(config: RunConfig, plain: RunConfig) -> None:
    """Warm-up and last rate have the shares of the recipe."""
    share = min(1.0, config.epochs / plain.epochs)
    assert config.schedule.warmup_epochs == pytest.approx(plain.schedule.warmup_epochs * share)
    share = config.optimizer.lr / plain.optimizer.lr
    assert config.schedule.min_lr == pytest.approx(plain.schedule.min_lr * share)


@pytest.mark.parametrize("recipe", list_recipes())
def test_recipes_bend_to_the_command_line(recipe: str) -> None:
    plain = settings(f"--recipe={recipe}")
    check_bent(settings(f"--recipe={recipe}", "--epochs=1", "--lr=1e-7"), plain)
    check_bent(settings(f"--recipe={recipe}", "--epochs=1000"), plain)


@pytest.mark.parametrize("recipe", list_recipes(PRETRAIN))
@pytest.mark.parametrize("method", ["mae", "dino"])
def test_recipes_of_pretraining_bend_to_the_command_line(recipe: str, method: str) -> None:
    chosen = (f"--recipe={recipe}", f"--method={method}")
    check_bent(pretraining(*chosen, "--epochs=1", "--lr=1e-6"), pretraining(*chosen))


def test_what_a_recipe_says_for_a_method_is_its_own_word() -> None:
    recipe = yaml.safe_load(find_recipe("digits", PRETRAIN).read_text())
    config = pretraining("--recipe=digits", "--method=esvit")
    assert (config.epochs, config.optimizer.lr) == (40, 0.005)
    assert asdict(config.schedule) == recipe["schedule"]


def test_files_bend_to_the_command_line_and_stand_by_themselves(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 10\nschedule: {warmup-epochs: 4, min_lr: 1.0e-4}\noptimizer: {lr: 1.0e-3}\n")
    whole, shorter = (settings(f"--config={file}", *options) for options in ([], ["--epochs=5", "--lr=1e-4"]))
    assert (whole.schedule.warmup_epochs, whole.schedule.min_lr) == (4, 1e-4)
    assert (shorter.schedule.warmup_epochs, shorter.schedule.min_lr) == (2, 1e-5)
    assert settings(f"--config={file}", "--epochs=5", "--warmup-epochs=3").schedule.warmup_epochs == 3
    file.write_text("epochs: 4\n")
    assert settings(f"--config={file}").schedule.warmup_epochs == 5 * 4 / 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs=1", "--schedule.warmup_epochs=3"], "warmup_epochs must not exceed epochs = 1, got 3.0"),
        (["--lr=1e-4", "--schedule.min_lr=1e-3"], "min_lr must not exceed optimizer.lr = 0.0001, got 0.001"),
        (["photos", "--epochs=1"], "unrecognized arguments: photos; data are named by --data"),
    ],
)
def test_what_is_typed_and_contradicts_itself_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *options]) == Status.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "finetune", "distill", "pretrain"])
def test_help_is_a_page_and_help_all_is_everything(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, command, "--help")
    assert page == shown(capsys, command, "-h")
    assert len(page.splitlines()) <= 80
    assert max(map(len, page.splitlines())) <= 100
    for option in ("--data", "--epochs", "--lr", "--batch_size", "--print_config", "--img_size"):
        assert f"  {option} " in page
    assert "(default: 64)" in page or "(default: 32)" in page
    assert f"vit {command} --data" in page or "--data photos/" in page
    assert "--help-all" in page
    everything = shown(capsys, command, "--help-all")
    assert "--model.dim" in everything
    assert len(everything.splitlines()) > 200


def test_help_names_no_option_that_no_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    pages = "".join(shown(capsys, command, "--help") for command in ("train", "pretrain"))
    assert all(f"  --{option}" in pages for options in GROUPS.values() for option in options)


def test_help_says_what_the_recipe_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(default: 300)" in shown(capsys, "train", "--recipe=deit", "--help")
    assert "--from" in shown(capsys, "finetune", "--help")
    assert "--student" in shown(capsys, "distill", "--help")


def test_the_printed_configuration_is_the_one_that_would_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = shown(capsys, "train", "--data=idx:mine", "--epochs=3", "--clip=null", "--print_config")
    (tmp_path / "printed.yaml").write_text(printed)
    again = shown(capsys, "train", "--config=printed.yaml", "--print-config")
    assert again == printed
    config = yaml.safe_load(printed)
    assert (config["epochs"], config["clip"], config["data"]["source"]) == (3, None, f"idx:{tmp_path}/mine")
    assert (
        yaml.safe_load(shown(capsys, "pretrain", "--method=dino", "--print_config"))["method"]["name"]
        == "dino"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]


def test_words_of_other_programs() -> None:
    config = settings(
        *("--lr=0.5", "--wd", "0.25", "-b", "48", "-j3", "--epoch=7", "--imgsz=48", "--drop-path=0.3"),
        *(
            "--opt=sgd",
            "--warmup-epochs=2",
            "--min-lr=0.125",
            "--smoothing=0.2",
            "--clip-grad=2",
            "--hflip=1",
        ),
        *("--data-dir=idx:x", "--early-stopping-patience=4", "--model-ema-decay=0.5", "--torchcompile"),
    )
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("sgd", 0.5, 0.25)
    assert (config.batch_size, config.workers, config.epochs, config.patience) == (48, 3, 7, 4)
    assert (config.model["image_size"], config.model["drop_path"]) == (48, 0.3)
    assert (config.schedule.warmup_epochs, config.schedule.min_lr) == (2, 0.125)
    assert (config.label_smoothing, config.clip, config.ema, config.compile) == (0.2, 2, 0.5, True)
    assert (config.augmentation.flip, config.data.source) == (1, "idx:x")
    assert settings("--num_train_epochs", "3", "--learning_rate", "0.1").epochs == 3
    assert settings("--lr=1", "--optimizer.lr=2").optimizer.lr == 2


def test_every_word_stands_for_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    everything = shown(capsys, "train", "--help-all")
    assert not [name for name in ALIASES.values() if f"--{name} " not in everything and name != "help"]
    assert not ALIASES.keys() & ANSWERS.keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val --data photos", "unknown command 'val'; the right one is `vit evaluate RUN`"),
        ("detect runs/x", "unknown command 'detect'; these are known:"),
        (
            "train model=vit_tiny_patch16_224",
            "neither an option nor a file; write --model vit_tiny_patch16_224",
        ),
        ("train --weights x.pt", "the right one is `vit finetune --from NAME`"),
        ("train --degrees 10", "the nearest one is '--augmentation.degrees'"),
        ("train --qqq 10", "unknown option '--qqq'; --help-all lists all of them"),
        (
            "predict --model runs/x --source a.jpg",
            "the run, or the model, is the first word after the command",
        ),
        ("predict model=runs/x a.jpg", "the run, or the model, is the first word after the command"),
        ("predict runs/x --source a.jpg", "images are the words after the run, or the model"),
        ("predict runs/x a.jpg --device cpu", "the right one is none: a GPU is used where there is one"),
        ("predict runs/x a.jpg --save", "the right one is --csv FILE"),
        ("predict runs/x a.jpg --half", "unknown option '--half'; --help lists all of them"),
        ("export runs/x --half", "the right one is --precision fp16"),
        ("export runs/x --source photos", "unknown option '--source'"),
        ("evaluate runs/x --imgsz 64", "images get the model's own size"),
    ],
)
def test_lines_of_other_programs_are_answered(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == Status.USAGE
    assert message in capsys.readouterr().err


def test_words_of_other_programs_for_commands_that_use_a_model(
    digits_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = draw(tmp_path / "part=b" / "a.png", (8, 8))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(digits_run), "part=b/*.png"]) == 0
    assert main(["predict", str(digits_run), "part=c/*.png"]) == Status.USAGE
    capsys.readouterr()
    assert main(["predict", str(digits_run), str(photo), "--top", "2"]) == 0
    right = capsys.readouterr().out
    assert main(["predict", str(digits_run), str(photo), "--topk", "2"]) == 0
    assert capsys.readouterr().out == right


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_b_16", "no model is named 'vit_b_16': here it is vit_base_patch16_224"),
        ("ViT-B/16", "no model is named 'ViT-B/16': here it is vit_base_patch16_224"),
        ("swin_v2_t", "here it is swinv2_tiny_window8_256"),
        ("densenet121", "no model is named 'densenet121'; `list_models()` and `vit models` list the names"),
    ],
)
def test_names_of_models_elsewhere(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        find_entry(name)


def test_names_of_models_elsewhere_are_named_models() -> None:
    assert set(ELSEWHERE.values()) <= entries().keys()
    assert not ELSEWHERE.keys() & entries().keys()


@pytest.mark.parametrize("word", ANSWERS)
def test_words_that_mean_something_else_are_answered(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"--{word.replace('_', '-')}", "8"]) == 2
    assert f"the right one is {ANSWERS[word]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "absolute"),
    [
        ("photos", "HERE/photos"),
        ("./photos/", "HERE/photos"),
        ("folder:photos", "folder:HERE/photos"),
        ("idx:mnist", "idx:HERE/mnist"),
        ("video:films", "video:HERE/films"),
        ("nifti:scans", "nifti:HERE/scans"),
        ("wds:a-{0,1}.tar,/b/*.tar", "wds:HERE/a-{0,1}.tar,/b/*.tar"),
        ("hf:saved?image=photo", "hf:HERE/saved?image=photo"),
        ("hf:user/name", "hf:user/name"),
        ("csv:list.csv?image=a b/c.png", "csv:HERE/list.csv?image=a b/c.png"),
        ("digits", "digits"),
        ("/data/photos", "/data/photos"),
    ],
)
def test_paths_are_stored_absolute(
    source: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    write_config(
        TrainConfig(
            model={"name": "x"}, data=settings(f"--data={source}", "--model=vit_tiny_patch16_224").data
        ),
        tmp_path / "config.yaml",
    )
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert stored["data"]["source"] == absolute.replace("HERE", str(tmp_path))


def test_a_run_is_evaluated_from_another_folder(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    few = ["--workers=0", "--epochs=1", "--model.image-size=20"]
    assert train("--data", image_folder.name, "--output", tmp_path / "run", *TINY, *few) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "run"]) == 0


def test_training_ends_when_patience_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still = ["--lr=1e-30", "--wd=0", "--patience=2", "--ema=null", "--model.stem=linear", *TINY]
    assert train("--output", tmp_path / "run", "--epochs=9", *still) == 0
    assert "stopped after epoch 3 of 9: the last 2 were no better" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["epochs"], summary["planned_epochs"], summary["selected_by"]) == (3, 9, "accuracy")
    assert "the best in validation by accuracy" in (tmp_path / "run" / "summary.md").read_text()
    # a resumed run goes on counting
    assert train("--output", tmp_path / "short", "--epochs=2", *still) == 0
    assert "stopped after" not in capsys.readouterr().out
    assert train("--resume", tmp_path / "short", "--epochs=9") == 0
    assert "stopped after epoch 3 of 9" in capsys.readouterr().out


def test_the_loss_may_choose(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train("--output", run, "--epochs=3", "--select=loss", "--ema=null", *TINY) == 0
    best = min(read_rows(run / "metrics.csv"), key=lambda row: row["val/objective"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_checkpoint"] == f"epoch-{int(best['epoch']):04}"
    assert "the best in validation by loss" in (run / "summary.md").read_text()
    # runs of version 0.1 know nothing else, and are resumed so
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("select: loss\n", ""))
    assert read_command(long_options(["--resume", str(run)]), run)[0].select == "loss"


@pytest.mark.parametrize("tree", ["flat", "mixed", "one class", "few each", "shard"])
def test_pretraining_takes_any_tree_of_images(
    tree: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "flat": [f"{i}.png" for i in range(12)],
        "mixed": [f"{'a/b/' * (i % 3)}{i}.png" for i in range(12)],
        "one class": [f"only/{i}.png" for i in range(12)],
        "few each": [f"{i // 2}/{i}.png" for i in range(12)],
        "shard": [f"{i}.png" for i in range(12)],
    }
    data = str(tmp_path / "photos")
    for i, name in enumerate(names[tree]):
        draw(tmp_path / "photos" / name, seed=i)
    if tree == "shard":
        with tarfile.open(tmp_path / "photos.tar", "w") as archive:
            archive.add(tmp_path / "photos", arcname="photos")
        data = f"wds:{tmp_path}/photos.tar"
    small = ["--workers=0", "--batch-size=4", "--accelerator=cpu", "--model.image-size=20", "--epochs=1"]
    sizes = [option for option in TINY if "batch" not in option and "warmup" not in option]
    run = tmp_path / "run"
    words = ["--data", data, "--output", str(run), *sizes, *small]
    assert main(["pretrain", *words]) == 0
    said = capsys.readouterr().out
    assert "no labels, images: 11 to train, 1 to validate" in said
    assert "features are not probed by labels" in said
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["images"], summary["knn_accuracy"]) == ({"train": 11, "val": 1}, {})
    assert "val/knn_accuracy" not in read_rows(run / "metrics.csv")[0]
    if tree in ("flat", "shard"):
        assert main(["pretrain", "--resume", str(run), "--epochs=2"]) == 0
        assert len(read_rows(run / "metrics.csv")) == 2


def test_pretraining_probes_by_the_labels_that_there_are(image_folder: Path, tmp_path: Path) -> None:
    """Of fewer images than neighbours by default, too."""
    for name in ("one", "two"):
        for i in range(6):
            draw(tmp_path / "photos" / name / f"{i}.png", seed=i)
    small = ["--workers=0", "--batch-size=4", "--accelerator=cpu", "--model.image-size=20", "--epochs=1"]
    sizes = [option for option in TINY if "batch" not in option and "warmup" not in option]
    run = tmp_path / "run"
    words = ["--data", str(tmp_path / "photos"), "--output", str(run), *sizes, *small]
    assert main(["pretrain", *words]) == 0
    assert set(json.loads((run / "summary.json").read_text())["knn_accuracy"]) == {"val", "test"}


def test_training_still_needs_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "photos" / "a.png")
    assert train("--data", tmp_path / "photos", "--output", tmp_path / "run") == Status.DATA
    assert "must hold one folder per class" in capsys.readouterr().err


def test_the_input_has_a_size_that_suits_the_images(tmp_path: Path) -> None:
    for name, size in (("large", (100, 80)), ("small", (64, 64))):
        for label in ("cat", "dog"):
            draw(tmp_path / name / label / "0.png", size)
    large, small = f"--data={tmp_path / 'large'}", f"--data={tmp_path / 'small'}"

    def chosen(*arguments: str) -> tuple[int, int]:
        model = settings(*arguments).model
        return model["image_size"], model["patch_size"]

    assert chosen(large) == chosen(large, "--epochs=3") == (128, 16)
    assert chosen(small) == (32, 4)
    assert chosen(large, "--img-size=224") == (224, 16)
    assert chosen(large, "--img-size=32") == (32, 4)
    assert chosen(large, "--recipe=light") == (32, 4)
    assert chosen(large, "--model=vit_small_patch16_224") == (224, 16)
    assert settings(large).epochs == settings(small).epochs == 30
    assert pretraining(large).model["image_size"] == 128
    assert pretraining(large, "--method=dino").method.local_size == 64
    os.makedirs(tmp_path / "large" / "train")
    with pytest.raises(ValueError, match="beside"):
        settings(large)
