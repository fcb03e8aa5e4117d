import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.forked import environment
from tests.training.toy import ToyImages, run_toy, train, vit_task
from tests.training.two_ranks import LABELS, STILL, outputs_and_labels
from vit_pytorch.storage import file_sha256
from vit_pytorch.training.checkpoints import (
    CheckpointError,
    checkpoint_weights,
    list_checkpoints,
    read_checkpoint,
)
from vit_pytorch.training.engine import make_fabric
from vit_pytorch.training.shards import ShardsError, write_shards

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
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    (folder / "said.txt").write_text(finished.stderr)
    results = json.loads((folder / "results.json").read_text())
    for name, losses in (("one", one), ("averaged", averaged)):
        results[name] = {"train": losses.train, "val": losses.val}
    return folder, results


def assert_close(losses: dict[str, Losses], reference: dict[str, Losses], share: float) -> None:
    for kind in ("train", "val"):
        assert len(losses[kind]) == share * len(reference[kind])
        for when, value in losses[kind].items():
            assert value == pytest.approx(reference[kind][when], abs=1e-5, rel=0)


def assert_equal(value: Any, other: Any) -> None:
    """Compare nested states to the bit."""
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        for key in value:
            assert_equal(value[key], other[key])
    elif isinstance(value, list | tuple):
        assert len(value) == len(other)
        for pair in zip(value, other, strict=True):
            assert_equal(*pair)
    elif isinstance(value, torch.Tensor):
        assert torch.equal(value, other)
    else:
        assert value == other


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(runs: Any, strategy: str) -> None:
    _, results = runs
    assert_close(results[f"{strategy} whole"], results["one"], share=1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_weights_are_averaged_in_two_processes(runs: Any, strategy: str) -> None:
    _, results = runs
    assert results["averaged"]["val"] != results["one"]["val"]
    assert_close(results[f"{strategy} averaged"], results["averaged"], share=1)


def test_figures_of_labels_are_those_of_all_processes(runs: Any) -> None:
    outputs, targets = outputs_and_labels()
    figures = LABELS.figures(LABELS.scores(outputs), targets)
    assert runs[1]["labels"] == {f"val/{name}": value for name, value in figures.items()}


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


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_activations_are_recomputed_in_two_processes(runs: Any, strategy: str) -> None:
    _, results = runs
    kept, recomputed = results[f"{strategy} kept"], results[f"{strategy} recomputed"]
    assert len(kept) == 12
    assert recomputed == pytest.approx(kept, abs=1e-6, rel=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_muon(runs: Any, tmp_path: Path, strategy: str) -> None:
    _, results = runs
    task = vit_task(noise=0.0, optimizer="muon")
    one = train(tmp_path, task=task, data=ToyImages(0.0), epochs=1, clip=1.0)
    # its matrices are orthogonalised in bfloat16, where a sum in another order may round to the next number
    assert results[f"{strategy} muon"] == pytest.approx(one.train, abs=1e-3, rel=0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_compile_and_recompute(runs: Any, tmp_path: Path, strategy: str) -> None:
    folder, results = runs
    one = train(tmp_path, task=vit_task(noise=0.0), data=ToyImages(0.0), epochs=1, clip=1.0)
    assert results[f"{strategy} compiled"] == pytest.approx(one.train, abs=1e-5, rel=0)
    assert "cannot be compiled" not in (folder / "said.txt").read_text()


def test_sharded_checkpoints_resume_exactly(runs: Any) -> None:
    _, results = runs
    assert results["sharded checkpoints"] == results["whole checkpoints"]
    for kind, done in (("train", 10), ("val", 1)):
        whole, resumed = results["whole checkpoints"][kind], results["from sharded"][kind]
        assert len(resumed) == len(whole) - done
        assert resumed == {when: whole[when] for when in resumed}


def test_sharded_checkpoints_hold_what_whole_ones_do(runs: Any) -> None:
    """Weights, their average, moments and all that is not sharded, read by one process."""
    folder, _ = runs
    name = "epoch-0001-batch-000004"
    files = {path.name for path in (folder / "parts" / name).rglob("*") if path.is_file()}
    assert {"manifest.json", "training.pt", ".metadata", "__0_0.distcp", "__1_0.distcp"} == files
    assert_equal(checkpoint_weights(folder / "parts" / name), checkpoint_weights(folder / "wholes" / name))
    parts, whole = read_checkpoint(folder / "parts" / name), read_checkpoint(folder / "wholes" / name)
    assert not torch.equal(
        parts["state_dict"]["model.head.weight"], parts["current_model_state"]["model.head.weight"]
    )
    assert_equal(parts, whole)


def test_a_sharded_checkpoint_of_two_processes_loads_in_one(runs: Any, tmp_path: Path) -> None:
    folder, _ = runs
    resumed = [
        train(tmp_path / kind, resume=folder / kind / "epoch-0001-batch-000004", clip=1.0, ema=0.9)
        for kind in ("parts", "wholes")
    ]
    assert resumed[0].train == resumed[1].train
    assert resumed[0].val == resumed[1].val
    assert len(resumed[0].train) == 24 - 10


def test_a_full_disk_of_one_process_stops_both(runs: Any) -> None:
    folder, results = runs
    first, second = results["full disk"]["errors"]
    latest = list_checkpoints(folder / "full")[-1]
    assert latest.name == "epoch-0002"
    assert first.endswith(f"File too large; the previous checkpoint {latest} is intact")
    assert "File too large" in second
    assert read_checkpoint(latest)


def test_a_damaged_shard_is_named(runs: Any, tmp_path: Path) -> None:
    folder, _ = runs
    copy = Path(shutil.copytree(folder / "parts" / "epoch-0002", tmp_path / "epoch-0002"))
    os.truncate(copy / "sharded" / "__1_0.distcp", 100)
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp is damaged: it has 100 bytes"):
        read_checkpoint(copy)
    (copy / "sharded" / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp is missing; no whole checkpoint"):
        checkpoint_weights(copy)


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_malicious_index_of_shards_is_refused(runs: Any, tmp_path: Path) -> None:
    folder, _ = runs
    copy = Path(shutil.copytree(folder / "parts" / "epoch-0002", tmp_path / "epoch-0002"))
    index = copy / "sharded" / ".metadata"
    index.write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["sharded/.metadata"] = {
        "bytes": index.stat().st_size,
        "sha256": file_sha256(index),
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"\.metadata was refused, nothing in it was run: it holds"):
        checkpoint_weights(copy)
    assert not (tmp_path / "touched").exists()


def test_a_folder_that_is_not_shared_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the other machine writes to a disk of its own, its file is not there."""
    elsewhere = SimpleNamespace(storage_data={0: SimpleNamespace(relative_path="__1_0.distcp")})
    monkeypatch.setattr(dcp, "save", lambda *_, **__: elsewhere)
    alone: Any = SimpleNamespace(broadcast=lambda value: value, world_size=1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ShardsError, match=r"\(__1_0.distcp\): the folder of a run must be on a file sys"):
            write_shards(alone, {}, tmp_path)
    finally:
        torch.distributed.destroy_process_group()


def test_only_sharded_weights_give_sharded_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="a checkpoint can be sharded if the weights are, by strategy 'fsdp'"
    ):
        train(tmp_path, sharded=True, epochs=1)
    assert not list_checkpoints(tmp_path)


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
