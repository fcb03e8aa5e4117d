"""Positions of other grids, and of prefix tokens, end up where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.pretrained.conftest import build
from tests.tolerances import tolerance
from vit_pytorch import ViT, load_pretrained
from vit_pytorch.layers.positions import Learned
from vit_pytorch.levit import LeViT
from vit_pytorch.pretrained import to_format


@pytest.mark.parametrize("size", [40, 64, 96, (40, 64), (64, 72)])
@pytest.mark.parametrize("antialias", [True, False])
def test_positions_are_interpolated_as_timm_does(model: ViT, size: Any, antialias: bool) -> None:
    target = build(image_size=size)
    load_pretrained(target, model.state_dict(), antialias=antialias)
    expected = resample_abs_pos_embed(
        model.positions.table, list(target.grid.shape), [6, 6], antialias=antialias
    )
    # Tables lie in memory in another order in timm, and interpolation has a kernel for each.
    torch.testing.assert_close(target.positions.table, expected, **tolerance(expected, terms=16))


@torch.inference_mode()
def test_interpolation_keeps_a_smooth_function(model: ViT) -> None:
    """Positions that vary linearly over the image vary linearly at twice the resolution."""
    centres = (torch.arange(6) + 0.5) / 6
    model.positions.table[:, 1:] = (centres[:, None] + 2 * centres).reshape(1, 36, 1)
    target = build(image_size=96)
    load_pretrained(target, model.state_dict())
    centres = (torch.arange(12) + 0.5) / 12
    expected = (centres[:, None] + 2 * centres).reshape(1, 12, 12, 1)
    got = target.positions.table[:, 1:].unflatten(1, (12, 12))
    inside = slice(4, 8)
    assert torch.allclose(got[:, inside, inside], expected[:, inside, inside].expand(1, 4, 4, 48), atol=1e-5)


def test_grid_that_is_not_square_has_to_be_told(model: ViT) -> None:
    wide = build(image_size=(40, 72))
    randomise(wide)
    target = build(image_size=64)
    with pytest.raises(ValueError, match="46 positions with 1 prefix tokens are no square grid; pass the"):
        load_pretrained(target, wide.state_dict())
    report = load_pretrained(target, wide.state_dict(), grid=(5, 9))
    assert report.resized == {"positions.table": ((5, 9), (8, 8))}
    with pytest.raises(ValueError, match=r"a grid of \(5, 5\) has 25 positions, the checkpoint's table 46"):
        load_pretrained(target, wide.state_dict(), grid=(5, 5))


def test_square_count_on_a_grid_that_is_not_square_is_not_guessed() -> None:
    square, wide = build(image_size=48), build(image_size=(32, 72))
    state = to_format(square, "timm")
    with pytest.raises(ValueError, match=r"36 positions may belong to a grid of \(4, 9\) or of \(6, 6\)"):
        load_pretrained(wide, state)
    assert load_pretrained(wide, state, grid=(6, 6)).resized == {"positions.table": ((6, 6), (4, 9))}
    assert load_pretrained(wide, state, grid=(4, 9)).resized == {}


@torch.inference_mode()
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("size", [48, 64])
def test_places_of_prefix_tokens_move_into_the_tokens(registers: int, size: int) -> None:
    model = build(num_registers=registers).eval()
    randomise(model)
    target = build(num_registers=registers, positions=Learned(class_token=False), image_size=size).eval()
    load_pretrained(target, model.state_dict())
    assert torch.equal(target.prefix.class_token, model.prefix.class_token + model.positions.table[:, :1])
    if size == 48:
        x = images(48, 48)
        assert difference(target(x), model(x)) < TOLERANCE


@torch.inference_mode()
def test_tokens_without_places_get_one_of_zero() -> None:
    model = build(num_registers=2, positions=Learned(class_token=False)).eval()
    randomise(model)
    target = build(num_registers=2).eval()
    load_pretrained(target, model.state_dict())
    assert target.positions.table[:, 0].abs().max() == 0
    x = images(48, 48)
    assert difference(target(x), model(x)) < TOLERANCE


def levit(size: Any) -> LeViT:
    return LeViT(
        image_size=size, num_classes=2, dim=(8, 8), depth=1, heads=1, mlp_mult=1, stages=2, dim_key=4
    )


@pytest.mark.parametrize("told", [(4, 6), None])
def test_biases_of_a_grid_that_is_not_square_have_to_be_told(told: Any) -> None:
    state = to_format(levit((64, 96)), "timm")
    larger = levit((96, 96))
    if told is None:
        with pytest.raises(ValueError, match="24 distances are no square grid; pass the checkpoint's grid"):
            load_pretrained(larger, state)
    else:
        report = load_pretrained(larger, state, grid=told)
        assert {(4, 6), (2, 3)} == {old for old, _ in report.resized.values()}
        assert {(6, 6), (3, 3)} == {new for _, new in report.resized.values()}


def test_biases_of_a_wrong_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no halving of a grid of \(5, 6\) has 24 cells"):
        load_pretrained(levit((96, 96)), to_format(levit((64, 96)), "timm"), grid=(5, 6))


def test_square_count_of_distances_is_not_guessed() -> None:
    model, other = levit((32, 128)), levit((64, 64))
    with pytest.raises(ValueError, match=r"16 distances may belong to a grid of \(2, 8\) or of \(4, 4\)"):
        load_pretrained(model, to_format(other, "timm"))
    assert load_pretrained(model, to_format(other, "timm"), grid=(4, 4)).resized
    with pytest.raises(ValueError, match=r"16 distances may belong to a grid of \(2, 8\) or of \(4, 4\)"):
        load_pretrained(model, model.state_dict())
    assert not load_pretrained(model, model.state_dict(), grid=(2, 8)).resized
    assert not load_pretrained(model, model.state_dict(), grid="model").resized
    with pytest.raises(ValueError, match="grid must be rows and columns, or 'model', got 'square'"):
        load_pretrained(model, model.state_dict(), grid="square")


SHAPES = [(64, 96), (96, 64), (32, 192), (192, 32)]


@pytest.mark.parametrize("wanted", SHAPES)
@pytest.mark.parametrize(
    ("given", "positions"),
    [
        *(("folder", kind) for kind in ("learned", "relative", "learned_2d")),
        *(("file", kind) for kind in ("learned", "relative")),
        *(("state", kind) for kind in ("learned", "relative", "learned_2d")),
        ("timm", "learned"),
    ],
)
def test_grids_of_as_many_cells_are_not_confused(
    tmp_path: Path, wanted: tuple[int, int], given: str, positions: str
) -> None:
    """Copied row by row, positions would end up at other places."""
    source = build(image_size=(64, 96), positions=positions)
    randomise(source)
    target = build(image_size=wanted, positions=positions)
    source.save_pretrained(tmp_path)
    state = source.state_dict() if given in ("state", "timm") else None
    if given == "timm":
        state = to_format(source, "timm")
    checkpoint: Any = state or (tmp_path if given == "folder" else tmp_path / "model.safetensors")
    if state is not None and positions != "learned_2d":
        message = "may belong to a (grid|window) of .* or of |345 offsets belong to no square window"
        with pytest.raises(ValueError, match=message):
            load_pretrained(target, state)
    report = load_pretrained(target, checkpoint, grid=(8, 12) if state is not None else None)
    resized = {} if wanted == (64, 96) else {((8, 12), (wanted[0] // 8, wanted[1] // 8))}
    assert set(report.resized.values()) == (resized or set())
    if positions == "learned":
        expected = resample_abs_pos_embed(source.positions.table, [wanted[0] // 8, wanted[1] // 8], [8, 12])
        torch.testing.assert_close(target.positions.table, expected, **tolerance(expected, terms=16))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "vit", "image_size": [32, 72]},
        {"architecture": "vit", "pretrained_cfg": {"input_size": [3, 32, 72]}},
        {
            "architecture": "vit",
            "pretrained_cfg": {"input_size": [3, 9, 9]},
            "model_args": {"img_size": [32, 72]},
        },
    ],
)
def test_grid_that_others_configurations_name(tmp_path: Path, config: dict[str, Any]) -> None:
    source = build(image_size=(32, 72))
    save_file(to_format(source, "timm"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    square, wide = build(), build(image_size=(72, 32))
    assert load_pretrained(square, tmp_path).resized == {"positions.table": ((4, 9), (6, 6))}
    assert load_pretrained(wide, tmp_path).resized == {"positions.table": ((4, 9), (9, 4))}
    assert load_pretrained(build(image_size=(32, 72)), tmp_path, strict=True).resized == {}
