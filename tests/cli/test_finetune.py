"""Training on from weights, and from a teacher, by the real command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.cli.conftest import TINY, train
from vit_pytorch import create_model
from vit_pytorch.cli import Status, main
from vit_pytorch.cli.finetune import start_layer
from vit_pytorch.cli.train import model_layer
from vit_pytorch.create import load_model
from vit_pytorch.distill import DistillableViT
from vit_pytorch.learnable_memory_vit import Adapter
from vit_pytorch.memory_vit import MemoryViT
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.training import run, tuning
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.saved import load_classifier
from vit_pytorch.vit import ViT

SIZES = {
    "image_size": 24,
    "patch_size": 4,
    "num_classes": 4,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 32,
}
PIT = {
    "image_size": 24,
    "patch_size": 4,
    "stride": 2,
    "dim": 16,
    "depth": (1, 1),
    "heads": 2,
    "mlp_dim": 32,
    "channels": 1,
}
SHORT = ["--accelerator=cpu", "--batch-size=64", "--epochs=1", "--schedule.warmup-epochs=0"]


def finetune(*arguments: str | Path) -> int:
    return main(["finetune", *SHORT, *map(str, arguments)])


def distill(*arguments: str | Path) -> int:
    return main(["distill", *SHORT, *map(str, arguments)])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not tensor.equal(after[name])}


def accuracy(run: Path) -> float:
    return json.loads((run / "summary.json").read_text())["test"]["accuracy"]


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something."""
    folder = tmp_path_factory.mktemp("runs") / "good"
    smaller = ["--model.dim=32", "--model.heads=2", "--model.depth=2", "--model.mlp-dim=64"]
    assert train("--output", folder, "--epochs=12", "--schedule.warmup-epochs=1", *smaller) == 0
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a ViT with a class token, for the digits."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    create_model("vit_tiny_patch16_224", channels=1, **SIZES).save_pretrained(folder)
    return folder


def test_finetune_starts_where_a_run_ended(good_run: Path, tmp_path: Path):
    """With a new classifier that must learn first, and weights that need not."""
    assert finetune("--from", good_run, "--output", tmp_path / "run", "--epochs=3") == 0
    from_scratch = ["--model.dim=32", "--model.heads=2", "--model.depth=2", "--model.mlp-dim=64", *SHORT]
    assert train("--output", tmp_path / "scratch", *from_scratch, "--epochs=3") == 0
    assert accuracy(tmp_path / "run") > accuracy(tmp_path / "scratch") + 0.2
    saved = load_classifier(tmp_path / "run")
    assert saved.preprocessing == load_classifier(good_run).preprocessing
    # the first loss is that of a classifier of zeros
    first = read_rows(tmp_path / "run" / "metrics.csv")[0]
    assert first["val/loss"] < 2.31


def test_another_size_and_other_classes(good_run: Path, image_folder: Path, tmp_path: Path):
    arguments = ["--from", good_run, "--data", image_folder, "--image-size=32", "--workers=0"]
    assert finetune(*arguments, "--output", tmp_path / "run") == 0
    model = load_model(tmp_path / "run")
    assert model.image_size == (32, 32)
    assert model.num_classes == 3
    assert model.positions.table.shape[1] == 64


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_and_another_patch(channels: int, tmp_path: Path):
    """Weights for RGB, put on grey images or arrays of four channels, in smaller patches."""
    start, images = tmp_path / "start", tmp_path / "images"
    create_model("vit_tiny_patch16_224", **SIZES).save_pretrained(start)
    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((channels, 24, 24), 20 * i + 100 * (name == "b"), np.uint8)
            np.save(images / name / f"{i}.npy", pixels)
    options = [f"--data.channels={channels}", "--model.patch_size=3", "--method=head", "--batch-size=4"]
    arguments = ["--from", start, "--data", images, "--workers=0", "--output", tmp_path / "run"]
    assert finetune(*arguments, *options) == 0
    sizes = {**SIZES, "patch_size": 3, "num_classes": 2}
    expected = create_model("vit_tiny_patch16_224", **sizes, channels=channels)
    load_pretrained(expected, start, new_classifier=True)
    state = {name: value.contiguous() for name, value in expected.state_dict().items()}
    assert changed(state, weights(tmp_path / "run")) <= {"head.weight", "head.bias"}


def test_head_alone(good_run: Path, tmp_path: Path):
    """A linear probe leaves everything else as it was, the statistics of batch norm, too."""
    assert finetune("--from", good_run, "--method=head", "--output", tmp_path / "run") == 0
    assert changed(weights(good_run), weights(tmp_path / "run")) == {"head.weight", "head.bias"}


def test_low_rank_updates(good_run: Path, tmp_path: Path):
    """They end up in the weights of attention; what is saved is the plain model."""
    options = ["--method=lora", "--tuning.rank=2", "--output", tmp_path / "run"]
    assert finetune("--from", good_run, *options) == 0
    before, after = weights(good_run), weights(tmp_path / "run")
    names = {f"blocks.{i}.attention.{x}.weight" for i in (0, 1) for x in ("to_qkv", "to_out")}
    assert changed(before, after) == {*names, "head.weight", "head.bias"}
    for name in names:
        difference = after[name] - before[name]
        assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2


