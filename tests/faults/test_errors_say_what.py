"""Each kind of error is one sentence with an exit status of its own; tracebacks come with `--debug`."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import TINY, train
from vit_pytorch.cli import DEBUG, Status, main, use
from vit_pytorch.data import FileImages, LoadingError
from vit_pytorch.training.checkpoints import MANIFEST
from vit_pytorch.weights import CONFIG_CHECKSUM

SMALL = ["--epochs=1", *TINY]
# a processor that this machine does not have
ABSENT = "mps" if torch.cuda.is_available() else "cuda"


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--epocs=3"], Status.USAGE, "unknown option '--epocs'"),
        (["train", "--epochs=null"], Status.USAGE, "epochs"),
        (["train", "--augmentation.mixup=-1"], Status.USAGE, "mixup must be in [0, 100], got -1.0"),
        (["train", "--workers=-1"], Status.USAGE, "workers must be in [0, 256], got -1"),
        (["train", f"--accelerator={ABSENT}", *SMALL], Status.USAGE, f"accelerator '{ABSENT}' with 1 dev"),
        (
            ["train", "--data.window=0,3000"],
            Status.USAGE,
            "data.window must be a list in brackets such as [1,2] or 'auto' or null, got 0,3000",
        ),
        (
            ["train", "--img_size=32x64"],
            Status.USAGE,
            "model.image_size must be an integer or a list in brackets such as [1,2], got 32x64",
        ),
        (["train", "--lr=abc"], Status.USAGE, "optimizer.lr must be a number, got abc"),
        (["train", "--batch_size=8.5"], Status.USAGE, "batch_size must be an integer, got 8.5"),
        (
            ["train", "--task=clasify"],
            Status.USAGE,
            "task must be 'classify', 'multilabel' or 'regression', got clasify",
        ),
        (["train", "--seed=-1"], Status.USAGE, "seed must be in [0, 4294967295], got -1"),
        (
            ["train", "--data.split_seed=-1"],
            Status.USAGE,
            "data.split_seed must be in [0, 4294967295], got -1",
        ),
        (["train", "--workers=100000"], Status.USAGE, "workers must be in [0, 256], got 100000"),
        (
            ["train", "--data.val_fraction=20"],
            Status.USAGE,
            "data.val_fraction must be between 0 and 1, got 20",
        ),
        (["train", "--data.worker_timeout=0"], Status.USAGE, "data.worker_timeout must be positive, got 0.0"),
        (["train", "--epochs=0"], Status.USAGE, "epochs must be at least 1"),
        (
            ["embed", "RUN", "x.png", "--output=x.npz", "--workers=-1"],
            Status.USAGE,
            "workers must be in [0, 256]",
        ),
        (["train", "--output="], Status.USAGE, "--output must not be empty"),
        (["train", "--resume", ""], Status.USAGE, "--resume must not be empty"),
        (["finetune", "--from", "", *SMALL], Status.USAGE, "--from must not be empty"),
        (["evaluate", "RUN", "--data="], Status.USAGE, "--data must not be empty"),
        (["explain", "RUN", "x.png", "--output", ""], Status.USAGE, "--output must not be empty"),
        (["bench", ""], Status.MODEL, "the name of a model must not be empty"),
        (["train", "--data=video:"], Status.DATA, "the name of the data must not be empty, got 'video:'"),
        (["train", "--data= "], Status.DATA, "the name of the data must not be empty, got ' '"),
        (["train", "--data=nowhere"], Status.DATA, "no such folder: nowhere"),
        (["predict", "RUN", ""], Status.DATA, "no such image"),
        (["predict", "RUN", "nowhere.png"], Status.DATA, "no such image"),
        (["predict", "nowhere", "x.png"], Status.MODEL, "no such folder: nowhere"),
        (["train", "--model=vit_tny"], Status.MODEL, "close to it"),
        (["train", "--resume=nowhere"], Status.RUN, "nothing to resume"),
        (["train", "--output=RUN"], Status.RUN, "already holds a run"),
        (["train", "--output=/dev/null/run", *SMALL], Status.RUN, "cannot be written"),
    ],
)
def test_a_sentence_and_a_status(
    arguments: list[str],
    status: Status,
    message: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong options, data, models, runs and folders.

    Here: a sentence and a status; a traceback with `--debug`
    Others: `Trainer`: a learning rate of -1 or NaN, a batch size of 0 and -1 workers end in a `ValueError`;
        with -1 epochs it trains nothing and ends as if all were well; an output folder that holds a run is
        trained into. timm's `train.py`: `--epochs 0` and a folder that is not there end in an
        `AssertionError` without words, an unknown option in the usage, status 2
    """
    monkeypatch.chdir(run.parent)
    arguments = [argument.replace("RUN", str(run)) for argument in arguments]
    assert main(arguments) == status
    said = capsys.readouterr().err
    assert said.startswith("vit: error: ")
    assert message in said
    assert "Traceback" not in said
    assert main([*arguments, DEBUG]) == status
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError(), Status.RESOURCES, "out of memory: MemoryError; a smaller batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory."), Status.RESOURCES, "CUDA out of memory.; a smaller"),
        (RuntimeError("can't allocate memory: 8 bytes"), Status.RESOURCES, "out of memory: can't allocate"),
        (LoadingError("data-loader worker 0: no"), Status.DATA, "data-loader worker 0: no"),
        (KeyError("head"), Status.UNEXPECTED, "unexpected KeyError: 'head'; --debug shows where"),
        (KeyboardInterrupt(), Status.CTRL_C, "interrupted"),
    ],
)
def test_errors_from_anywhere(
    error: BaseException,
    status: Status,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Out of memory, Ctrl-C, an error that nothing foresaw.

    Here: a sentence and a status; a traceback with `--debug`
    Others: Ctrl-C: Lightning says so and ends with status 1, `Trainer` in a traceback with status 1;
        both leave the checkpoint of the last epoch
    """

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(use, "print_predictions", fail)
    monkeypatch.setattr(use, "call", fail)
    assert main(["predict", "run", "x.png"]) == status
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(depth="two"), "depth must be an integer in [1, 1024], got 'two'"),
        (lambda config: config.update(depth=10**9), "depth must be an integer in [1, 1024], got 1000000000"),
        (lambda config: config.update(dim=None), "does not fit|describes no ViT|dim"),
        (lambda config: config.update(dpeth=2), "ViT has no argument dpeth"),
        (lambda config: config.update(architecture=["ViT"]), "architecture must be one of"),
        (lambda config: config.update(default_cfg=3), "default_cfg must hold settings, got 3"),
        (
            lambda config: config["default_cfg"].update(architecture=[]),
            "in default_cfg must be a name, got []",
        ),
        (lambda config: config["default_cfg"].update(maen=[0.5]), "default_cfg has no setting maen; it has"),
        (lambda config: config["default_cfg"].update(mean=3), "does not say how its input is prepared"),
        (lambda config: config["default_cfg"].update(input_size=7), "does not say how its input is prepared"),
        (lambda config: config["default_cfg"].update(label_names=["a"]), "must name 10 classes, got 1"),
        (lambda config: config["default_cfg"]["label_names"].__setitem__(3, "4"), "different names, got '4'"),
        (lambda config: config["default_cfg"]["label_names"].__setitem__(3, 3), "different names, got 3"),
        (lambda config: config["default_cfg"].update(mean=[math.nan]), "mean must be finite, got (nan,)"),
    ],
)
def test_a_tampered_configuration(
    change: Callable[[dict[str, Any]], Any], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tampered `config.json`.

    Here: refused by name
    Others: transformers refuses a depth of 'two' by name, and takes an unknown key without a word
    """
    edit_json(run / "model" / "config.json", lambda config: (change(config), config.pop(CONFIG_CHECKSUM)))
    assert main(["predict", str(run), str(run / "wrong.png")]) == Status.MODEL
    said = capsys.readouterr().err
    assert any(part in said for part in message.split("|")), said
    assert "Traceback" not in said


@pytest.mark.parametrize("key", ["files", "epoch", "format"])
def test_a_manifest_without_a_key(key: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint's manifest without a key.

    Here: the checkpoint is named, and another one offered
    Others: `Trainer`, of a `trainer_state.json` without `global_step`: trains on without a word; Lightning,
        of a checkpoint without `state_dict`: a `KeyError`
    """
    checkpoint = (run / "checkpoints" / "last").resolve()
    edit_json(checkpoint / MANIFEST, lambda manifest: manifest.pop(key))
    assert train("--resume", run, "--epochs=3") == Status.RUN
    said = capsys.readouterr().err
    assert str(checkpoint) in said
    assert "Traceback" not in said


class Leaving(FileImages):
    """Images whose decoder leaves the process."""

    def read(self, *_: Any, **__: Any) -> Any:
        sys.exit("done")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_decoder_that_leaves(
    workers: int,
    tmp_path: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A decoder that calls `sys.exit`, in a worker or not.

    Here: the image is named; the command does not end with status 0
    Others: PyTorch's `DataLoader`: in a worker a `RuntimeError`; in the process itself, `sys.exit()` ends
        it with status 0
    """
    monkeypatch.setattr(FileImages, "read", Leaving.read)
    options = [*SMALL, "--model.image-size=20", f"--workers={workers}", "--batch-size=8"]
    assert train("--data", image_folder, "--output", tmp_path / "run", *options) == Status.DATA
    said = capsys.readouterr().err
    assert "failed: SystemExit: done" in said
    assert str(image_folder) in said
    assert not (tmp_path / "run").exists()


def test_an_added_class(
    run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class is added between training and resuming.

    Here: refused, with both lists
    Others: `Trainer` and Lightning: a `RuntimeError` with the shapes that differ
    """
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    options = [*SMALL, "--model.image-size=20", "--workers=0", "--batch-size=8"]
    assert train("--data", images, "--output", tmp_path / "run", *options) == 0
    shutil.copytree(images / "one", images / "three")
    assert train("--resume", tmp_path / "run", "--epochs=2") == Status.DATA
    assert "the data must have the record's classes, 3: one, two, zero; new are (1: three)" in (
        capsys.readouterr().err
    )


def test_channels_that_photographs_do_not_have(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--data.channels 4` on photographs.

    Here: refused before training, with the image
    Others: timm (`in_chans=4`): a `RuntimeError` of the first convolution
    """
    options = [*SMALL, "--model.image-size=20", "--workers=0", "--batch-size=8", "--data.channels=4"]
    assert train("--data", image_folder, "--output", tmp_path / "run", *options) == Status.DATA
    said = capsys.readouterr().err
    assert "4 are wanted (data.channels)" in said
    assert not (tmp_path / "run").exists()
