"""A finished model is known by the checksum in its configuration."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import TINY
from tests.faults.conftest import flip_a_bit
from vit_pytorch import create_model
from vit_pytorch.cli import main
from vit_pytorch.create import load_model
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.weights import CHECKSUM


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
    """
    model = load_model(run)
    flip_a_bit(run / "model" / "model.safetensors")
    for place in (run / "model", run / "model" / "model.safetensors"):
        with pytest.raises(ValueError, match="is damaged: its SHA-256"):
            load_pretrained(model, place)


def test_a_model_without_a_checksum_loads(run: Path, tmp_path: Path) -> None:
    """A model of an earlier version, without a checksum.

    Here: loads
    """
    folder = Path(shutil.copytree(run / "model", tmp_path / "old"))
    config = json.loads((folder / "config.json").read_text())
    assert len(config.pop(CHECKSUM)) == 64
    (folder / "config.json").write_text(json.dumps(config))
    old, new = load_model(folder).state_dict(), load_model(run).state_dict()
    assert all(old[name].equal(value) for name, value in new.items())
