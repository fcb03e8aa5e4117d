"""The other processes of a training: how they are reached, and what is said when one of them is lost."""

from __future__ import annotations

import atexit
import gc
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from lightning.fabric import Fabric

from vit_pytorch.training.checkpoints import list_checkpoints
from vit_pytorch.training.engine import process_states

# how gloo, whose errors have no type of their own, names the other end of a connection
_ADDRESS = re.compile(r"\[(?:::ffff:)?([\da-f.:]+)\]:\d+", re.IGNORECASE)


class LostProcessError(RuntimeError):
    """Another process of the training has ended, or cannot be reached."""


@dataclass(frozen=True)
class Peer:
    """A process of a training.

    Args:
        rank: its number
        host: name of its machine
        address: address of its machine, as seen from the first process
    """

    rank: int
    host: str
    address: str

    @classmethod
    def own(cls, rank: int) -> Peer:
        """Describe this process."""
        first, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        family, kind, _, _, address = socket.getaddrinfo(first, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # sends nothing, but chooses the address from which it would
            probe.connect(address)
            return cls(rank, socket.gethostname(), probe.getsockname()[0])

    def __str__(self) -> str:
        return f"process {self.rank} on {self.host} ({self.address})"


def launch(fabric: Fabric) -> None:
    """Start the processes of a training, or meet those that torchrun or SLURM started; they part at exit.

    Raises:
        LostProcessError: if they do not meet in time
    """
    if fabric.world_size > 1:
        # DDP imports it, and its functions keep the group that is there by then as their default for good
        import_module("torch.distributed.nn.functional")
        if not torch.distributed.is_initialized():
            atexit.register(_part)
    try:
        fabric.launch()
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if "EADDRINUSE" in str(error):
            raise LostProcessError(
                f"port {port} of this machine is in use: let MASTER_PORT be another one"
            ) from error
        raise LostProcessError(
            f"not all of the {fabric.world_size} processes have met at {address}:{port}: "
            f"{_first_line(error)}; see what the others say, and whether they reach this address"
        ) from error


@contextmanager
def lost_processes_named(fabric: Fabric, checkpoints: Path) -> Iterator[None]:
    """Context manager: if another process ends or does not answer, say which one.

    Args:
        fabric: the engine, launched
        checkpoints: folder of the checkpoints, of which the latest is named

    Raises:
        LostProcessError: instead of the errors of the connections
    """
    if fabric.world_size == 1:
        yield
        return
    peers = process_states(fabric, Peer.own(fabric.global_rank))
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        others = [peer for peer in peers if peer.rank != fabric.global_rank]
        seen = _ADDRESS.findall(str(error))
        lost = [peer for peer in others if peer.address in seen] or others
        found = list_checkpoints(checkpoints)
        raise LostProcessError(
            f"lost {' or '.join(map(str, lost))}: {_first_line(error)}; "
            + (f"resume from {found[-1]}" if found else "there is no checkpoint yet")
        ) from error


def _part() -> None:
    """End the threads that connect the processes: a program that leaves while they run may be aborted."""
    if torch.distributed.is_initialized():
        # an engine in a cycle of references still holds the group
        gc.collect()
        torch.distributed.destroy_process_group()


def _is_of_a_connection(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _first_line(error: RuntimeError) -> str:
    """Return what an error says, without the place in the source of C++."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).strip().partition("\n")[0]).rstrip(".")
