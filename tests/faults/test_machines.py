"""A machine that is lost, is not reached, or never comes."""

import shutil
import socket
import time
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, command, train
from tests.cli.machines import Node, finish, free_port, kill, slurm_task, start, start_task
from vit_pytorch.cli import Status
from vit_pytorch.training.checkpoints import list_checkpoints
from vit_pytorch.training.history import read_rows

OPTIONS = ["train", "--accelerator=cpu", "--num-nodes=2", "--process-timeout=300", *TINY]
# the second machine dies where it writes its part of the second checkpoint
DIES_WRITING = """
import os, signal, sys
import torch.distributed.checkpoint as dcp
from vit_pytorch.cli import main

write = dcp.FileSystemWriter.write_data

def write_or_die(self, plan, planner):
    if "epoch-0002" in str(self.path) and os.environ["SLURM_PROCID"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, plan, planner)

dcp.FileSystemWriter.write_data = write_or_die
sys.exit(main(sys.argv[1:]))
"""


def resume_alone(run: Path, *options: str) -> None:
    """Go on for one more epoch, on one machine."""
    done = int(list_checkpoints(run / "checkpoints")[-1].name.removeprefix("epoch-"))
    assert train("--resume", run, "--num-nodes=1", f"--epochs={done + 1}", *options) == 0
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == list(range(1, done + 2))


def test_a_machine_is_lost(tmp_path: Path) -> None:
    """A machine is lost.

    Here: the other ends with status 8, and names process, machine, address and the checkpoint to resume
        from, alone or with another
    Others: Lightning (`ddp`, two processes of one machine): the other one is ended by SIGKILL within
        two seconds
    """
    run, port = tmp_path / "run", free_port()
    nodes = [
        start_task(port, rank, *OPTIONS, "--epochs=500", "--output", run, cwd=tmp_path) for rank in range(2)
    ]
    while not (run / "checkpoints" / "last").exists() and nodes[0].poll() is None:
        time.sleep(0.05)
    kill(nodes[1])
    begin = time.monotonic()
    (_, said), _ = finish(*nodes)
    assert nodes[0].returncode == Status.PROCESSES, said
    assert time.monotonic() - begin < 90
    assert "Traceback" not in said
    latest = list_checkpoints(run / "checkpoints")[-1]
    assert f"vit: error: lost process 1 on {socket.gethostname()} (127.0.0.1): " in said
    assert f"; resume from {latest}" in said
    resume_alone(run)


def test_a_machine_is_lost_while_it_writes(tmp_path: Path) -> None:
    """A machine is lost while it writes its part of a checkpoint.

    Here: the other ends with status 8; the checkpoint before is whole, and resumes on one machine and on two
    """
    run, port = tmp_path / "run", free_port()
    options = [*OPTIONS, "--epochs=3", "--strategy=fsdp", "--save-sharded=true"]
    program = ("-c", DIES_WRITING)
    nodes = [
        start_task(port, rank, *options, "--output", run, cwd=tmp_path, program=program) for rank in range(2)
    ]
    (_, said), _ = finish(*nodes)
    assert nodes[0].returncode == Status.PROCESSES, said
    assert "lost process 1 on " in said
    assert f"; resume from {run / 'checkpoints' / 'epoch-0001'}" in said
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["epoch-0001"]
    copy = Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))
    resume_alone(copy, "--strategy=auto", "--save-sharded=false")

    port = free_port()
    options = ["train", "--resume", str(run), "--epochs=2"]
    nodes = [start_task(port, rank, *options, cwd=tmp_path) for rank in range(2)]
    said_again = finish(*nodes)
    assert [node.returncode for node in nodes] == [0, 0], said_again
    rows = [read_rows(folder / "metrics.csv")[-1] for folder in (run, copy)]
    # noise of two processes is not that of one
    assert rows[0]["train/loss"] == pytest.approx(rows[1]["train/loss"], rel=0.1)


def test_a_machine_that_never_comes(tmp_path: Path) -> None:
    """A machine never comes, since its process ends at an import.

    Here: the other ends with status 8 after `--process_timeout`, and its folder is empty
    """
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "lightning.py").write_text("raise ImportError('libcudart.so.12 is not there')\n")
    run, port = tmp_path / "run", free_port()
    options = [*OPTIONS, "--process-timeout=8", "--output", run]
    root = str(Path(__file__).parents[2])
    nodes: list[Node] = [
        start_task(port, 0, *options, cwd=tmp_path),
        start(command(*options), tmp_path, {**slurm_task(port, 1), "PYTHONPATH": f"{broken}:{root}"}),
    ]
    (_, waited), (_, failed) = finish(*nodes)
    assert nodes[1].returncode not in (0, None)
    assert "libcudart.so.12 is not there" in failed
    assert nodes[0].returncode == Status.PROCESSES, waited
    assert f"not all of the 2 processes have met at 127.0.0.1:{port}: " in waited
    assert "Traceback" not in waited + failed
    assert not any(run.iterdir())


def test_a_port_in_use(tmp_path: Path) -> None:
    """The port is in use.

    Here: status 8, and the port
    Others: Lightning: a traceback that ends in `DistNetworkError`, with the port
    """
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = start_task(port, 0, *OPTIONS, cwd=tmp_path)
        ((_, said),) = finish(node)
    assert node.returncode == Status.PROCESSES, said
    assert f"vit: error: port {port} of this machine is in use: let MASTER_PORT be another one" in said
    assert "Traceback" not in said
