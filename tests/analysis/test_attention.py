"""Class attention, rollout and attention distance: closed forms, and models of every kind."""

import math
from itertools import product

import pytest
import torch

from vit_pytorch.analysis import (
    TokenLayout,
    attention_distance,
    class_attention,
    class_attention_of_map,
    class_relevance,
    distance_of_map,
    position_similarity,
    record_maps,
    rollout,
    rollout_of_maps,
    token_colours,
    upsample,
)
from vit_pytorch.cct_3d import CCT3D

LAYOUTS = [
    TokenLayout((6,), (3,)),
    TokenLayout((3, 4), (16, 8)),
    TokenLayout((3, 4), (16, 8), prefix=2),
    TokenLayout((2, 3, 4), (2, 4, 4), prefix=1),
]


def video_model() -> CCT3D:
    """A plain model on videos: tokens on a grid of 4 x 4 x 4, pooled by a learned mean."""
    torch.manual_seed(0)
    return CCT3D(
        img_size=16,
        num_frames=4,
        embedding_dim=24,
        frame_kernel_size=1,
        kernel_size=3,
        padding=1,
        num_layers=2,
        num_heads=2,
        mlp_ratio=2.0,
        num_classes=5,
    ).eval()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_distance_of_uniform_attention(layout):
    """The mean of all pairs' distances."""
    places = [[i * p for i, p in zip(cell, layout.patch, strict=True)] for cell in cells(layout)]
    expected = sum(math.dist(a, b) for a in places for b in places) / len(places) ** 2
    tokens = layout.num_patches + layout.prefix
    uniform = torch.full((2, 3, tokens, tokens), 1 / tokens)
    torch.testing.assert_close(distance_of_map(uniform, layout), torch.full((2, 3), expected))
    counted = expected * layout.num_patches / tokens
    found = distance_of_map(uniform, layout, renormalise=False)
    torch.testing.assert_close(found, torch.full((2, 3), counted))


def cells(layout: TokenLayout) -> list[tuple[int, ...]]:
    return list(product(*(range(extent) for extent in layout.grid)))


def test_distance_on_a_line_has_a_closed_form():
    count, patch = 9, 4
    uniform = torch.full((1, 1, count, count), 1 / count)
    expected = patch * (count**2 - 1) / (3 * count)
    assert distance_of_map(uniform, TokenLayout((count,), (patch,))).item() == pytest.approx(expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_distance_of_attention_to_oneself_is_zero(layout):
    eye = torch.eye(layout.num_patches + layout.prefix).expand(1, 2, -1, -1)
    assert distance_of_map(eye, layout).eq(0).all()


@pytest.mark.parametrize(("axis", "expected"), [(0, 2.0), (1, 16.0), (2, 8.0)])
def test_distance_to_the_neighbour_is_the_patch(axis, expected):
    """Each patch sees the next along one axis, the last one the one before it."""
    layout = TokenLayout((2, 3, 4), (2, 16, 8))
    order = torch.arange(24).view(2, 3, 4)
    last = layout.grid[axis] - 1
    seen = order.index_select(axis, torch.tensor([*range(1, last + 1), last - 1])).flatten()
    assert distance_of_map(torch.eye(24)[seen][None, None], layout).item() == pytest.approx(expected)


def test_distance_leaves_prefix_tokens_out():
    """A patch that gives half to the class token and half to its neighbour has the neighbour's distance."""
    layout = TokenLayout((1, 2), (4, 6), prefix=1, class_token=True)
    attention = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])[None, None]
    assert distance_of_map(attention, layout).item() == pytest.approx(6)
    assert distance_of_map(attention, layout, renormalise=False).item() == pytest.approx(3)


