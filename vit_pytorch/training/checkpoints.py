"""Checkpoints on disk: written all or nothing, read only when whole.

A checkpoint is a folder::

    epoch-0003-batch-000120/
      model.safetensors    the model's weights, under the model's own names
      training.pt          everything else that training needs to go on; read with ``weights_only=True``
      manifest.json        size and SHA-256 of the other files, the run's settings, and when it was written

or, of sharded weights (see `sharded`), with the folder ``sharded/`` in place of ``model.safetensors``.

It is written under a temporary name in the folder where it will stay, synced to the disk and renamed, so that
a folder with a final name is complete. Names sort in the order of training: ``epoch-0003`` is the state after
three whole epochs, ``epoch-0003-batch-000120`` the state 120 batches later.
"""

import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_pytorch.storage import file_sha256, recover, replacing
from vit_pytorch.training.shards import INDEX, Place, ShardsError, read_shards

WEIGHTS = "model.safetensors"
SHARDED = "sharded"
TRAINING = "training.pt"
MANIFEST = "manifest.json"
FORMAT = 1

_PREFIX = "model."
_NAME = re.compile(r"epoch-\d{4,}(-batch-\d{6,})?")
_TEMPORARY = re.compile(r"\.(epoch-\S+)\.(tmp|old)")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read: it is damaged, incomplete, unsafe, or not a checkpoint at all."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found whole, so that whoever is given it need not hash them again.

    Args:
        path: Its folder.
        manifest: What `manifest.json` says.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def epoch(self) -> int:
        """The epoch that had begun last, from 0."""
        return self.manifest["epoch"]

    @property
    def settings(self) -> dict[str, Any] | None:
        """The configuration with which it was written; None in those of earlier versions."""
        return self.manifest.get("settings")

    @property
    def sharded(self) -> bool:
        """Whether the weights are in parts, as many processes wrote them."""
        return WEIGHTS not in self.manifest["files"]

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def checkpoint_name(epoch: int, batch: int | None = None) -> str:
    """Name of the checkpoint taken after `epoch` whole epochs and, inside the next one, `batch` batches."""
    name = f"epoch-{epoch:04d}"
    return name if batch is None else f"{name}-batch-{batch:06d}"


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints in a folder, the earliest state of training first, without temporary folders and links."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed process left half written, and bring back a checkpoint it was about to replace."""
    for path in list(Path(folder).iterdir()):
        if match := _TEMPORARY.fullmatch(path.name):
            recover(path.with_name(match[1]))


