"""State of the random number generators of a process, in plain values that a checkpoint can hold."""

import hashlib
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)


def get_random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch (CPU and, where there is one, the current GPU)."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators into a state that :func:`get_random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Context manager: leave the generators as they were before it."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)


def resume_random_state(states: list[dict[str, Any]], *, rank: int, world_size: int) -> None:
    """Put the generators of a process into the state that a checkpoint holds for it.

    With another number of processes no saved state is the right one: each is then seeded from the first.

    Args:
        states: states of all processes that wrote the checkpoint, in order of their ranks
        rank: this process
        world_size: number of processes now
    """
    if len(states) == world_size:
        set_random_state(states[rank])
        return
    logger.warning(
        "the checkpoint was written by %d processes and %d resume it: dropout and augmentation go on "
        "with other random numbers",
        len(states),
        world_size,
    )
    digest = hashlib.sha256(states[0]["torch"].numpy().tobytes() + rank.to_bytes(4, "big")).digest()
    seed = int.from_bytes(digest[:4], "big")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