@pytest.mark.parametrize("mode", ["extend", "finetune"])
def test_memory(
    base: Path, image_folder: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
):
    """What learns lies beside a base that stays as it was, and what is saved is one model like any other."""
    options = ["--method=memory", "--tuning.memories=3", f"--tuning.memory-mode={mode}", "--epochs=2"]
    run = tmp_path / "run"
    assert finetune("--from", base, *options, "--output", run) == 0
    vit, model = load_model(base), load_model(run)
    assert type(model) is MemoryViT
    assert model.adapter.config == {
        "num_classes": 10,
        "num_memories_per_layer": 3,
        "mode": mode,
        "memory_std": 0.02,
    }
    kept = {name: tensor for name, tensor in vit.state_dict().items() if not name.startswith("head.")}
    assert changed(kept, model.adapter.vit.state_dict()) == set()
    images = torch.rand(3, 1, 24, 24)
    alone = Adapter.from_pretrained(run / "adapter", vit=vit)
    assert alone.task.memories.shape == (2, 3, 16)
    assert alone(images).equal(model(images))
    first, last = (row["val/loss"] for row in read_rows(run / "metrics.csv"))
    assert last < first
    picture = str(image_folder / "one" / "0.png")
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert main(["predict", str(run), picture]) == 0
    assert main(["explain", str(run), picture, f"--output={tmp_path / 'explained'}"]) == 0
    assert f"accuracy {accuracy(run):.2%}" in capsys.readouterr().out
    assert finetune("--from", run) == 2
    assert "under the memory of one task" in capsys.readouterr().err


def test_memory_needs_a_plain_vit(good_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert finetune("--from", good_run, "--method=memory", "--tuning.memory_mode=finetune") == 4
    assert "the base has none" in capsys.readouterr().err
    create_model("pit_ti_224", **PIT).save_pretrained(tmp_path)
    assert finetune("--from", tmp_path, "--method=memory") == 4
    assert "method 'memory' needs a plain ViT, got PiT" in capsys.readouterr().err


def test_what_lora_needs_is_said_before_weights_are_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    monkeypatch.setattr(run, "load_start", lambda *_: pytest.fail("weights were read"))
    arguments = ["--from=vit_tiny_patch16_224", "--method=lora", "--output", str(tmp_path / "run")]
    assert main(["finetune", *arguments]) == Status.MODEL
    assert "method 'lora' needs one more package: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["head", "lora", "memory"])
def test_a_resumed_run_goes_on(good_run: Path, tmp_path: Path, method):
    """The same weights come out whether or not the run was interrupted after its first epoch."""
    start = ["--from", good_run, f"--method={method}", "--ema=0.5"]
    assert finetune(*start, "--epochs=2", "--output", tmp_path / "whole") == 0
    assert finetune(*start, "--epochs=2", "--output", tmp_path / "parts") == 0
    checkpoints = tmp_path / "parts" / "checkpoints"
    for path in checkpoints.glob("epoch-*"):
        assert path.is_dir()
    config = yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())
    assert config["tuning"]["method"] == method
    assert changed(weights(tmp_path / "whole"), weights(tmp_path / "parts")) == set()
    # a third epoch, from the checkpoint of the second
    assert main(["finetune", f"--resume={tmp_path / 'parts'}", "--epochs=3"]) == 0
    assert [row["epoch"] for row in read_rows(tmp_path / "parts" / "metrics.csv")] == [1, 2, 3]


