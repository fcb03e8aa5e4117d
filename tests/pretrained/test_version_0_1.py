"""Models and runs that version 0.1 wrote are loaded, evaluated and resumed, and compute what they computed.

Warnings are errors here, so an old `config.json` or `config.yaml` is also read without a deprecation warning.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vit_pytorch import create_model
from vit_pytorch.cli import main
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.optim import WarmupCosine

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = sorted(path.parent for path in (FIXTURES / "v01").glob("*/config.json"))
RUN = FIXTURES / "v01_run"
EXPECTED = json.loads((RUN / "expected.json").read_text())


def test_fixtures_are_complete():
    assert len(MODELS) == 36
    sizes = [path.stat().st_size for path in (FIXTURES / "v01").rglob("*") if path.is_file()]
    assert sum(sizes) < 3e6


@torch.no_grad()
@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_models_load_and_compute_the_same(folder: Path):
    expected = load_file(folder / "expected.safetensors")
    images = expected["images"] / 127.5 - 1
    created = create_model(folder)
    loaded = type(created).from_pretrained(folder)
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    for model in (created, loaded):
        assert type(model).__name__ == architecture
        assert not model.training
        torch.testing.assert_close(model(images), expected["logits"], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_models_are_saved_again(folder: Path, tmp_path: Path):
    """What is loaded from 0.1 is saved in today's form, with the same preprocessing and the same outputs."""
    expected = load_file(folder / "expected.safetensors")
    old = create_model(folder)
    old.save_pretrained(tmp_path)
    new = create_model(tmp_path)
    assert new.default_cfg == old.default_cfg
    assert new(expected["images"] / 127.5 - 1).equal(old(expected["images"] / 127.5 - 1))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run of version 0.1."""
    return Path(shutil.copytree(RUN / "digits", tmp_path / "digits", symlinks=True))


def test_a_run_is_evaluated(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    for name, value in EXPECTED["evaluate"].items():
        assert measured[name] == pytest.approx(value, abs=1e-4), name


def test_a_run_is_resumed(run: Path, monkeypatch: pytest.MonkeyPatch):
    """The third epoch: weights, their average, the optimizer's moments and random states carry over.

    0.1 took the first step after a resume with more epochs at the rate with which the shorter one ended.
    """
    factor = WarmupCosine.__call__
    ended = 2e-5 / 0.01
    monkeypatch.setattr(
        WarmupCosine, "__call__", lambda self, step: ended if step == 160 else factor(self, step)
    )
    assert main(["train", "--resume", str(run), "--epochs=3"]) == 0
    rows = read_rows(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for name, value in EXPECTED["resume"]["metrics"].items():
        assert rows[-1][name] == pytest.approx(value, abs=1e-4), name
    test = json.loads((run / "summary.json").read_text())["test"]
    for name, value in EXPECTED["resume"]["test"].items():
        assert test[name] == pytest.approx(value, abs=1e-4), name


def test_the_settings_of_a_run_train_a_new_one(run: Path, tmp_path: Path):
    """`config.yaml` of 0.1 holds flat options of the model; `--config` reads it."""
    arguments = ["train", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "new")]
    assert main([*arguments, "--epochs=1", "--accelerator=cpu"]) == 0
    old, new = ((folder / "model" / "config.json").read_text() for folder in (run, tmp_path / "new"))
    images = torch.randn(2, 1, 24, 24)
    model = create_model(tmp_path / "new")
    model.load_state_dict(create_model(run).state_dict(), strict=True)
    assert model(images).equal(create_model(run)(images))
    assert json.loads(new)["num_classes"] == json.loads(old)["num_classes"]
