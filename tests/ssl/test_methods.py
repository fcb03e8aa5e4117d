"""What all methods promise that hide or change patches of a plain model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit_pytorch import MAE, ViT
from vit_pytorch.mp3 import MP3
from vit_pytorch.mpp import MPP
from vit_pytorch.simmim import SimMIM

SMALL = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 0,
    "dim": 48,
    "depth": 2,
    "heads": 4,
    "dim_head": 12,
    "mlp_dim": 96,
}


def noise(method: Any, pixels: Tensor) -> Tensor:
    return torch.rand(len(pixels), 36)


# method: what makes it around a ViT, and what draws for images what may be given beside them
METHODS: dict[str, tuple[Callable[[ViT], Any], Callable[[Any, Tensor], Any]]] = {
    "mae": (lambda vit: MAE(encoder=vit, decoder_dim=32, decoder_depth=2, decoder_heads=4), noise),
    "simmim": (lambda vit: SimMIM(encoder=vit, mask_patch_size=8), lambda *drawn: noise(*drawn) < 0.5),
    "mpp": (
        lambda vit: MPP(transformer=vit, mean=(0.5,) * 3, std=(0.5,) * 3),
        lambda method, pixels: method.draw(pixels),
    ),
    "mp3": (lambda vit: MP3(vit=vit), noise),
}


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def method(name: str) -> Any:
    return METHODS[name][0](ViT(**SMALL))


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, 48, 48)


@pytest.fixture
def drawn(name: str, method: Any, pixels: Tensor) -> Any:
    return METHODS[name][1](method, pixels)


def test_randomness_is_torchs(method: nn.Module, pixels: Tensor):
    first, second, third = (
        method(pixels, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first == second != third
    torch.manual_seed(0)
    assert method(pixels) == first
    assert method(pixels) != first


def test_state_and_model(name: str, pixels: Tensor):
    """The model is the object passed in; the state is all that makes the loss."""
    make, draw = METHODS[name]
    vit = ViT(**SMALL)
    method, other = make(vit), make(ViT(**SMALL))
    assert any(child is vit for child in method.children())
    drawn = draw(method, pixels)
    assert other(pixels, drawn) != method(pixels, drawn)
    other.load_state_dict(method.state_dict())
    assert other(pixels, drawn) == method(pixels, drawn)


def test_compiles_whole(method: nn.Module, pixels: Tensor, drawn: Any):
    compiled = torch.compile(method.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels, drawn), method(pixels, drawn))
    torch.compiler.reset()


def test_autocast(method: nn.Module, pixels: Tensor, drawn: Any):
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(pixels, drawn)
    loss.backward()
    torch.testing.assert_close(loss, method(pixels, drawn), rtol=2e-2, atol=1e-2)
