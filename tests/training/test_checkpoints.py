import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import forked
from tests.forked import environment
from vit_pytorch.training.checkpoints import (
    CheckpointError,
    checkpoint_name,
    checkpoint_weights,
    list_checkpoints,
    read_checkpoint,
    remove_checkpoint,
    remove_leftovers,
    write_checkpoint,
)


def a_checkpoint(value: float = 1.0) -> dict[str, Any]:
    weight = torch.full((3, 4), value)
    state = {"model.weight": weight, "model.tied": weight, "temperature": torch.tensor(2.0)}
    return {
        "state_dict": state,
        "epoch": 3,
        "global_step": 7,
        "optimizer_states": [{"state": {0: {"m": weight}}}],
    }


def run(program: str, *arguments: object) -> None:
    """Run a program in a process of its own, which must go well."""
    done = forked.run([sys.executable, "-c", program, *map(str, arguments)], env=environment())
    assert done.returncode == 0, done.stderr


def test_round_trip(tmp_path: Path) -> None:
    write_checkpoint(a_checkpoint(), tmp_path / "epoch-0003")

    checkpoint = read_checkpoint(tmp_path / "epoch-0003")
    expected = a_checkpoint()
    assert checkpoint.keys() == expected.keys()
    assert checkpoint["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.equal(checkpoint["state_dict"][name], value)
    assert torch.equal(
        checkpoint["optimizer_states"][0]["state"][0]["m"], expected["state_dict"]["model.weight"]
    )
    assert checkpoint_weights(tmp_path / "epoch-0003").keys() == {"weight", "tied"}
    assert os.listdir(tmp_path) == ["epoch-0003"]


def test_a_checkpoint_can_be_replaced_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "epoch-0003"
    write_checkpoint(a_checkpoint(1), path)
    write_checkpoint(a_checkpoint(2), path)
    assert checkpoint_weights(path)["weight"][0, 0] == 2
    remove_checkpoint(path)
    assert os.listdir(tmp_path) == []


def test_names_sort_in_the_order_of_training(tmp_path: Path) -> None:
    names = [checkpoint_name(2), checkpoint_name(2, 5), checkpoint_name(2, 1_000_000), checkpoint_name(3)]
    names += [checkpoint_name(9_999), checkpoint_name(10_000)]
    for name in reversed(names):
        (tmp_path / name).mkdir()
    (tmp_path / "last").symlink_to(names[-1])
    (tmp_path / f".{names[0]}.tmp").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == names


WRITES_UNTIL_KILLED = """
import itertools, os, signal, sys, time
from pathlib import Path
import torch
from vit_pytorch.training.checkpoints import checkpoint_name, list_checkpoints, write_checkpoint

def write(folder):
    weight = torch.zeros(2_000_000)
    for number in itertools.count(1):
        weight.fill_(number)
        state = {"state_dict": {"model.weight": weight}, "moments": weight + 1}
        write_checkpoint(state, folder / checkpoint_name(number))

for wait in sys.argv[2:]:
    folder = Path(sys.argv[1]) / wait
    process = os.fork()
    if not process:
        write(folder)
    while len(list_checkpoints(folder)) < 2:
        time.sleep(0.001)
    time.sleep(float(wait))
    os.kill(process, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
"""


def test_sigkill_while_writing_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    waits = ["0.0", "0.003", "0.007", "0.013", "0.029"]
    run(WRITES_UNTIL_KILLED, tmp_path, *waits)
    for wait in waits:
        found = list_checkpoints(tmp_path / wait)
        assert len(found) >= 2
        for path in found:
            checkpoint = read_checkpoint(path)
            assert torch.equal(checkpoint["moments"], checkpoint["state_dict"]["model.weight"] + 1)
        remove_leftovers(tmp_path / wait)
        assert sorted(os.listdir(tmp_path / wait)) == [path.name for path in found]


KILLED_AT_EACH_STAGE = """
import os, signal, sys
from pathlib import Path
from tests.training.test_checkpoints import STAGES, a_checkpoint
from vit_pytorch.training import checkpoints

def kill_at(stage, after):
    module, name = {"weights": (checkpoints, "save_file"), "training": (checkpoints.torch, "save"),
                    "manifest": (Path, "write_text"), "fsync": (os, "fsync"), "rename": (Path, "rename"),
                    "rmtree": (checkpoints.shutil, "rmtree")}[stage]
    original, left = getattr(module, name), [after]
    def call_or_die(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(module, name, call_or_die)

for number, (stage, name, after, _) in enumerate(STAGES):
    folder = Path(sys.argv[1]) / str(number)
    checkpoints.write_checkpoint(a_checkpoint(1.0), folder / "epoch-0003")
    process = os.fork()
    if not process:
        kill_at(stage, after)
        checkpoints.write_checkpoint(a_checkpoint(5.0), folder / name)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
"""

# where the process dies, what it writes, how many such calls succeed before, what epoch-0003 then holds
STAGES = [
    ("weights", "epoch-0004", 0, 1.0),
    ("training", "epoch-0004", 0, 1.0),
    ("manifest", "epoch-0004", 0, 1.0),
    ("fsync", "epoch-0004", 2, 1.0),
    ("rename", "epoch-0004", 0, 1.0),
    ("rename", "epoch-0003", 0, 1.0),
    ("rename", "epoch-0003", 1, 1.0),
    ("rmtree", "epoch-0003", 0, 5.0),
]


def test_sigkill_at_each_stage(tmp_path: Path) -> None:
    run(KILLED_AT_EACH_STAGE, tmp_path)
    for number, (*_, value) in enumerate(STAGES):
        folder = tmp_path / str(number)
        remove_leftovers(folder)
        assert os.listdir(folder) == ["epoch-0003"]
        assert checkpoint_weights(folder / "epoch-0003")["weight"][0, 0] == value


FILLS_THE_DISK = """
import json, os, sys, torch
from pathlib import Path
from vit_pytorch.training.checkpoints import checkpoint_weights, write_checkpoint

folder = Path(sys.argv[1])
weights, moments = int(sys.argv[2]), int(sys.argv[3])
write_checkpoint({"state_dict": {"model.weight": torch.ones(1000)}}, folder / "epoch-0001")
full = {"state_dict": {"model.weight": torch.ones(weights)}, "moments": torch.ones(moments)}
try:
    write_checkpoint(full, folder / "epoch-0002")
except OSError as error:
    whole = bool(checkpoint_weights(folder / "epoch-0001")["weight"].sum() == 1000)
    print(json.dumps([error.errno, str(error), os.listdir(folder), whole]))
"""


@pytest.mark.parametrize(
    ("weights", "moments"), [(1_000_000, 10), (10, 1_000_000)], ids=["weights", "training"]
)
def test_disk_full(tmp_path: Path, weights: int, moments: int) -> None:
    mount = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path))
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("a file system of its own size needs `unshare` and the right to mount")
    command = [*inside, sys.executable, "-c", FILLS_THE_DISK, *map(str, (tmp_path, weights, moments))]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

    number, message, files, whole = json.loads(process.stdout)
    assert number == 28
    assert "no space left on the disk" in message
    assert f"previous checkpoint {tmp_path / 'epoch-0001'} is intact" in message
    assert files == ["epoch-0001"]
    assert whole


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, os.remove])
@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "manifest.json"])
def test_damage_is_found_and_the_previous_one_offered(tmp_path: Path, name: str, damage: Any) -> None:
    for epoch in (1, 2, 3):
        write_checkpoint(a_checkpoint(epoch), tmp_path / checkpoint_name(epoch))
    truncate(tmp_path / "epoch-0002" / "training.pt")
    damage(tmp_path / "epoch-0003" / name)

    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "epoch-0003")
    assert str(tmp_path / "epoch-0003" / name) in str(caught.value)
    assert f"the latest whole checkpoint beside it is {tmp_path / 'epoch-0001'}" in str(caught.value)


class Malice:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "epoch-0001", tmp_path / "executed"
    write_checkpoint({**a_checkpoint(), "hello": Malice(trace)}, path)  # a manifest that matches
    pickle.loads(pickle.dumps(Malice(trace)))
    assert trace.exists()  # the pickle does what it should not
    trace.unlink()

    with pytest.raises(CheckpointError, match=r"training\.pt was refused, nothing in it was run"):
        read_checkpoint(path)
    assert not trace.exists()


def test_a_file_in_the_place_of_a_checkpoint_is_not_opened(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    (tmp_path / "last.ckpt").write_bytes(pickle.dumps(Malice(trace)))
    with pytest.raises(CheckpointError, match="is a file; it was not opened"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not trace.exists()


@pytest.mark.parametrize(
    "address", ["https://example.org/a/last.ckpt", "s3://bucket/epoch-0001", "file:///x"]
)
def test_addresses_are_refused(address: str) -> None:
    with pytest.raises(CheckpointError, match="a folder on a local disk, got the address"):
        read_checkpoint(address)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_checkpoint(a_checkpoint(), tmp_path / "epoch-0001")
    manifest = tmp_path / "epoch-0001" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2, this program reads 1"):
        read_checkpoint(tmp_path / "epoch-0001")
