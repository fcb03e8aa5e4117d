"""Where settings come from, and what is said about wrong ones."""

from pathlib import Path

import pytest
import torch
import yaml

from vit_pytorch.cli import Status, main
from vit_pytorch.cli.layers import UsageError, long_options
from vit_pytorch.cli.train import read_command
from vit_pytorch.training.config import TrainConfig, write_config
from vit_pytorch.training.recipes import find_recipe, list_recipes


def settings(*arguments: str) -> TrainConfig:
    return read_command(long_options(arguments), None)[0]


def config_file(folder: Path, content: object) -> str:
    path = folder / "my.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return f"--config={path}"


def test_without_options_the_digits_recipe() -> None:
    config = settings()
    recipe = yaml.safe_load(find_recipe("digits").read_text())
    assert config.data.source == "digits"
    assert config.epochs == recipe["epochs"]
    assert config.model["dim"] == recipe["model"]["dim"]
    assert config.optimizer.lr == recipe["optimizer"]["lr"]


def test_other_data_take_the_light_recipe() -> None:
    assert settings("--data", "idx:somewhere").model["stem"] == "conv"
    assert settings("--data", "idx:somewhere").augmentation.flip == 0.5
    for source in ("video:somewhere", "nifti:somewhere"):
        config = settings("--data", source)
        assert (config.model["name"], config.augmentation.flip) == ("simple_vit_3d_tiny_16x2", 0)
        assert config.data.video.stride == 2


def test_the_command_line_beats_the_file_and_the_file_beats_the_recipe(tmp_path: Path) -> None:
    file = config_file(tmp_path, {"epochs": 7, "optimizer": {"lr": 0.5}, "model": {"dim": 48}})
    config = settings("--optimizer.lr=0.25", file)
    assert config.optimizer.lr == 0.25
    assert (config.epochs, config.model["dim"]) == (7, 48)
    assert config.model["depth"] == settings().model["depth"]
    assert config.optimizer.weight_decay == settings().optimizer.weight_decay


@pytest.mark.parametrize(
    ("options", "compiled"),
    [([], False), (["--compile"], True), (["--compile", "--epochs=9"], True), (["--compile=false"], False)],
)
def test_compile_needs_no_value(options: list[str], compiled: bool) -> None:
    assert settings(*options).compile is compiled


def test_another_model_does_not_inherit_the_arguments_of_the_recipes_model() -> None:
    config = settings("--model", "vit_small_patch16_224")
    assert (config.model["dim"], config.model["image_size"], config.model["stem"]) == (384, 224, "linear")


def test_a_recipe_without_a_model_changes_the_one_that_is_named() -> None:
    config = settings("--recipe=deit", "--model=vit_base_patch16_224")
    assert (config.model["dim"], config.model["drop_path"]) == (768, 0.1)


@pytest.mark.parametrize("recipe", list_recipes())
def test_recipes_are_whole(recipe: str) -> None:
    assert settings(f"--recipe={recipe}").epochs > 1


def test_the_decay_of_simple_vit_is_that_of_the_authors() -> None:
    optimizer = settings("--recipe=simple_vit").optimizer
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    adamw = torch.optim.AdamW([weight], lr=optimizer.lr, weight_decay=optimizer.weight_decay)
    adamw.step()
    assert torch.allclose(1 - weight.double(), torch.tensor(1e-4, dtype=torch.float64), rtol=1e-3)


def test_a_configuration_that_was_written_reads_back_equal(tmp_path: Path) -> None:
    config = settings("--data=idx:x", "--augmentation.crop-scale=[0.5,1]", "--clip=null", "--workers=3")
    write_config(config, tmp_path / "config.yaml")
    again = settings(f"--config={tmp_path / 'config.yaml'}")
    write_config(again, tmp_path / "again.yaml")
    assert again.clip is None
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()


def test_short_and_nested_spellings_are_the_same(tmp_path: Path) -> None:
    short = settings(config_file(tmp_path, "data: idx:x\nmodel: vit_tiny_patch16_224\n"))
    assert short.data.source == "idx:x"
    assert short.model["name"] == settings("--model.name=vit_tiny_patch16_224").model["name"]