def write_checkpoint(
    checkpoint: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    write_shards: Callable[[Path], list[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder atomically.

    Args:
        checkpoint: what the loop collects; `state_dict` goes to safetensors, the rest to a file that holds
            tensors and plain Python values only
        path: Where the folder will stand. A checkpoint that stands there is replaced.
        write_shards: writes the sharded tensors, which `checkpoint` is then without, into a folder, and
            returns the names of its files; default None, for whole tensors
        settings: the configuration of the run, plain values; default None

    Raises:
        OSError: If it cannot be written, for example for want of space. What was written is removed, and
            checkpoints that stood in the folder before are as they were.
    """
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with replacing(path) as temporary:
            temporary.mkdir()
            _write_files(checkpoint, temporary, write_shards, settings)
    except OSError as error:
        previous = [other for other in list_checkpoints(path.parent) if other != path]
        kept = "there is no earlier checkpoint"
        if previous:
            kept = f"the previous checkpoint {previous[-1]} is intact"
        raise OSError(error.errno, f"{error.strerror}; {kept}") from error


def _write_files(
    checkpoint: dict[str, Any],
    folder: Path,
    write_shards: Callable[[Path], list[str]] | None,
    settings: Mapping[str, Any] | None,
) -> None:
    training = dict(checkpoint)
    if write_shards is None:
        state = training.pop("state_dict")
        training["other_state"] = {
            name: value for name, value in state.items() if not name.startswith(_PREFIX)
        }
        weights = _model_weights(state)
        save_file(_separate(weights), folder / WEIGHTS, metadata={"format": "pt"})
        names = [WEIGHTS]
    else:
        names = [f"{SHARDED}/{name}" for name in write_shards(folder / SHARDED)]
    # through Python's own file: torch's does not tell why it failed
    with (folder / TRAINING).open("wb") as file:
        torch.save(training, file)
    manifest = {
        "format": FORMAT,
        "epoch": training.get("epoch"),
        "global_step": training.get("global_step"),
        "written": time.time(),
        "settings": settings,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
            for name in (*names, TRAINING)
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _model_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies where needed; safetensors refuses tensors that share memory (tied weights)."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return separate


def written_at(path: str | os.PathLike[str]) -> float:
    """Return when a checkpoint was written, in seconds since 1970; for those of earlier versions, or whose
    manifest cannot be read, by the time of their folder, which copying changes."""
    try:
        return float(json.loads((Path(path) / MANIFEST).read_bytes())["written"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Path(path).stat().st_mtime


def remove_checkpoint(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint's folder; killed half-way, it leaves no folder with a final name."""
    path = Path(path)
    doomed = path.with_name(f".{path.name}.tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)


def verify_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Check a checkpoint's files against its manifest.

    Args:
        path: The checkpoint's folder, on a local disk; one that was verified already is given back.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If a file is missing, shorter or longer than it was, or has other contents.
    """
    if isinstance(path, Checkpoint):
        return path
    text = os.fspath(path)
    if "://" in text:
        raise CheckpointError(
            f"a checkpoint is a folder on a local disk, got the address {text!r}; it was not opened"
        )
    folder = Path(path)
    if not folder.exists():
        raise CheckpointError(f"no checkpoint at {folder}")
    if not folder.is_dir():
        raise CheckpointError(
            f"a checkpoint is a folder with {MANIFEST}, but {folder} is a file; it was not opened"
        )
    try:
        return _verify(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_offer(folder)}") from error


def _verify(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {name: (kept["bytes"], kept["sha256"]) for name, kept in manifest["files"].items()}
        shards = [name for name in files if name.startswith(f"{SHARDED}/")]
        needed = [*([f"{SHARDED}/{INDEX}", *shards] if shards else [WEIGHTS]), TRAINING]
        expected = {name: files[name] for name in needed}
        manifest["epoch"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is missing or damaged: {error!r}") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest.get('format')}, this program reads {FORMAT}"
        )
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if (found := file.stat().st_size) != size:
            raise CheckpointError(f"{file} is damaged: it has {found} bytes and should have {size}")
        if file_sha256(file) != digest:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {folder / MANIFEST}")
    return Checkpoint(folder, manifest)


def _offer(damaged: Path) -> str:
    """Say which other checkpoint of the same run is whole, the latest first."""
    for other in reversed(list_checkpoints(damaged.absolute().parent)):
        if other.name != damaged.name:
            with suppress(CheckpointError, OSError):
                return f"; the latest whole checkpoint beside it is {_verify(other).path}"
    return "; no whole checkpoint is beside it"


def checkpoint_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Weights of the model in a checkpoint, whole and on the CPU, under the model's own names.

    Raises:
        CheckpointError: If the checkpoint is damaged.
    """
    checkpoint = verify_checkpoint(path)
    if not checkpoint.sharded:
        return load_file(checkpoint.path / WEIGHTS)
    state = _load_training(checkpoint.path)["state_dict"]
    _add_shards(checkpoint.path, {"state_dict": state})
    return _model_weights(state)


def read_checkpoint(
    path: str | os.PathLike[str], *, like: Callable[[Place], Tensor | None] = lambda place: None
) -> dict[str, Any]:
    """Read a checkpoint folder back into what the loop resumes from.

    Args:
        path: The checkpoint, or its folder on a local disk. Addresses are refused, never fetched.
        like: returns, for the place of a sharded tensor, one that is cut as the result shall be; where it
            returns None, as it does by default, all of the tensor is read, on the CPU

    Returns:
        The checkpoint; all tensors of one that is not sharded are on the CPU.

    Raises:
        CheckpointError: If the checkpoint is damaged, or if it holds pickled objects other than tensors and
            plain values; these are refused without being run.
    """
    checkpoint = verify_checkpoint(path)
    folder, training = checkpoint.path, _load_training(checkpoint.path)
    if checkpoint.sharded:
        _add_shards(folder, training, like)
        return training
    weights = {_PREFIX + name: value for name, value in load_file(folder / WEIGHTS).items()}
    state = weights | training.pop("other_state")
    return {**training, "state_dict": state}


def _load_training(folder: Path) -> dict[str, Any]:
    try:
        return torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder / TRAINING} was refused, nothing in it was run: {reason}{_offer(folder)}"
        ) from error


def _add_shards(
    folder: Path, training: dict[str, Any], like: Callable[[Place], Tensor | None] = lambda place: None
) -> None:
    """Put the sharded tensors of those parts of a checkpoint that are given into their places."""
    try:
        shards = read_shards(folder / SHARDED, parts=training, like=like)
    except ShardsError as error:
        raise CheckpointError(f"{error}{_offer(folder)}") from error
    for place, tensor in shards.items():
        where: Any = training
        for key in place[:-1]:
            where = where[key]
        where[place[-1]] = tensor


def upgrade_checkpoint(saved: dict[str, Any]) -> dict[str, Any]:
    """Bring a checkpoint of version 0.1, which Lightning's Trainer wrote, into today's form; leave others."""
    if "loops" not in saved:
        return saved
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    place = {"batch": progress["current"]["ready"], "epoch_done": progress["is_last_batch"]}
    scaler = saved.get("MixedPrecision", {})
    return {**saved, **place, "scaler": scaler, "loader": saved["ImageData"]["train"]}
