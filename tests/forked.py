"""Python programs in processes of their own that start at once, as copies of one that has imported all.

A process that imports torch, Lightning, torchvision and torchmetrics takes five seconds before it does
anything. A server imports them once for each test process and forks for every program. What Python and
libraries read while they start (`PYTHON…`, numbers of threads) is the server's; tests of that, of imports and
of standard streams start a real process.

Programs that a test does not start itself, as those of a shell script, are `python -m tests.forked` in place
of `python`, with the variables of `for_scripts`: a small process whose streams, signals and end are a copy's.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
# what `vit` and the programs of tests import, late or at once
IMPORTED = (
    *("vit_pytorch.cli.errors", "vit_pytorch.cli.memory", "vit_pytorch.cli.layers", "vit_pytorch.extras"),
    *("vit_pytorch.cli.train", "vit_pytorch.cli.pretrain", "vit_pytorch.cli.finetune", "vit_pytorch.cli.use"),
    *("sklearn.datasets", "sklearn.model_selection", "torchmetrics.functional.classification"),
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint"),
)
# names the socket on which the server hears programs of scripts
ADDRESS = "FORKED_SERVER"
# read while Python or a library starts; not LD_LIBRARY_PATH, to which OpenCV adds once a test has imported it
EARLY = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD", "MALLOC_", "GLIBC_", "HF_", "TORCH_")


def environment() -> dict[str, str]:
    """Return the environment variables of a program in a process of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def early(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that a copy cannot be told any more."""
    return {
        name: value
        for name, value in variables.items()
        # torchrun sets the former, for its children; NCCL reads it when it is used
        if name.startswith(EARLY) and not name.startswith(("TORCH_NCCL_", "PYTHON_EXEC"))
    }


def check_early(variables: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Check that what a copy cannot be told any more is as the server was told.

    Raises:
        ValueError: it is not.
    """
    differ = sorted({name for name, _ in early(variables).items() ^ early(known).items()})
    if differ:
        raise ValueError(f"{', '.join(differ)} must be as in this process: start a real process")


class Server(NamedTuple):
    connection: socket.socket
    early: dict[str, str]
    address: str


@cache
def server(owner: int) -> Server:
    """Start the server of a process, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    variables, folder = environment(), tempfile.mkdtemp()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{folder}/server")
    listener.listen()
    with theirs, listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", "serve", str(theirs.fileno()), str(listener.fileno())],
            cwd=ROOT,
            # pyarrow would start a thread, and a process of several threads should not fork
            env={**variables, "JE_ARROW_MALLOC_CONF": "background_thread:false"},
            pass_fds=[theirs.fileno(), listener.fileno()],
        )

    def stop() -> None:
        if os.getpid() == owner:
            ours.close()
            process.wait()
            shutil.rmtree(folder)

    atexit.register(stop)
    return Server(ours, early(variables), f"{folder}/server")


def for_scripts() -> dict[str, str]:
    """Return the environment variables of a script whose programs start as copies."""
    return {ADDRESS: server(os.getpid()).address}


def in_script(command: Sequence[str]) -> list[str]:
    """Return what starts a program of Python in a script as a copy, with `for_scripts`."""
    return [command[0], "-m", "tests.forked", *command[1:]]


def ask(
    connection: socket.socket,
    command: Sequence[str],
    streams: Sequence[int],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    session: bool = False,
) -> tuple[int, int]:
    """Ask a server for a copy; return its process number, and from where its status is read."""
    status, theirs = os.pipe()
    request = {"command": command, "env": dict(env), "cwd": str(cwd or Path.cwd()), "session": session}
    socket.send_fds(connection, [json.dumps(request).encode()], [*streams, theirs])
    os.close(theirs)
    return int(connection.recv(20)), status


def stand_in(command: Sequence[str]) -> int:
    """Be the program that a copy is: its streams, signals that it gets, and its status as a shell has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ[ADDRESS])
        process, status = ask(connection, command, range(3), env=os.environ)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(process, number))
    ended = int(os.read(status, 20))
    return ended if ended >= 0 else 128 - ended


class Popen:
    """A program in a copy of the server; as `subprocess.Popen`, whose output is text.

    Args:
        command: `sys.executable`, then `-m` and a module, `-c` and code, or a file; then arguments.
        env: all environment variables; those that are read at a start must be the server's.
        cwd: the working directory; by default, this process's.
        start_new_session: whether the process leads a session and a process group of its own.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args, self.returncode = command, None
        connection, known, _ = server(os.getpid())
        check_early(env, known)
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._texts: list[str] = []
        with open(os.devnull, "rb") as nothing:
            streams = [file.fileno() for file in (nothing, *self._files)]
            self.pid, self._status = ask(
                connection, command[1:], streams, env=env, cwd=cwd, session=start_new_session
            )

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(os.read(self._status, 20))
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        for file in self._files:
            with file:
                file.seek(0)
                self._texts.append(file.read().decode())
        self._files.clear()
        return self._texts[0], self._texts[1]

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *_: object) -> None:
        self.communicate()


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; as `subprocess.run` that captures output as text."""
    with Popen(command, env=env, cwd=cwd) as process:
        try:
            output, errors = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def serve(connection: socket.socket, listener: socket.socket) -> dict[str, Any] | None:
    """Fork for every request; return it in the copy, and nothing in the server when nobody asks any more.

    Args:
        connection: to the process whose server this is.
        listener: for the processes that it starts.
    """
    running: dict[int, int] = {}

    def reap(*_: object) -> None:
        while running:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            descriptor = running.pop(process)
            os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(descriptor)

    signal.signal(signal.SIGCHLD, reap)
    while True:
        own = connection in select.select([connection, listener], [], [])[0]
        caller = connection.dup() if own else listener.accept()[0]
        message, descriptors, *_ = socket.recv_fds(caller, 1 << 20, 4)
        if not message:
            caller.close()
            if own:
                return None
            continue
        *standard, status = descriptors
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        process = os.fork()
        if not process:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            request = json.loads(message)
            if request["session"]:
                os.setsid()
            for number, descriptor in enumerate(standard):
                os.dup2(descriptor, number)
            caller.send(str(os.getpid()).encode())
            for each in (caller, connection, listener):
                each.close()
            for descriptor in (*descriptors, *running.values()):
                os.close(descriptor)
            return request
        running[process] = status
        caller.close()
        for descriptor in standard:
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def start(request: dict[str, Any]) -> None:
    """Be the program that was asked for."""
    import numpy as np

    check_early(request["env"], os.environ)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    # every process draws its own
    np.random.seed()
    kind, *arguments = request["command"]
    if kind == "-m":
        sys.path[0], sys.argv = request["cwd"], arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *arguments[1:]]
        exec(arguments[0], {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = str(Path(kind).parent), [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    """Import, then serve until the other side closes the connection."""
    for name in IMPORTED:
        import_module(name)
    threads = Path("/proc/self/task")
    assert not threads.exists() or len(os.listdir(threads)) == 1, "a process of several threads cannot fork"
    gc.collect()
    gc.freeze()
    connection, listener = (socket.socket(fileno=int(number)) for number in sys.argv[2:])
    with connection, listener:
        request = serve(connection, listener)
    if request is not None:
        start(request)


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        # Python buffers what is no terminal; torchrun would have it not do so
        sys.exit(stand_in([word for word in sys.argv[1:2] if word != "-u"] + sys.argv[2:]))
    main()