@pytest.mark.parametrize(
    ("arguments", "named", "close"),
    [
        (["--epoch-s=3"], "--epoch_s", "--epochs"),
        (["--model.dmi=3"], "--model.dmi", "--model.dim"),
        (["--batchsize", "3"], "--batchsize", "--batch_size"),
        (["--modle", "x"], "--modle", "--model"),
    ],
)
def test_unknown_option(
    arguments: list[str], named: str, close: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    message = capsys.readouterr().err
    assert f"unknown option '{named}'" in message
    assert f"'{close}'" in message


@pytest.mark.parametrize(
    ("content", "named", "close"),
    [
        ({"epoch": 3}, "'epoch'", "'epochs'"),
        ({"batch-sizes": 3}, "'batch_sizes'", "'batch_size'"),
        ({"optimizer": {"learning_rate": 3}}, "'optimizer.learning_rate'", "'optimizer."),
        ({"optimiser": {"lr": 3}}, "'optimiser'", "'optimizer"),
        ({"augmentation": {"mixpu": 0.2}}, "'augmentation.mixpu'", "'augmentation.mixup'"),
        ({"model": {"patchsize": 4}}, "'model.patchsize'", "'model.patch_size'"),
        ({"lr": 0.1}, "'lr'", "the right one is 'optimizer.lr'"),
        ({"optimizer": 3}, "optimizer", "lr"),
        ({"model": 3}, "model", "patch_size"),
        ({"data": 3}, "data", "source"),
    ],
)
def test_unknown_key_in_a_file(
    content: object, named: str, close: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config_file(tmp_path, content)]) == 2
    message = capsys.readouterr().err
    assert "my.yaml" in message
    assert named in message
    assert close in message


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"epochs": "many"}, "epochs"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr"),
        ({"model": {"dim": 1.5}}, "model.dim"),
        ({"model": {"stem": "deep"}}, "model.stem"),
        ({"model": {"name": 3}}, "model.name"),
        ({"data": {"source": 3}}, "data.source"),
        ({"augmentation": {"scale": [1, 2, 3]}}, "augmentation.scale"),
    ],
)
def test_wrong_type_in_a_file(
    content: object, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config_file(tmp_path, content)]) == 2
    message = capsys.readouterr().err
    assert "my.yaml" in message
    assert key in message