def test_distance_of_a_model(build, images):
    model, x = build(), images(32, 32, batch=3)
    found = attention_distance(model, x)
    layout = TokenLayout((8, 8), (4, 4), prefix=1, class_token=True)
    expected = [distance_of_map(layer, layout).mean(dim=0) for layer in record_maps(model, x)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert found.shape == (2, 2)
    smaller = attention_distance(model, images(16, 24))
    assert smaller.shape == (2, 2)
    assert (smaller < found).all()


def test_distance_leaves_late_class_attention_out(build, images):
    assert attention_distance(build("cait_xxs24_224"), images(32, 32)).shape == (2, 2)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("grid", [(4,), (4, 3), (4, 3, 2)], ids=str)
def test_upsampling_a_constant(grid, mode):
    size = tuple(4 * extent for extent in grid)
    large = upsample(torch.full((2, 5, *grid), 3.0), size, mode)
    torch.testing.assert_close(large, torch.full((2, 5, *size), 3.0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_upsampling_a_ramp(axis):
    """Between the centres of the first and the last patch, the pixels' centres lie on the ramp."""
    shape = [1, 1, 1]
    shape[axis] = 4
    ramp = torch.arange(4.0).view(shape).expand(4, 4, 4)
    line = upsample(ramp, (16, 16, 16)).movedim(axis, 0)[:, 5, 5]
    places = (torch.arange(16) + 0.5) / 4 - 0.5
    torch.testing.assert_close(line, places.clamp(0, 3))
    steps = upsample(ramp, (16, 16, 16), "nearest").movedim(axis, 0)[:, 5, 5]
    torch.testing.assert_close(steps, torch.arange(4.0).repeat_interleave(4))


def test_upsampling_refuses():
    with pytest.raises(ValueError, match="mode must be one of linear, nearest; got 'cubic'"):
        upsample(torch.ones(2, 2), (4, 4), "cubic")
    with pytest.raises(ValueError, match=r"1 to 3 axes and more, got 2 of shape \(3,\)"):
        upsample(torch.ones(3), (4, 4))


def test_class_attention_is_the_first_row(build, images):
    model, x = build(), images(32, 16)
    maps = record_maps(model, x)
    for layer in (0, -1):
        found = class_attention(model, x, layer=layer, mode="nearest")
        rows = maps[layer][:, :, 0, 1:].unflatten(2, (8, 4))
        torch.testing.assert_close(found, rows.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert class_attention(model, x).shape == (2, 2, 32, 16)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cait_xxs24_224", {}),
        ("xcit_nano_12_p16_224", {}),
        ("vit_tiny_patch16_224", {"pool": "map"}),
        ("vit_tiny_patch16_224", {"num_registers": 3}),
        ("navit_tiny_patch16", {}),
    ],
)
def test_class_attention_of_other_kinds(build, images, name, overrides):
    """What a late class token, or a pool, takes from the patches, which are the last keys."""
    model, x = build(name, **overrides), images(32, 32)
    found = class_attention(model, x, mode="nearest")
    row = record_maps(model, x)[-1][:, :, 0]
    assert row.shape[-1] in (64, 65, 68)
    torch.testing.assert_close(found[..., ::4, ::4].flatten(2), row[..., -64:])


def test_class_attention_refuses(build, images):
    with pytest.raises(ValueError, match="layers are -2 to 1, got 2"):
        class_attention(build(), images(32, 32), layer=2)
    with pytest.raises(ValueError, match="does not classify a class token"):
        class_attention(build("simple_vit_tiny_patch16_224"), images(32, 32))
    with pytest.raises(ValueError, match=r"IsotropicModel.*, got a CrossViT"):
        class_attention(build("crossvit_tiny_240"), images(64, 64))
    layout = TokenLayout((8, 8), (4, 4), prefix=1, class_token=True)
    with pytest.raises(ValueError, match=r"1 prefix tokens and the 64 patches .* got 64"):
        class_attention_of_map(torch.ones(1, 2, 64, 64) / 64, layout)
    with pytest.raises(ValueError, match=r"expected the 64 patches .* got 40 tokens"):
        class_attention_of_map(torch.ones(1, 2, 1, 40) / 40, layout)


def test_rollout_of_a_model(build, images):
    model, x = build(), images(32, 32)
    found = rollout(model, x, fuse="max", identity=0.4, mode="nearest")
    flow = rollout_of_maps(record_maps(model, x), fuse="max", identity=0.4)
    torch.testing.assert_close(found[:, ::4, ::4].flatten(1), flow[:, 0, 1:])


@pytest.mark.parametrize("name", ["simple_vit_tiny_patch16_224", "navit_tiny_patch16", "cct_2_3x2_32"])
def test_rollout_without_prefix_tokens_sums_to_one(build, images, name):
    found = rollout(build(name), images(32, 32), mode="nearest")[:, ::4, ::4]
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(2))


def test_videos():
    model = video_model()
    x = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    found = rollout(model, x)
    assert found.shape == (2, 4, 16, 16)
    torch.testing.assert_close(
        rollout(model, x, mode="nearest")[:, :, ::4, ::4].sum(dim=(1, 2, 3)), torch.ones(2)
    )
    uniform = distance_of_map(torch.full((1, 1, 64, 64), 1 / 64), TokenLayout((4, 4, 4), (1, 4, 4)))
    distance = attention_distance(model, x)
    assert distance.shape == (2, 2)
    torch.testing.assert_close(distance, uniform.expand(2, 2), rtol=0.2, atol=0)
    assert class_relevance(model, x).shape == (2, 4, 16, 16)
    assert class_attention(model, x).shape == (2, 1, 4, 16, 16)
    assert token_colours(model, x).colours.shape == (2, 4, 4, 4, 3)
    assert position_similarity(model).shape == (4, 4, 4) * 2


def test_models_are_left_as_they_were(build, images):
    model = build(dropout=0.5)
    model.train()
    model.norm.eval()
    kernel = model.blocks[0].attention.kernel
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (rollout(model, images(32, 32)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert [name for name, part in model.named_modules() if not part.training] == ["norm"]
    assert model.blocks[0].attention.kernel is kernel
    assert not any(part._forward_hooks for part in model.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