def test_published_weights_in_the_cache(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name fetches its release; the classifier and the images' colours change with the data."""
    torch.manual_seed(0)
    timm = pytest.importorskip("timm")
    reference = timm.create_model("vit_tiny_patch16_224")
    folder = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(reference.state_dict(), snapshot / "model.safetensors")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (snapshot / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = create_model("vit_tiny_patch16_224.augreg_in21k", pretrained=True).eval()
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(images), reference.eval()(images), rtol=1e-4, atol=1e-4)
    name = "vit_tiny_patch16_224.augreg_in21k"
    data = ["--data", image_folder, "--workers=0", "--batch-size=8"]
    options = ["--image-size=80", "--output", tmp_path / "run", "--method=head"]
    assert finetune("--from", name, *data, *options) == 0
    saved = load_classifier(tmp_path / "run")
    assert saved.preprocessing.mean == (0.1, 0.2, 0.3)
    assert saved.preprocessing.channels == 3
    assert saved.classes == ("one", "two", "zero")
    assert weights(tmp_path / "run")["norm.weight"].equal(reference.norm.weight)


def test_a_file_of_weights(good_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = good_run / "model" / "model.safetensors"
    assert finetune("--from", file) == 2
    assert "name its model by --model" in capsys.readouterr().err
    assert finetune("--from", file, "--model", "vit_tiny_patch16_224", "--output", tmp_path / "run") == 4
    assert "does not fit ViT" in capsys.readouterr().err
    sizes = ["dim=32", "depth=2", "heads=2", "dim-head=16", "mlp-dim=64", "image-size=24", "patch-size=4"]
    sizes += ["stem=conv", "pool=mean"]
    named = ["--model", "vit_tiny_patch16_224", *(f"--model.{size}" for size in sizes)]
    options = ["--method=head", "--output", tmp_path / "run"]
    assert finetune("--from", file, *named, *options) == 0
    assert changed(weights(good_run), weights(tmp_path / "run")) == {"head.weight", "head.bias"}


def test_distilled_student(good_run: Path, tmp_path: Path):
    """A plain model's name builds its distillable twin; the teacher stays out of what is saved."""
    options = ["--student=vit_tiny_patch16_224", "--epochs=2", *TINY]
    assert distill("--teacher", good_run, "--output", tmp_path / "run", *options) == 0
    model = load_model(tmp_path / "run")
    assert type(model) is DistillableViT
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["distillation"]["teacher"] == str(good_run)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("epoch-0002")
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # weights, their average and two moments of the optimizer
    assert size < 6 * 4 * parameters + 100_000
    assert main(["distill", f"--resume={tmp_path / 'run'}", "--epochs=3"]) == 0
    assert finetune("--from", tmp_path / "run", "--output", tmp_path / "plain", "--method=head") == 0
    plain = load_model(tmp_path / "plain")
    assert type(plain) is ViT
    assert plain.prefix.registers.shape == (1, 1, 16)


def test_wrong_usage(good_run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]):
    for command, arguments, status, message in (
        ("finetune", [], 2, "vit finetune needs --from"),
        ("distill", [], 2, "vit distill needs --teacher"),
        ("finetune", ["--from", str(image_folder)], 4, "has no model"),
        ("finetune", ["--from", "cct_2_3x2_32"], 4, "with trained weights it is cct_2_3x2_32.cifar10"),
        (
            "finetune",
            ["--from", "google/vit-b"],
            2,
            "if it is a repository on the Hub, give hf-hub:google/vit-b",
        ),
        (
            "finetune",
            ["--from", "google/vit-b", "--model=vit_tiny_patch16_224"],
            4,
            "on the Hub, give hf-hub:google/vit-b",
        ),
        ("distill", ["--teacher", "cct_2_3x2_32.cifar10"], 4, "has the classes airplane"),
        ("train", ["--tuning.method=head"], 2, "method 'head' needs weights to start from"),
        ("distill", ["--teacher", str(good_run), "--alpha=2"], 2, r"alpha must be in [0, 1], got 2.0"),
        (
            "distill",
            ["--teacher", str(good_run), "--student=xcit_nano_12_p16_224"],
            4,
            "got XCiT with Linear",
        ),
        ("distill", ["--teacher", str(good_run), "--data", str(image_folder)], 4, "has the classes 0, 1"),
    ):
        assert main([command, *arguments]) == status, message
        assert message in capsys.readouterr().err


def test_another_models_architecture(good_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A folder in the place of a name gives its arguments, of which the command line may change some."""
    short = ["--accelerator=cpu", "--epochs=1", "--schedule.warmup-epochs=0", "--model.depth=1"]
    assert main(["train", "--model", str(good_run), "--output", str(tmp_path / "run"), *short]) == 0
    old, new = (load_model(run) for run in (good_run, tmp_path / "run"))
    assert new.config == {**old.config, "depth": 1}
    assert old.config["dim"] == 32
    assert not new.state_dict()["norm.weight"].equal(old.state_dict()["norm.weight"])
    assert main(["train", "--model", str(tmp_path)]) == 4
    assert "has no model" in capsys.readouterr().err


def test_a_distilled_architecture_is_the_plain_ones(tmp_path: Path):
    distilled = DistillableViT(**SIZES, num_registers=2)
    distilled.default_cfg["architecture"] = "vit_tiny_patch16_224"
    distilled.save_pretrained(tmp_path)
    arguments = model_layer(str(tmp_path))["model"]
    assert arguments.pop("name") == "vit_tiny_patch16_224"
    plain = distilled.to_vit().config
    assert {**plain, "num_registers": 3} == plain == {**arguments, "num_classes": 4, "channels": 3}


def test_weights_are_not_read_for_their_architecture(tmp_path: Path):
    model = create_model("mobilevit_xxs", image_size=64, channels=1)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    layer = start_layer(str(tmp_path))
    assert layer["data"] == {"channels": 1}
    assert layer["model"]["widths"] == list(model.config["widths"])
    assert layer["tuning"] == {"weights": str(tmp_path)}


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        (["--from=cct_2_3x2_32.cifar10"], 5e-4 * 768 / 128),
        (["--from=vit_small_patch16_224.augreg_in21k"], 5e-4 * 768 / 384),
        (["--from=weights.pth", "--model=vit_base_patch16_224"], 5e-4),
        (["--from=cct_2_3x2_32.cifar10", "--lr=0.1"], 0.1),
    ],
)
def test_narrow_models_learn_at_larger_rates(
    options: list[str], rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", *options, "--data=photos", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == pytest.approx(rate)


def test_rates_of_the_narrowest_models_end_somewhere(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", f"--from={digits_run}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == pytest.approx(8 * 5e-4)
