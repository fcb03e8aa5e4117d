"""Learning without labels by the real command, and what its runs are good for."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli.conftest import TINY, Vit
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.cli import main
from vit_pytorch.cli.layers import long_options
from vit_pytorch.cli.pretrain import read_pretraining
from vit_pytorch.create import load_model
from vit_pytorch.training.checkpoints import checkpoint_weights
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.pretraining.config import METHODS
from vit_pytorch.training.recipes import PRETRAIN, list_recipes

SMALL = [*TINY, "--recipe=digits", "--accelerator=cpu", "--epochs=1", "--monitor.neighbours=5"]
HEADS = ["--method.num-logits=32", "--method.hidden-dim=16", "--method.bottleneck-dim=8"]
TEACHES = ("dino", "esvit")


def pretrain(*arguments: str | Path) -> int:
    return main(["pretrain", *map(str, arguments)])


def settings(*arguments: str):
    return read_pretraining(long_options(arguments, short=("data", "model", "method")), None)[0]


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each method, of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    heads = HEADS if request.param in TEACHES else []
    data = f"--data=idx:{idx_folder}"
    assert pretrain("--method", request.param, data, "--output", folder, *SMALL, *heads) == 0
    return folder


def test_a_run_leaves_everything(run: Path):
    """And fine-tuning begins with it: the classifier alone learns, the rest is what pretraining left."""
    name = run.name
    (row,) = read_rows(run / "metrics.csv")
    assert {"epoch", "step", "lr", "train/loss", "val/loss", "val/feature_std", "val/knn_accuracy"} <= set(
        row
    )
    assert ("val/teacher_entropy" in row) == (name in TEACHES)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["method"]["name"] == name
    assert summary["images"] == {"train": 270, "val": 30, "test": 100}
    assert summary["knn_accuracy"]["val"] == pytest.approx(row["val/knn_accuracy"], abs=1e-6)
    assert summary["collapse"] == []
    assert "collapse: none seen" in (run / "summary.md").read_text()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "pictures").exists() == (name in ("mae", "simmim", *TEACHES))
    assert yaml.safe_load((run / "config.yaml").read_text())["method"]["name"] == name

    model = load_model(run)
    assert model.num_classes == 0
    whole = checkpoint_weights(run / "checkpoints" / "last")
    inside = {
        "mae": "encoder",
        "simmim": "encoder",
        "mpp": "transformer",
        "mp3": "vit",
        "lejepa": "encoder.net",
    }
    prefix = inside.get(name, "teacher.model.net")
    assert all(value.equal(whole[f"{prefix}.{key}"]) for key, value in model.state_dict().items())
    assert len(whole) > len(model.state_dict())

    taught = ["--method=head", "--epochs=1", "--batch-size=64", "--schedule.warmup-epochs=0", "--ema=null"]
    folder = run.parent / "finetuned"
    assert main(["finetune", "--from", str(run), *taught, "--output", str(folder)]) == 0
    after = load_file(folder / "model" / "model.safetensors")
    before = model.state_dict()
    changed = {key for key, value in after.items() if not same(value, before.get(key))}
    assert changed == {"head.weight", "head.bias"}


def same(first: torch.Tensor, second: object) -> bool:
    return isinstance(second, torch.Tensor) and first.equal(second)


@pytest.mark.parametrize("method", ["mae", "dino"])
def test_resumed_by_the_command(method: str, tmp_path: Path, idx_folder: Path):
    """A second epoch after a stop equals the second of two; pictures and figures go on, too."""
    heads = HEADS if method in TEACHES else []
    options = ["--method", method, f"--data=idx:{idx_folder}", *SMALL, *heads, "--monitor.pictures_every=1"]
    assert pretrain(*options, "--epochs=2", "--output", tmp_path / "whole") == 0
    assert [path.name for path in sorted((tmp_path / "whole" / "pictures").iterdir())] == [
        "epoch-0001.png",
        "epoch-0002.png",
    ]
    with Image.open(tmp_path / "whole" / "pictures" / "epoch-0002.png") as sheet:
        assert len(sheet.getcolors(1 << 20)) > 10
    events = EventAccumulator(str(tmp_path / "whole" / "tensorboard"))
    events.Reload()
    assert len(events.Images("pictures")) == 2
    assert len(events.Scalars("val/feature_std")) == 2
    assert pretrain("--resume", tmp_path / "whole") == 5
    assert pretrain("--resume", tmp_path / "whole", "--epochs=3") == 0
    assert [row["epoch"] for row in read_rows(tmp_path / "whole" / "metrics.csv")] == [1, 2, 3]


def test_settings_read_back_and_belong_to_their_method(tmp_path: Path):
    config = settings("--method=dino", "--method.momentum=0.5", "--monitor.patience=7")
    assert config.method.name == "dino"
    assert (config.method.momentum, config.monitor.patience, config.epochs) == (0.5, 7, 40)
    (tmp_path / "mine.yaml").write_text("method: {name: mae, decoder_dim: 24}\nepochs: 9\n")
    file = f"--config={tmp_path / 'mine.yaml'}"
    assert (settings(file).method.decoder_dim, settings(file).method.decoder_depth) == (24, 1)
    # what a file says of one method is nothing to another
    assert settings(file, "--method=simmim").method.mask_patch_size == 4


@pytest.mark.parametrize("recipe", list_recipes(PRETRAIN))
@pytest.mark.parametrize("method", METHODS)
def test_recipes_are_whole(recipe: str, method: str):
    assert settings(f"--recipe={recipe}", f"--method={method}").epochs > 1


@pytest.mark.parametrize("method", METHODS)
def test_help_lists_the_methods_own_settings(method: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        pretrain("--method", method, "--help")
    shown = capsys.readouterr().out
    mine = set(METHODS[method].__dataclass_fields__) - {"name"}
    assert all(f"--method.{field}" in shown for field in mine)
    assert "--monitor.knn_every" in shown


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--method=mea"], 2, "a method is one of mae, simmim"),
        (["--method=dino", "--method.decoder_dim=3"], 2, "unknown option '--method.decoder_dim'"),
        (
            ["--method=mae", "--model=cvt_13"],
            2,
            "method mae cannot teach cvt_13: expected a model of one",
        ),
        (
            ["--method=mae", "--model=cvt_13"],
            2,
            "dino, esvit and lejepa teach models that are no such sequence",
        ),
        (["--method=mp3", "--model=vit_small_patch16_18x2_224"], 2, "blocks, got ParallelViT"),
        (["--method=esvit", "--model=crossvit_tiny_240", "--method.num_local_crops=0"], 2, "gives none"),
        (["--method=simmim", "--method.mask-patch-size=5"], 2, "is not a multiple of patch size (4, 4)"),
        (["--augmentation.mixup=0.2"], 2, "mixup and cutmix must be 0, got 0.2"),
        (["--strategy=fsdp"], 2, "by strategy 'auto' or 'ddp', got 'fsdp'"),
        (["--method=dino", "--precision=bf16-true"], 2, "stands still in bf16"),
        (["--method=dino", "--method.momentum=2"], 2, "momentum must be in [0, 1), got 2.0"),
        (
            ["--method=dino", "--method.teacher_temp=1e6"],
            2,
            "teacher_temp must be in [0.001, 10], got 1000000.0",
        ),
        (["--method=dino", "--method.num_logits=1"], 2, "num_logits must be at least 2, got 1"),
        (
            ["--method=dino", "--method.freeze_last_layer_epochs=999"],
            2,
            "method.freeze_last_layer_epochs must not exceed epochs",
        ),
        (
            ["--method=dino", "--method.weight_decay_end=1e6"],
            2,
            "weight_decay_end must be at least 0 and less",
        ),
        (["--monitor.patience=0"], 2, "monitor.patience must be at least 1, got 0"),
        (["--monitor.neighbours=2000"], 2, "among the 1295 training images, got 2000"),
    ],
)
def test_what_cannot_be(arguments, status, message, tmp_path, monkeypatch, capsys):
    """One sentence, before any folder is taken."""
    monkeypatch.chdir(tmp_path)
    assert pretrain("--accelerator=cpu", *arguments) == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_runs_are_resumed_by_the_command_that_began_them(digits_run: Path, tmp_path: Path, capsys):
    assert pretrain("--resume", digits_run) == 2
    assert "is the run of a classifier" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("method: {name: mae}\n...\n")
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "use vit pretrain" in capsys.readouterr().err


def test_probes(digits_run: Path, capsys: pytest.CaptureFixture[str]):
    """Of a classifier, too: what enters its last layer."""
    found = {}
    for probe in ("knn", "linear"):
        capsys.readouterr()
        assert main(["evaluate", str(digits_run), "--probe", probe, "--json"]) == 0
        found[probe] = json.loads(capsys.readouterr().out)
        assert found[probe]["images"] == 360
        assert found[probe]["accuracy"] > 0.5
    assert found["knn"]["accuracy"] != found["linear"]["accuracy"]
    assert main(["evaluate", str(digits_run), "--probe=knn", "--split=val"]) == 0
    assert "val: knn accuracy" in capsys.readouterr().out
    assert main(["evaluate", str(digits_run), "--probe=knn", "--split=train"]) == 2
    assert "a probe knows the train split" in capsys.readouterr().err


def test_a_model_without_classifier_is_not_asked_for_classes(tmp_path: Path, capsys):
    model = create_model("vit_tiny_patch16_224", num_classes=0, dim=16, depth=1, heads=2, image_size=80)
    model.save_pretrained(tmp_path)
    assert main(["evaluate", str(tmp_path), "--data=digits"]) == 4
    assert "without a classifier" in capsys.readouterr().err
    model = create_model("vit_tiny_patch16_224", dim=16, depth=1, heads=2, image_size=80)
    with pytest.warns(UserWarning, match=r"head\.weight, head\.bias .* have their initial values"):
        load_pretrained(model, tmp_path)


def test_two_processes_make_one_run(tmp_path: Path, idx_folder: Path, vit: Vit, capsys):
    """With accumulated batches; the figures over both processes are those of one over all images."""
    spread = ["--devices=2", "--strategy=ddp", "--accumulate=2", "--batch-size=32"]
    options = [f"--data=idx:{idx_folder}", *SMALL, *HEADS, "--method.freeze_last_layer_epochs=0.5", *spread]
    done = vit("pretrain", "--method=dino", *options, "--output=run")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    run = tmp_path / "run"
    (row,) = read_rows(run / "metrics.csv")
    assert row["step"] == 8
    assert int(checkpoint_weights(run / "checkpoints" / "last")["steps"]) == 8
    summary = json.loads((run / "summary.json").read_text())
    assert row["val/knn_accuracy"] == pytest.approx(summary["knn_accuracy"]["val"], abs=1e-6)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--probe=knn", "--split=val", "--neighbours=5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(row["val/knn_accuracy"])
