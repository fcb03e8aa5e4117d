"""Two machines on one: for each a process group of its own, started as clusters start them."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from tests import forked
from tests.forked import ROOT, environment

Node: TypeAlias = "subprocess.Popen[str] | forked.Popen"
VIT = ("-m", "vit_pytorch.cli")
TOOLS = {
    "python": f'exec "{sys.executable}" $FORKED "$@"',
    "vit": 'exec python -m vit_pytorch.cli "$@"',
    "torchrun": 'exec python -m torch.distributed.run "$@"',
    # two tasks, of which the worse status counts
    "srun": """
while [[ "$1" == --* ]]; do shift; done
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_NODEID=$rank SLURM_LOCALID=0 "$@" &
  tasks+=($!)
done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
""",
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def slurm_job(port: int) -> dict[str, str]:
    """Variables of a job of two machines with a process each."""
    names = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "vit", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "2"}
    return {**names, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "MASTER_PORT": str(port)}


def slurm_task(port: int, rank: int) -> dict[str, str]:
    """Variables of one of its processes."""
    numbers = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
    return {**slurm_job(port), **numbers}


def start(command: Sequence[str | Path], cwd: Path, variables: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start a machine."""
    return subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_task(
    port: int,
    rank: int,
    *arguments: str | Path,
    cwd: Path,
    program: Sequence[str] = VIT,
) -> forked.Popen:
    """Start one of two processes as srun does."""
    command = [sys.executable, *program, *map(str, arguments)]
    return forked.Popen(
        command, cwd=cwd, env={**environment(), **slurm_task(port, rank)}, start_new_session=True
    )


def page_scripts(heading: str) -> list[str]:
    """Give the shell scripts of a section of the page on clusters."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(?:sh|bash)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def start_script(
    script: str,
    options: Sequence[str],
    places: Mapping[str, str],
    cwd: Path,
    variables: Mapping[str, str],
    *,
    copies: bool = True,
) -> "subprocess.Popen[str]":
    """Run a script of the page with one process a machine, its places filled in, and more options.

    Python starts as copies, unless something that a copy is not in, such as a network, is around it.
    """
    tools = cwd / "tools"
    # not once more while the first machine runs them, which the system refuses
    if not tools.exists():
        tools.mkdir()
        for name, text in TOOLS.items():
            (tools / name).write_text(f"#!/bin/bash\n{text}\n")
            (tools / name).chmod(0o755)
    script = re.sub(r"(--(?:devices|nproc-per-node|ntasks-per-node)[ =])8", r"\g<1>1", script)
    script = re.sub(r"( train )", rf"\1{' '.join(options)} ", script)
    for name, value in places.items():
        script = re.sub(rf"\b{name}\b", value, script)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    python = {"PYTHON_EXEC": str(tools / "python")}
    if copies:
        python |= {"FORKED": "-m tests.forked", **forked.for_scripts()}
    return start(["bash", "-c", script], cwd, {"PATH": path, **python, **variables})


def kill(node: Node) -> None:
    """Take a machine away: all of its processes, at once."""
    os.killpg(node.pid, signal.SIGKILL)


def finish(*nodes: Node, timeout: float = 300) -> list[tuple[str, str]]:
    """Wait for machines; return what each of them said. None outlives the time."""
    try:
        return [node.communicate(timeout=timeout) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                kill(node)
                node.communicate()
