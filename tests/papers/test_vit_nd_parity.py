"""The ViTs on signals and videos compute what the public package's do; on one axis, what the 2-D one does."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import ViT, load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.simple_vit_3d import SimpleViT3D
from vit_pytorch.vit_1d import ViT1D
from vit_pytorch.vit_3d import ViT3D

PUBLIC: dict[str, tuple[type[ViT], str, dict[str, Any]]] = {
    "public_vit_3d": (ViT3D, "vit-pytorch 3D ViT", {}),
    "public_simple_vit_3d": (SimpleViT3D, "vit-pytorch SimpleViT", {"out_bias": False, "act": "gelu"}),
    "public_vit_1d": (ViT1D, "vit-pytorch 1D ViT", {}),
    "public_simple_vit_1d": (
        ViT1D,
        "vit-pytorch SimpleViT",
        {"out_bias": False, "pool": "mean", "positions": "sincos"},
    ),
}
SMALL = {"num_classes": 7, "dim": 48, "depth": 2, "heads": 3, "dim_head": 16, "mlp_dim": 96}
SIGNAL = {**SMALL, "seq_len": 64, "patch_size": 2}


@torch.inference_mode()
@pytest.mark.parametrize("name", PUBLIC)
def test_logits_equal_the_public_packages(name: str) -> None:
    config, state, golden = read_golden(name)
    kind, layout, options = PUBLIC[name]
    with pytest.warns(UserWarning, match="patches are few") if "1d" in name else nullcontext():
        model = kind(**config, qkv_bias=False, patch_norm=True, norm_eps=1e-5, **options).eval()
    report = load_pretrained(model, state, grid="model")
    assert report.format == layout
    assert [*report.kept, *report.dropped, *report.resized] == []
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    if "cls_token" in state and state["cls_token"].ndim == 1:
        written = to_format(model, layout)
        assert all(written[key].view_as(tensor).equal(tensor) for key, tensor in state.items())


def row(model: ViT1D) -> ViT:
    """Give the 2-D ViT whose images have one row, with a signal's weights."""
    flat = ViT(image_size=(1, 64), patch_size=(1, 2), **SMALL).eval()
    state = model.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
    flat.load_state_dict(state)
    return flat


@torch.inference_mode()
def test_a_signal_is_an_image_of_one_row() -> None:
    model = randomise(ViT1D(**SIGNAL))
    x = torch.randn(2, 3, 64)
    assert difference(model(x), row(model)(x[:, :, None])) < TOLERANCE
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(found.shape) for found in maps] == [(2, 48, 32)] * 2


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["learned", "sincos", "none"])
def test_shorter_signals_have_the_positions_of_their_places(positions: str) -> None:
    model = randomise(ViT1D(**SIGNAL, pool="mean", positions=positions))
    x = torch.randn(2, 3, 40)
    table = torch.zeros(1, 20, 48) if model.positions is None else model.positions.table[:, :20]
    torch.testing.assert_close(model.embed(x), model.patch_embed(x) + table)
    assert model(x).shape == (2, 7)


def test_another_length_is_interpolated_in_loading() -> None:
    model, longer = randomise(ViT1D(**SIGNAL)), ViT1D(**{**SIGNAL, "seq_len": 128})
    report = load_pretrained(longer, model.state_dict())
    assert report.resized == {"positions.table": ((32,), (64,))}
    want = F.interpolate(model.positions.table[:, 1:].mT, 64, mode="linear").mT
    torch.testing.assert_close(longer.positions.table[:, 1:], want)


@pytest.mark.parametrize(
    ("frames", "size", "grid"), [(12, 16, (3, 4, 4)), (16, 16, (4, 4, 4)), (8, 40, (2, 10, 10))]
)
def test_another_grid_of_videos_is_interpolated_in_loading(frames: int, size: int, grid: tuple) -> None:
    """Told by the number of positions where either the frames or a frame's size are the model's."""
    sizes = {**SMALL, "image_patch_size": 4, "frame_patch_size": 4}
    model = randomise(ViT3D(**sizes, frames=frames, image_size=size))
    other = ViT3D(**sizes, frames=8, image_size=16)
    report = load_pretrained(other, model.state_dict())
    assert report.resized == {"positions.table": (grid, (2, 4, 4))}
    cells = model.positions.table[:, 1:].mT.unflatten(2, grid)
    want = F.interpolate(cells, (2, 4, 4), mode="trilinear").flatten(2).mT
    torch.testing.assert_close(other.positions.table[:, 1:], want)


def test_a_grid_of_videos_that_cannot_be_told_is_asked_for() -> None:
    sizes = {**SMALL, "image_patch_size": 4, "frame_patch_size": 4}
    model = ViT3D(**sizes, frames=32, image_size=16)
    other = ViT3D(**sizes, frames=8, image_size=16)
    with pytest.raises(ValueError, match="pass the checkpoint's grid"):
        load_pretrained(other, model.state_dict())
    assert load_pretrained(other, model.state_dict(), grid=(8, 4, 4)).resized


@torch.inference_mode()
def test_a_volume_of_one_slice_is_an_image() -> None:
    sizes = {**SMALL, "image_size": (24, 16)}
    flat = randomise(ViT(**sizes, patch_size=4))
    deep = ViT3D(**sizes, frames=1, image_patch_size=4, frame_patch_size=1).eval()
    state: dict[str, Tensor] = flat.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
    deep.load_state_dict(state)
    x = torch.randn(2, 3, 24, 16)
    assert difference(deep(x[:, :, None]), flat(x)) < TOLERANCE


def test_sizes_of_the_wrong_rank_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one number or \(height, width\), got \(8, 32, 32\)"):
        ViT(image_size=(8, 32, 32), patch_size=4, **SMALL)
    model = randomise(ViT1D(**SIGNAL))
    with pytest.raises(ValueError, match=r"rank 3 \(batch, 3 channels, 64\)"):
        model(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="one of cls, mean; got 'map'"):
        ViT1D(**SIGNAL, pool="map")
