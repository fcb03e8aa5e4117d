"""Training on several machines, as torchrun and SLURM start it."""

import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from tests.cli.conftest import TINY, train
from tests.cli.machines import finish, free_port, page_scripts, slurm_job, start_script, start_task
from vit_pytorch.cli import Status
from vit_pytorch.training.history import read_rows

# without what differs between one process and two: noise that each process draws for itself, and batch norm
STILL = [*TINY, "--batch-size=8", "--drop-path=0", "--model.stem=linear", "--epochs=2", "--img-size=20"]
STILL += ["--workers=0", "--ema=0.9"]


def png(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray((image * 15).astype(np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of a data set, of which no two are equally long."""
    folder = tmp_path_factory.mktemp("shards")
    digits, first = load_digits(n_class=3), 0
    for name, images in {"train-0": 23, "train-1": 5, "train-2": 11, "val-0": 7, "val-1": 4}.items():
        with webdataset.TarWriter(str(folder / f"{name}.tar")) as writer:
            for i in range(first, first + images):
                writer.write({"__key__": str(i), "png": png(digits.images[i]), "cls": int(digits.target[i])})
        first += images
    return f"wds:{folder}/train-*.tar,{folder}/val-*.tar"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, shards: str) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert train("--data", shards, "--output", folder, *STILL) == 0
    return folder


def assert_same_losses(run: Path, other: Path) -> None:
    rows, expected = read_rows(run / "metrics.csv"), read_rows(other / "metrics.csv")
    assert len(rows) == len(expected) == 2
    for row, reference in zip(rows, expected, strict=True):
        for name in ("train/loss", "val/loss", "val/accuracy", "lr", "step"):
            assert row[name] == pytest.approx(reference[name], abs=1e-5, rel=0), name


@pytest.mark.parametrize("way", [0, 1], ids=["static", "c10d"])
def test_torchrun(tmp_path: Path, way: int, shards: str, alone: Path) -> None:
    script, run = page_scripts("torchrun")[way], tmp_path / "run"
    places = {"HOST": "127.0.0.1", "29500": str(free_port()), "JOB": "test", "DATA": shards, "RUN": str(run)}
    options = ["--accelerator=cpu", *STILL]
    nodes = [start_script(script, options, {**places, "N": str(rank)}, tmp_path, {}) for rank in range(2)]
    said = finish(*nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sorted("run    " in out for out, _ in said) == [False, True]
    assert_same_losses(run, alone)
    assert (run / "checkpoints" / "last" / "sharded").is_dir() == ("--save_sharded true" in script)


def test_slurm(tmp_path: Path, shards: str, alone: Path) -> None:
    """The job, then once more as after a pre-emption."""
    (script,), run, rows = page_scripts("SLURM"), tmp_path / "run", []
    places = {"DATA": shards, "RUN": str(run)}
    for epochs in (2, 3):
        options = ["--accelerator=cpu", *STILL, f"--epochs={epochs}"]
        node = start_script(script, options, places, tmp_path, slurm_job(free_port()))
        ((_, errors),) = finish(node)
        assert node.returncode == 0, errors
        rows.append(read_rows(run / "metrics.csv"))
        assert len(rows[-1]) == epochs
        if epochs == 2:
            assert_same_losses(run, alone)
    assert rows[1][:2] == rows[0]


NAMED = """
import atexit
from pathlib import Path
from vit_pytorch.cli import main

@atexit.register
def list_threads():
    names = [thread.joinpath("comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    print("threads", *sorted(name for name in names if "gloo" in name))

raise SystemExit(main())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are named by Linux")
def test_no_thread_is_left_at_exit(tmp_path: Path, shards: str) -> None:
    """Threads of gloo that outlive Python's end can abort the program, whose training has succeeded."""
    port, options = free_port(), ["--accelerator=cpu", *STILL, "--epochs=1"]
    given = ["train", "--data", shards, "--output", tmp_path / "run", "--num_nodes=2", *options]
    program = ("-c", NAMED)
    nodes = [start_task(port, rank, *given, cwd=tmp_path, program=program) for rank in range(2)]
    said = finish(*nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [out.splitlines()[-1] for out, _ in said] == ["threads", "threads"], said


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.83.77.1 and 10.83.77.2, joined by one cable."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = f"vit{os.getpid()}a", f"vit{os.getpid()}b"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip(
                "link",
                "add",
                names[0],
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                names[1],
                "netns",
                names[1],
            )
            for number, name in enumerate(names, 1):
                ip("-n", name, "addr", "add", f"10.83.77.{number}/24", "dev", name)
                ip("-n", name, "link", "set", name, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system forbids network namespaces: {error.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_two_addresses(tmp_path: Path, namespaces: tuple[str, str], shards: str, alone: Path) -> None:
    (script,), run = page_scripts("Without a launcher"), tmp_path / "run"
    places = {"HOST": "10.83.77.1", "DATA": shards, "RUN": str(run)}
    nodes = [
        start_script(
            script.replace("vit train", f"ip netns exec {name} vit train"),
            ["--accelerator=cpu", *STILL],
            {**places, "N": str(rank)},
            tmp_path,
            {"GLOO_SOCKET_IFNAME": name},
            copies=False,
        )
        for rank, name in enumerate(namespaces)
    ]
    said = finish(*nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    assert_same_losses(run, alone)


SLURM = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "vit"}
RANKS = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        (
            {"SLURM_NTASKS": "2"},
            [],
            "--ntasks-per-node; not set: SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID, SL",
        ),
        (
            SLURM,
            [],
            "by srun with --nodes and --ntasks-per-node; not set: SLURM_PROCID, SLURM_LOCALID, SLURM_N",
        ),
        (SLURM | RANKS, [], "the number of processes that torchrun or SLURM started, 2; got 1 x 1"),
        (
            SLURM | RANKS,
            ["--devices=2"],
            "tasks per node configured in SLURM `--ntasks-per-node=1` does not match",
        ),
        ({}, ["--num-nodes=2"], "not set: MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "1"},
            ["--num-nodes=2"],
            "MASTER_PORT and NODE_RANK; not set: NO",
        ),
        (
            {},
            ["--save-sharded=true"],
            "save_sharded needs strategy 'fsdp', which shards the weights; got 'auto'",
        ),
        ({}, ["--process-timeout=0"], "process_timeout must be positive, got 0"),
    ],
)
def test_a_wrong_start_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train("--epochs=1", *TINY, *options) == Status.USAGE
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))
