from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.registry import find_entry


@pytest.fixture
def build() -> Callable[..., VisionModel]:
    """Build a named model in its tiny size, some arguments changed, from a fixed seed, in eval."""

    def make(name: str = "vit_tiny_patch16_224", **overrides: object) -> VisionModel:
        entry = find_entry(name)
        torch.manual_seed(0)
        return entry.build(**{**entry.tiny, **overrides}).eval()

    return make


@pytest.fixture
def images() -> Callable[..., Tensor]:
    return lambda *size, batch=2: torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
