import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import run_toy, train
from tests.training.two_ranks import STILL
from vit_pytorch.training.checkpoints import checkpoint_weights
from vit_pytorch.training.engine import make_fabric

ROOT = Path(__file__).parents[2]
Losses = dict[str, float]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Losses]]]:
    """Trainings of two processes, and of one under the name "one"."""
    folder = tmp_path_factory.mktemp("runs")
    one = train(folder / "one", clip=1.0, every_n_steps=4, keep=100, **STILL)
    averaged = train(folder / "averaged", clip=1.0, ema=0.9, **STILL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = subprocess.run(
        [*launcher, str(Path(__file__).with_name("two_ranks.py")), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((folder / "results.json").read_text())
    for name, losses in (("one", one), ("averaged", averaged)):
        results[name] = {"train": losses.train, "val": losses.val}
    return folder, results


def assert_close(losses: dict[str, Losses], reference: dict[str, Losses], share: float) -> None:
    for kind in ("train", "val"):
        assert len(losses[kind]) == share * len(reference[kind])
        for when, value in losses[kind].items():
            assert value == pytest.approx(reference[kind][when], abs=1e-5, rel=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(runs: Any, strategy: str) -> None:
    _, results = runs
    assert_close(results[f"{strategy} whole"], results["one"], share=1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_weights_are_averaged_in_two_processes(runs: Any, strategy: str) -> None:
    _, results = runs
    assert results["averaged"]["val"] != results["one"]["val"]
    assert_close(results[f"{strategy} averaged"], results["averaged"], share=1)


def test_fsdp_shards_and_ddp_copies(runs: Any) -> None:
    _, results = runs
    assert results["ddp sharded"]["share"] == 1
    assert results["fsdp sharded"]["share"] < 0.75  # what has one row cannot be cut


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_of_one_process_loads_in_two(runs: Any, strategy: str) -> None:
    _, results = runs
    resumed = results[f"{strategy} from one"]
    for when, value in resumed["train"].items():
        assert value == pytest.approx(results["one"]["train"][when], abs=1e-5, rel=0)
    assert len(resumed["train"]) == len(results["one"]["train"]) - 10


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_processes_loads_in_one(runs: Any, tmp_path: Path, strategy: str) -> None:
    folder, results = runs
    checkpoint = folder / strategy / "epoch-0001-batch-000004"
    resumed = train(tmp_path, resume=checkpoint, clip=1.0, **STILL)
    for when, value in resumed.train.items():
        assert value == pytest.approx(results["one"]["train"][when], abs=1e-5, rel=0)
    assert len(resumed.train) == len(results["one"]["train"]) - 10


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_resume_exactly(runs: Any, strategy: str) -> None:
    _, results = runs
    whole, resumed = results[f"{strategy} noisy"]["train"], results[f"{strategy} noisy again"]["train"]
    assert len(resumed) == len(whole) - 10
    assert resumed == {when: whole[when] for when in resumed}


def test_sigterm_to_the_first_process_stops_both(tmp_path: Path) -> None:
    finished = run_toy(tmp_path / "run", "--devices", 2, "--strategy", "ddp", "--signal", int(signal.SIGTERM))
    assert finished.returncode == 143, finished.stderr
    assert (tmp_path / "run" / "last").resolve().name == "epoch-0001-batch-000003"
    assert train(tmp_path / "again", resume=tmp_path / "run" / "last").train.keys() >= {"1.3", "3.5"}


def test_the_death_of_one_process_ends_the_other(tmp_path: Path) -> None:
    finished = run_toy(tmp_path / "run", "--devices", 2, "--strategy", "ddp", "--die", 1)
    assert finished.returncode not in (0, None)
    assert finished.returncode == -signal.SIGKILL or "Error" in finished.stderr
    assert checkpoint_weights(tmp_path / "run" / "last")
    assert (tmp_path / "run" / "last").resolve().name == "epoch-0001"
    assert train(tmp_path / "again", resume=tmp_path / "run" / "last").train.keys() >= {"1.0", "3.5"}


def test_unknown_strategies_are_refused() -> None:
    with pytest.raises(ValueError, match="must be 'auto', 'ddp' or 'fsdp', got 'horovod'"):
        make_fabric(strategy="horovod")  # type: ignore[arg-type]


@pytest.mark.parametrize(("devices", "num_nodes"), [(1, 1), (2, 2)])
def test_the_processes_are_those_that_were_started(
    monkeypatch: pytest.MonkeyPatch, devices: int, num_nodes: int
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"torchrun or SLURM started, 2; got {devices} x {num_nodes}"):
        make_fabric(devices=devices, num_nodes=num_nodes, accelerator="cpu")
