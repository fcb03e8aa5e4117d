"""ViTamin computes what timm's computes; its parts against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import vitamin as theirs
from torch import nn

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.positions import Learned
from vit_pytorch.vitamin import MBConvLN, ViTamin

# A map of 4 x 4 cells.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": 48,
    "depth": 2,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 96,
    "conv_dim": (8, 16),
    "conv_depth": (2, 3),
}
THEIRS: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 7,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "convs": ((8, 16, 48), (2, 3, 1)),
}


def reference(convs: tuple[tuple[int, ...], tuple[int, ...]], **options: Any) -> nn.Module:
    """Build timm's model, whose class is the plain ViT, on stages of these channels and depths."""
    cfg = theirs.VitCfg(embed_dim=convs[0], depths=convs[1], stem_width=convs[0][0])
    fixed = {"mlp_layer": theirs.GeGluMlp, "mlp_ratio": 2.0, "class_token": False, "global_pool": "avg"}
    return theirs._create_vitamin("vitamin_small_224", embed_cfg=cfg, **fixed, **options)


# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "one cell high": ({"image_size": (16, 48)}, {"img_size": (16, 48)}),
    "no positions": ({"positions": "none"}, {"pos_embed": "none"}),
    "deeper": ({"depth": 4, "conv_depth": (1, 2)}, {"depth": 4, "convs": ((8, 16, 48), (1, 2, 1))}),
    "without biases of queries": ({"qkv_bias": False}, {"qkv_bias": False}),
    "stages of equal width": ({"conv_dim": (16, 16)}, {"convs": ((16, 16, 48), (2, 3, 1))}),
}
SHALLOW = {"depth": 1}
FAMILY = Family(
    ViTamin,
    reference,
    OURS,
    THEIRS,
    OPTIONS,
    module="vitamin",
    named=[
        *(Named(name, SHALLOW, SHALLOW) for name in list_models("vitamin_*")),
        Named("vitamin_small_224"),
    ],
    maps=("not square", "no positions"),
    norms=[(False, False), (True, True)],
    trained=("plain", "no positions"),
)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (48, 48), (96, 96), (32, 80)])
@pytest.mark.parametrize("positions", ["learned", "none"])
def test_images_of_any_size(positions: str, size: tuple[int, int]) -> None:
    """With interpolated positions, which timm calls `dynamic_img_size`, or without positions, as in timm."""
    learned = positions == "learned"
    ours = {"positions": Learned(dynamic_img_size=True)} if learned else {"positions": "none"}
    changes = {"dynamic_img_size": True} if learned else {"pos_embed": "none"}
    model = ViTamin(**{**OURS, **ours}).eval()
    other = randomise(reference(**THEIRS, **changes))
    load_pretrained(model, other.state_dict(), strict=True)
    x = images(*size)
    assert difference(model(x), other(x)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("size", [(48, 48), (96, 96), (32, 80)])
def test_another_input_size_for_good(size: tuple[int, int]) -> None:
    """Positions are interpolated as timm's are; all other parameters stay the same objects."""
    model, other = FAMILY.pair("plain")
    before = dict(model.named_parameters())
    if max(size) > 64:
        with pytest.raises(ValueError, match=r"at most \(64, 64\)"):
            model(images(*size))
    model.set_input_size(size)
    other.set_input_size(size)
    assert difference(model(images(*size)), other(images(*size))) < TOLERANCE
    changed = {name for name, parameter in model.named_parameters() if before[name] is not parameter}
    assert changed == {"positions.table"}
    assert model.config["image_size"] == size


@torch.inference_mode()
def test_weights_of_another_size() -> None:
    """Those of 64 pixels in a model of 96 are what timm's reader makes of them."""
    _, small = FAMILY.build("plain")
    state = small.state_dict()
    model = ViTamin(**{**OURS, "image_size": 96}).eval()
    other = reference(**{**THEIRS, "img_size": 96}).eval()
    other.load_state_dict(theirs.checkpoint_filter_fn(dict(state), other))
    assert load_pretrained(model, state).resized
    assert difference(model(images(96, 96)), other(images(96, 96))) < TOLERANCE


@torch.inference_mode()
def test_features_are_timms() -> None:
    """The maps of chosen blocks, their channels and reductions."""
    model = create_model("vitamin_small_224", features_only=True, out_indices=(0, 2, 3), depth=4).eval()
    other = timm.create_model("vitamin_small_224", features_only=True, out_indices=(0, 2, 3), depth=4)
    randomise(other)
    load_pretrained(model.model, other.model.state_dict())
    x = images(224, 224, batch=1)
    for ours, wanted in zip(model(x), other(x), strict=True):
        assert difference(ours, wanted) < TOLERANCE * max(1, wanted.abs().max())
    for what in ("channels", "reduction"):
        assert getattr(model.feature_info, what)() == getattr(other.feature_info, what)()


def clip_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give timm's weights the names of open_clip, whose projection without bias is outside of the tower."""
    tower = {f"visual.trunk.{name}": tensor for name, tensor in state.items() if "head" not in name}
    return {
        "logit_scale": torch.tensor(4.6),
        "text.token_embedding.weight": torch.ones(5, 8),
        "text.transformer.resblocks.0.ln_1.weight": torch.ones(8),
        **tower,
        "visual.head.proj.weight": state["head.weight"],
    }


@torch.inference_mode()
@pytest.mark.parametrize("option", ["plain", "no positions"])
def test_weights_of_a_model_of_images_and_texts(option: str) -> None:
    """timm's reader of such files gives its model the same function."""
    model, source = FAMILY.build(option)
    _, other = FAMILY.build(option)
    state = clip_state(source.state_dict())
    other.load_state_dict(theirs.checkpoint_filter_fn(dict(state), other))
    report = load_pretrained(model, state)
    assert (report.format, report.kept) == ("timm", ())
    beside = ("logit_scale", "text.token_embedding.weight", "text.transformer.resblocks.0.ln_1.weight")
    assert report.dropped == tuple(f"/{name}" for name in beside)
    assert not model.head.bias.any()
    assert difference(model(images(64, 64)), other(images(64, 64))) < TOLERANCE


def test_a_tower_of_another_kind_is_refused() -> None:
    """The sentence says which formats there are."""
    model, _ = FAMILY.build("plain")
    state = {f"visual.trunk.{name}": torch.ones(1) for name in ("stem.conv1.weight", "norm.weight")}
    with pytest.raises(
        ValueError, match=r"none of the formats known for ViTamin .*begins with visual\.trunk"
    ):
        load_pretrained(model, state)


@torch.no_grad()
@pytest.mark.parametrize("halve", [False, True])
def test_inverted_bottleneck_against_plain_loops(halve: bool) -> None:
    """One norm, three layers, and on the way around the mean of those of 3 x 3 cells that are in the map."""
    block = randomise(MBConvLN(4, 6, 10, halve=halve, norm_eps=1e-6))
    assert isinstance(block, MBConvLN)
    x = torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(3))
    wide = F.gelu(block.expand(block.norm(x)))[0]
    kernel, bias = block.conv.layers[0].weight[:, 0], block.conv.layers[0].bias
    step = 2 if halve else 1
    rows, columns = -(-5 // step), -(-4 // step)
    for row in range(rows):
        for column in range(columns):
            near = [
                (row * step + i, column * step + j, i + 1, j + 1)
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if 0 <= row * step + i < 5 and 0 <= column * step + j < 4
            ]
            hidden = bias + sum(wide[y, z] * kernel[:, i, j] for y, z, i, j in near)
            around = torch.stack([x[0, y, z] for y, z, _, _ in near]).mean(0) if halve else x[0, row, column]
            want = block.shortcut[-1](around) + block.project(F.gelu(hidden))
            torch.testing.assert_close(block(x)[0, row, column], want, rtol=1e-4, atol=1e-5)


def test_a_pixel_reaches_its_neighbourhood_alone() -> None:
    """The convolutions keep places: what is far from a pixel does not change before the blocks."""
    model, _ = FAMILY.pair("no positions")
    x = images(160, 160, batch=1)
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    changed = (model.embed(x) - model.embed(moved)).abs().amax(dim=(0, 2)).view(10, 10) > 0
    assert changed[0, 0]
    assert not changed[4:].any()
    assert not changed[:, 4:].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conv_depth": (1,)}, r"one for each convolutional stage, got \(8, 16\) and \(1,\)"),
        ({"conv_dim": (), "conv_depth": ()}, r"conv_dim must be a sequence of integers .*, got \(\)"),
        ({"image_size": 40}, r"must be a multiple of patch size \(16, 16\), got \(40, 40\)"),
        ({"positions": "rope"}, "positions must be one of learned, none; got 'rope'"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTamin(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {**OURS, "image_size": 32, "num_classes": 10, "conv_dim": (16, 32), "conv_depth": (1, 1)}
    model = create_model("vitamin_small_224", channels=1, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=6, goal=0.95) > 0.95
