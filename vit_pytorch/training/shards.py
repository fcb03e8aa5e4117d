"""Sharded tensors on disk, by `torch.distributed.checkpoint`: each process writes and reads its own part.

A tensor is known by its place in a nested state, such as `("optimizer_states", 0, "state", 3, "exp_avg")`.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# what says which part of which tensor is where
INDEX = ".metadata"
Place = tuple[str | int, ...]

# what the index is made of, and all that it may hold: it is a pickle
_METADATA = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    ("collections", "OrderedDict"),
}


class ShardsError(RuntimeError):
    """Sharded tensors are damaged, incomplete or unsafe."""


def split(state: Any, place: Place = ()) -> tuple[Any, dict[Place, DTensor]]:
    """Split a nested state into what is whole, and sharded tensors by their places."""
    if isinstance(state, DTensor):
        return None, {place: state}
    if not isinstance(state, dict | list):
        return state, {}
    sharded: dict[Place, DTensor] = {}
    rest = []
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        whole, parts = split(value, (*place, key))
        sharded |= parts
        if not isinstance(value, DTensor):
            rest.append((key, whole))
    return dict(rest) if isinstance(state, dict) else [value for _, value in rest], sharded


def write_shards(fabric: Fabric, tensors: dict[Place, DTensor], folder: Path | None) -> list[str]:
    """Write sharded tensors; all processes take part.

    Args:
        fabric: the processes
        tensors: sharded tensors by their places
        folder: where they are written; the first process's counts

    Returns:
        Names of the files in the folder.

    Raises:
        OSError: if a process cannot write
        ShardsError: if the processes do not write to the same folder
    """
    folder = fabric.broadcast(folder)
    assert folder is not None
    named: dict[str, Any] = {json.dumps(place): tensor for place, tensor in tensors.items()}
    try:
        written = dcp.save(named, storage_writer=dcp.FileSystemWriter(folder))
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from error
    names = sorted({stored.relative_path for stored in written.storage_data.values()})
    # all of them have looked before the first one goes on, which may rename the folder
    lost: list[list[str]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(lost, [name for name in names if not (folder / name).is_file()])
    if any(lost):
        raise ShardsError(
            f"what other processes wrote is not in {folder} ({next(filter(None, lost))[0]}): the folder of a "
            "run must be on a file system that all machines share"
        )
    return [INDEX, *names]


def read_shards(
    folder: Path, *, parts: Container[Any], like: Callable[[Place], Tensor | None]
) -> dict[Place, Tensor]:
    """Read sharded tensors, whatever the number of processes that wrote them.

    Each process reads for itself, and no more than it needs.

    Args:
        folder: where they were written
        parts: which of them are read, by the first key of their places
        like: returns, for a place, a tensor that is cut as the result shall be, or None for a whole one

    Raises:
        ShardsError: if they are damaged, or unsafe; nothing in them is run
    """
    reader = _Reader(folder)
    tensors: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        place = tuple(json.loads(name))
        if place[0] not in parts:
            continue
        if not isinstance(entry, dcp.TensorStorageMetadata):
            raise ShardsError(f"{folder / INDEX} was refused, nothing in it was run: {name} is no tensor")
        cut, dtype = like(place), entry.properties.dtype
        tensors[name] = (
            torch.empty_like(cut.detach(), dtype=dtype)
            if isinstance(cut, DTensor) and cut.shape == entry.size
            else torch.empty(entry.size, dtype=dtype)
        )
    try:
        with warnings.catch_warnings():
            # that it reads without the others, which is meant
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise ShardsError(f"{folder} is damaged: {failure!r}") from error
    return {tuple(json.loads(name)): tensor for name, tensor in tensors.items()}


class _Reader(dcp.FileSystemReader):
    """Reader that looks into the pickled index before it is loaded."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        path = Path(self.path) / INDEX
        try:
            with path.open("rb") as file:
                _KnownUnpickler(file).load()
        except ShardsError as error:
            raise ShardsError(f"{path} was refused, nothing in it was run: {error}") from None
        return super().read_metadata(*args, **kwargs)


class _KnownUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN or (module == "torch" and isinstance(vars(torch).get(name), torch.dtype)):
            return super().find_class(module, name)
        raise ShardsError(f"it holds {module}.{name}")
