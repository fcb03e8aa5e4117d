"""Randomness as a function of what it is for: a seed, an epoch, a sample or a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*keys: int) -> int:
    """Mix integers into one 63-bit seed, so that near keys give unrelated streams.

    Args:
        keys: Non-negative integers, such as seed, epoch and index; their order matters.

    Returns:
        A seed in [0, 2**63).
    """
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(*keys: int) -> torch.Generator:
    """Return a new CPU generator whose stream is a function of the keys alone."""
    return torch.Generator().manual_seed(derive_seed(*keys))


@contextmanager
def seeded(*keys: int) -> Iterator[None]:
    """Seed torch's global CPU generator from the keys inside the block, and restore it afterwards.

    The transforms of torchvision draw from the global generator and take no other.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derive_seed(*keys))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
