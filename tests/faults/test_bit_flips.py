"""A finished model is known by the checksum in its configuration."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import TINY
from tests.faults.conftest import flip_a_bit
from vit_pytorch import create_model
from vit_pytorch.base import CONFIG_NAME
from vit_pytorch.cli import main
from vit_pytorch.create import load_model
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.trained import list_trained, trained_folder
from vit_pytorch.training.predictor import Predictor
from vit_pytorch.weights import CHECKSUM, CHECKSUMS, CONFIG_CHECKSUM, read_settings


def test_a_flipped_bit_in_a_finished_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit in a finished model.

    Here: refused by its SHA-256, in Python and in every command
    Others: timm, transformers (both from safetensors), Lightning and the public vit-pytorch
        (`torch.load`) load it without a word
    """
    weights = run / "model" / "model.safetensors"
    architecture = type(load_model(run))
    flip_a_bit(weights)
    message = rf"{weights} is damaged: its SHA-256 is not the {CHECKSUM} of its configuration"
    for load in (load_model, create_model, lambda folder: architecture.from_pretrained(folder / "model")):
        with pytest.raises(ValueError, match=message):
            load(run)
    commands = (
        ["predict", str(run), "x.png"],
        ["evaluate", str(run)],
        ["finetune", "--from", str(run), "--output", str(run.parent / "other"), *TINY],
    )
    for command in commands:
        assert main(command) == 4
        assert f"{weights} is damaged" in capsys.readouterr().err


def test_a_flipped_bit_in_weights_to_start_from(run: Path) -> None:
    """A flipped bit in weights to start from.

    Here: refused by its SHA-256
    Others: timm (`checkpoint_path`) and transformers (`from_pretrained`) load them without a word; so does
        `Trainer` a checkpoint to go on from
    """
    model = load_model(run)
    flip_a_bit(run / "model" / "model.safetensors")
    for place in (run / "model", run / "model" / "model.safetensors"):
        with pytest.raises(ValueError, match="is damaged: its SHA-256"):
            load_pretrained(model, place)


def test_a_model_without_a_checksum_loads(run: Path, tmp_path: Path) -> None:
    """A model of an earlier version, without checksums.

    Here: loads
    Others: no counterpart: none has checksums
    """
    folder = Path(shutil.copytree(run / "model", tmp_path / "old"))
    config = json.loads((folder / "config.json").read_text())
    assert all(len(config.pop(name)) == 64 for name in CHECKSUMS)
    (folder / "config.json").write_text(json.dumps(config))
    old, new = load_model(folder).state_dict(), load_model(run).state_dict()
    assert all(old[name].equal(value) for name, value in new.items())


def swap_two_classes(config: dict[str, Any]) -> None:
    names = config["default_cfg"]["label_names"]
    names[3], names[5] = names[5], names[3]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["default_cfg"].update(mean=[0.4]),
        lambda config: config["default_cfg"].update(std=[0.25]),
        lambda config: config["default_cfg"].update(interpolation="nearest"),
        lambda config: config.update(norm_eps=0.1),
        swap_two_classes,
    ],
    ids=["mean", "std", "interpolation", "norm_eps", "classes"],
)
def test_a_changed_configuration(
    change: Callable[[dict[str, Any]], Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed digit, word or class in the `config.json` of a finished model.

    Here: refused by its SHA-256, in Python and in every command, which says what to do if it is on purpose
    Others: transformers takes another number of heads, two swapped classes and, in
        `preprocessor_config.json`, another mean without a word
    """
    folder = run / "model"
    file, whole = folder / CONFIG_NAME, load_model(run)
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    Image.new("L", (8, 8)).save(run / "x.png")
    fresh = type(whole)(**whole.config)
    loads = (
        lambda: load_model(run),
        lambda: create_model(folder),
        lambda: type(whole).from_pretrained(folder),
        lambda: load_pretrained(fresh, folder),
        lambda: load_pretrained(fresh, folder / "model.safetensors"),
        lambda: Predictor(run),
    )
    message = rf"{file} is damaged: the SHA-256 of its settings is not its {CONFIG_CHECKSUM}"
    for load in loads:
        with pytest.raises(ValueError, match=message):
            load()
    commands = ["predict RUN RUN/x.png", "evaluate RUN", "explain RUN RUN/x.png", "bench RUN"]
    commands += ["embed RUN RUN/x.png --output y.npz", "export RUN --format pt2 --output y.pt2"]
    for command in [*commands, "finetune --from RUN", "train --distillation.teacher RUN"]:
        assert main([*command.replace("RUN", str(run)).split()]) == 4, command
        assert f"{file} is damaged" in capsys.readouterr().err
    # what the sentence says helps, and saving makes it whole
    file.write_text(json.dumps({**config, CONFIG_CHECKSUM: None}))
    load_model(run).save_pretrained(folder)
    assert len(json.loads(file.read_text())[CONFIG_CHECKSUM]) == 64
    load_model(run)


def test_layout_of_a_configuration_is_free(run: Path) -> None:
    """Order and spaces in the `config.json` of a finished model.

    Here: mean nothing
    Others: no counterpart
    """
    file = run / "model" / CONFIG_NAME
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items())), indent=7))
    load_model(run)


def test_a_setting_that_stands_twice(run: Path) -> None:
    """A setting that stands twice in the `config.json` of a model.

    Here: refused by name
    Others: transformers takes the last one without a word
    """
    file = run / "model" / CONFIG_NAME
    file.write_text(file.read_text().replace('"heads"', '"heads": 1, "heads"'))
    with pytest.raises(ValueError, match=f"{file} is not JSON: 'heads' stands in it twice"):
        load_model(run)


def test_shipped_models_have_checksums() -> None:
    """A flipped bit in a model that comes with the package.

    Here: refused by its SHA-256
    Others: no counterpart
    """
    for name in list_trained():
        assert set(CHECKSUMS) <= set(read_settings(trained_folder(name) / CONFIG_NAME))
