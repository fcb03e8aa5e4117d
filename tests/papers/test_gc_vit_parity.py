"""GC ViT computes what timm's computes; the stage of global queries, by plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.gcvit import GlobalContextVit

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.gc_vit import GCViT, GlobalAttention
from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.blocks import DropPath

# Maps of 16, 8 and 4 cells: two halvings lead to the queries of windows of 4 cells, one, and none.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": 32,
    "depth": (3, 2, 2),
    "heads": (2, 4, 4),
    "num_windows": (4, 2, 1),
}
THEIRS: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 7,
    "embed_dim": 32,
    "depths": (3, 2, 2),
    "num_heads": (2, 4, 4),
    "window_ratio": (16, 16, 16),
    "mlp_ratio": 3,
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "windows of other sizes": ({"num_windows": (4, 1, 1)}, {"window_ratio": (16, 8, 16)}),
    "windows in cells": ({"num_windows": (4, 2, 1)}, {"window_ratio": None, "window_size": 4}),
    "LayerScale, feed-forward": (
        {"layer_scale": 0.5, "mlp_ratio": 2},
        {"layer_scale": 0.5, "mlp_ratio": 2},
    ),
    "no bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "epsilon": ({"norm_eps": 1e-3}, {"norm_eps": 1e-3}),
}
FAMILY = Family(
    GCViT,
    GlobalContextVit,
    OURS,
    THEIRS,
    OPTIONS,
    module="gcvit",
    named=[
        Named("gcvit_xxtiny"),
        Named("gcvit_small", {"image_size": 128}, {"img_size": 128}),
    ],
    maps=("not square",),
    # timm's last stage has the final norm in it.
    norms=[(True, False)],
    trained=("plain",),
)


@torch.inference_mode()
def test_global_attention_in_plain_loops() -> None:
    """Every window of an image is asked by the same queries, and those of the image itself."""
    heads, dim, window = 2, 6, (2, 3)
    attention = GlobalAttention(dim, heads=heads, window=window)
    randomise(attention)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, dim, generator=generator)
    queries = torch.randn(2, 6, dim, generator=generator)
    found = attention(x, BlockInputs(queries=queries))
    bias = attention.bias()
    for image in range(2):
        for top in (0, 2):
            for left in (0, 3):
                cells = x[image, top : top + 2, left : left + 3].reshape(6, dim)
                keys, values = attention.to_kv(cells).chunk(2, dim=1)
                mixed = []
                for head in range(heads):
                    part = slice(3 * head, 3 * head + 3)
                    scores = queries[image][:, part] @ keys[:, part].T * 3**-0.5 + bias[head]
                    mixed.append(scores.softmax(1) @ values[:, part])
                want = attention.to_out(torch.cat(mixed, dim=1)).view(2, 3, dim)
                torch.testing.assert_close(found[image, top : top + 2, left : left + 3], want)


@torch.inference_mode()
def test_far_cells_are_seen_through_the_queries_only() -> None:
    """A cell of another window changes nothing in the first block, and something in the second."""
    model = randomise(GCViT(**OURS))
    stage = model.stages[0]
    x = torch.randn(1, 16, 16, 32, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, 15, 15] += 1
    local, spread = stage.blocks[:2]
    assert local(x)[0, :4, :4].equal(local(moved)[0, :4, :4])
    queries, others = (BlockInputs(queries=stage.query(each).flatten(1, 2)) for each in (x, moved))
    assert spread(x, queries)[0, :4, :4].equal(spread(moved, queries)[0, :4, :4])
    assert not torch.allclose(spread(x, queries)[0, :4, :4], spread(moved, others)[0, :4, :4])


@torch.inference_mode()
def test_windows_grow_with_the_input() -> None:
    """Another size has windows of another size, whose biases are interpolated; timm's reader agrees."""
    model = randomise(GCViT(**OURS))
    before = model(images(64, 64))
    with pytest.raises(ValueError, match=r"image size must be at most \(64, 64\), got \(96, 96\)"):
        model(images(96, 96))
    with pytest.raises(ValueError, match=r"image size must be \(64, 64\), got \(32, 32\); set_input_size"):
        model(images(32, 32))
    model.set_input_size(96)
    assert model.stages[0].blocks[1].attention.bias.window == (6, 6)
    assert model(images(96, 96)).shape == before.shape
    with pytest.raises(ValueError, match=r"image size must be \(96, 96\), got \(48, 48\)"):
        model(images(48, 48))


def test_weights_that_do_not_fit_are_refused() -> None:
    reference = GlobalContextVit(**{**THEIRS, "depths": (2, 2, 2)})
    with pytest.raises(ValueError, match=r"does not fit GCViT:\nmissing"):
        load_pretrained(GCViT(**OURS), reference.state_dict())


def test_stochastic_depth_rises_over_all_blocks() -> None:
    model = GCViT(**OURS, drop_path=0.6)
    rates = [part.p for part in model.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_windows": (4, 2)}, r"num_windows must be one for each of 3 stages, got \(4, 2\)"),
        ({"num_windows": (6, 2, 1)}, r"num_windows must be powers of 2, got \(6, 2, 1\)"),
        ({"depth": (2, 1, 2)}, r"a stage needs a second block.* got depth \(2, 1, 2\)"),
        ({"image_size": 72}, r"image size must be a multiple of \(16, 16\), got \(72, 72\)"),
        ({"heads": (2, 4)}, r"heads must be one for each of 3 stages, got \(2, 4\)"),
        ({"mlp_ratio": (4, 4)}, r"mlp_ratio must be one number or one for each of 3 stages, got \(4, 4\)"),
        ({"dim": 24, "heads": None}, r"dims must be multiples of 32, the head dimension, got \(24, 48, 96\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GCViT(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "dim": 32, "depth": (2, 2), "heads": (2, 4), "num_windows": (2, 1)}
    model = create_model("gcvit_xxtiny", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
