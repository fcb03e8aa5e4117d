"""Stopping a training from outside: signals are noted, and obeyed where a checkpoint can be written."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.fabric import Fabric

# Windows has no SIGHUP, by which a terminal says that it is closed
_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Interrupted(Exception):  # noqa: N818 - an outcome that was asked for, not an error
    """Training was asked to stop and has written a checkpoint to go on from.

    Args:
        signum: The signal that asked.
        checkpoint: Where the checkpoint stands.
    """

    def __init__(self, signum: int, checkpoint: str) -> None:
        self.signum = signum
        self.checkpoint = checkpoint
        super().__init__(f"stopped by {signal.Signals(signum).name}; resume from {checkpoint}")

    @property
    def exit_status(self) -> int:
        """Status by which a shell recognises the signal: 143 for SIGTERM, 130 for Ctrl-C, 129 for SIGHUP."""
        return 128 + self.signum


class StopSignals:
    """Context in which the first SIGTERM, SIGINT or SIGHUP is noted; a second SIGTERM or SIGINT acts at once.

    A second SIGHUP does not: when a terminal is closed, both the system and the shell may send one. What the
    process ignores already, as under `nohup`, stays so.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: handler
                for number in _SIGNALS
                if (handler := signal.getsignal(number)) is not signal.SIG_IGN
            }
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for number, at_once in (
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGINT, signal.default_int_handler),
        ):
            if number in self._before:
                signal.signal(number, at_once)

    def agreed(self, fabric: Fabric) -> int:
        """Return the signal that any of the processes has received, the same in all of them; 0 for none."""
        if fabric.world_size == 1:
            return self.received
        received = torch.tensor(self.received, device=fabric.device)
        torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
        return int(received)