def test_wrong_type_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--optimizer.lr=fast"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["epochs: [", "- 3\n"])
def test_a_file_that_holds_no_settings(content: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"my\.yaml"):
        settings(config_file(tmp_path, content))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--optimizer.lr=-1", "lr must be in (0, 100]"),
        ("--epochs=0", "epochs must be at least 1"),
        (
            "--accumulate=5",
            "devices x accumulate x num_nodes = 1 x 5 x 1 must divide batch_size = 32; a batch_",
        ),
        ("--num-nodes=5", "1 x 1 x 5 must divide batch_size = 32; a batch_size of 35 would do"),
        ("--warmup-epochs=81", "schedule.warmup_epochs must not exceed epochs = 80, got 81.0"),
        ("--min-lr=1", "schedule.min_lr must not exceed optimizer.lr = 0.002, got 1.0"),
        ("--patience=0", "patience must be at least 1, got 0"),
        ("--min-steps-per-epoch=0", "min_steps_per_epoch must be at least 1, got 0"),
        ("--profile=-1", "profile must be at least 0"),
        ("--logger=csv,comet", "a logger is one of tensorboard, csv, wandb, mlflow, got 'comet'"),
        ("--model=vit_tny_patch16_224", "close to it: vit_tiny_patch16_224"),
        ("--recipe=digit", "a recipe is one of"),
        ("--data.std=[0.0]", "data.std must be in [0.001, 1], since values are 0 to 1 (those of 0 to 255"),
        ("--data.mean=[123.675]", "data.mean must be in [0, 1], since values are 0 to 1 (those of 0 to 255"),
        # what is finite and trains nothing
        ("--optimizer.weight_decay=1e6", "weight_decay must be at least 0 and less than 1 / lr = 500, got"),
        ("--lr=1e6", "lr must be in (0, 100], got 1000000.0"),
        ("--optimizer.eps=1e6", "eps must be in (0, 1], got 1000000.0"),
        ("--clip=0", "clip must be at least 0.0001, or null for no clipping, got 0.0"),
        ("--clip-grad=1e-30", "clip must be at least 0.0001, or null for no clipping, got 1e-30"),
        ("--label-smoothing=0.999", "label_smoothing must be in [0, 0.9], got 0.999"),
        ("--distillation.temperature=1e6", "temperature must be in [0.01, 100], got 1000000.0"),
        ("--tuning.alpha=801", "alpha must be at most 100 x rank = 800, got 801"),
        ("--tuning.memories=100000000", "memories must be in [0, 10000], got 100000000"),
        ("--augmentation.rand_augment=1000", "rand_augment must be in [0, 20], got 1000"),
        ("--data.mean=[0.5,.nan]", "data.mean must be a finite number, got nan"),
        ("--data.mean=[0.5,0.5]", "data.mean must have 1 or 1 values, got 2"),
        ("--data.crop_pct=0", "data.crop_pct must be above 0 and at most 1, got 0.0"),
        ("--data.max_tokens=0", "data.max_tokens must be at least 1, got 0"),
        ("--data.channels=0", "data.channels must be at least 1, got 0"),
        ("--data.std=[]", "data.std must have 1 or 1 values, got 0"),
    ],
)
def test_values_out_of_range(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", option]) == (Status.MODEL if "--model" in option else Status.USAGE)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], 8),
        (["--recipe=deit", "--model=vit_tiny_patch16_224"], None),
        (["-b", "64"], None),
        (["--batch-size=64"], None),
        (["--min-steps-per-epoch=9"], 9),
        (["--min-steps-per-epoch=null"], None),
        (["--batch-size=64", "--min-steps-per-epoch=9"], 9),
    ],
)
def test_a_batch_size_that_was_typed_is_kept(options: list[str], steps: int | None, tmp_path: Path) -> None:
    assert settings("--data=idx:x", *options).min_steps_per_epoch == steps
    over_a_file = settings("--data=idx:x", config_file(tmp_path, {"batch_size": 64}), *options)
    assert over_a_file.min_steps_per_epoch == (9 if steps == 9 else None)


@pytest.mark.parametrize(
    ("images", "options", "size"),
    [
        (512, [], 64),
        (511, [], 32),
        (255, [], 16),
        (82, [], 8),
        (64, [], 8),
        (3, [], 8),
        (40, ["--devices=4"], 8),
        (40, ["--devices=4", "--accumulate=4"], 16),
        (40, ["--batch-size=36", "--min-steps-per-epoch=4"], 9),
        (40, ["--batch-size=6", "--min-steps-per-epoch=40"], 6),
        (40, ["--batch-size=64"], 64),
    ],
)
def test_batches_follow_the_number_of_images(images: int, options: list[str], size: int) -> None:
    config = settings("--data=idx:x", *options).with_batches_for(images)
    assert (config.batch_size, config.min_steps_per_epoch) == (size, None)
    assert config.with_batches_for(8) == config


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "the nearest one is 'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nepochs: 2\n", "'epochs' stands twice"),
        ("optimizer: {lr: 0.1, lr: 0.2}\n", "'lr' stands twice"),
        ("optimizer: {lr: .inf}\n", "lr must be in (0, 100], got inf"),
        ("augmentation: {mixup: .nan}\n", "mixup must be in [0, 100], got nan"),
        ("label_smoothing: 1.0\n", "label_smoothing must be in [0, 0.9], got 1.0"),
        ("ema: 1.0\n", "ema must be in (0, 1), got 1.0"),
        ("ema: 0.0\n", "ema must be in (0, 1), got 0.0"),
    ],
)
def test_settings_that_mean_nothing(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["train", "--config", str(file), "--output", str(tmp_path / "run")]) == Status.USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
