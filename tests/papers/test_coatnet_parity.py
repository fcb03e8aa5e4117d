"""CoAtNet computes what timm's compute, the paper's and timm's own; attention against plain loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models.maxxvit import MaxxVit, checkpoint_filter_fn, model_cfgs

from tests.papers.reference import TOLERANCE, check_parity, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.coatnet import CoAtNet
from vit_pytorch.registry.coatnet import MODELS

# Each with sizes that are quick to test, and all else as it is.
DEPTH = (1, 2, 2, 2)


def make_pair(name: str, size: int, *, dims: tuple[int, ...] | None = (32, 64, 96, 192)) -> tuple[Any, Any]:
    """Build timm's model with random weights, and ours."""
    torch.manual_seed(0)
    cfg = model_cfgs[name if name in model_cfgs else name.rpartition("_")[0]]
    dims = cfg.embed_dim if dims is None else dims
    hidden = dims[-1] if cfg.head_hidden_size else None
    theirs = replace(cfg, embed_dim=dims, depths=DEPTH, stem_width=(16, 32), head_hidden_size=hidden)
    reference = randomise(MaxxVit(theirs, img_size=size, num_classes=10))
    sizes = {"image_size": size, "num_classes": 10, "dim": dims, "depth": DEPTH, "dim_conv_stem": (16, 32)}
    return create_model(name, **sizes).eval(), reference


@pytest.mark.parametrize("name", MODELS)
def test_named_models(name: str) -> None:
    """Logits, weights written back, gradients, layer-wise rates and weight decay."""
    check_parity(*make_pair(name, 64), images(64, 64))


@pytest.mark.parametrize("name", ["coatnet_0_rw_224", "coatnet_rmlp_1_rw_224", "test_coatnet"])
def test_maps_of_all_stages(name: str) -> None:
    model, reference = make_pair(name, 64)
    load_pretrained(model, reference.state_dict())
    x = images(64, 64)
    with torch.no_grad():
        ours = model.forward_intermediates(x, intermediates_only=True)
        theirs = reference.forward_intermediates(x, indices=4, intermediates_only=True)
    for one, other in zip(ours, theirs, strict=True):
        assert difference(one, other) < TOLERANCE


# timm's own resizing
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 160)])
def test_tables_fit_other_sizes_as_in_timm(size: tuple[int, int]) -> None:
    model, reference = make_pair("coatnet_0_224", 96)
    state = reference.state_dict()
    options = {"num_classes": 10, "depths": DEPTH, "embed_dim": (32, 64, 96, 192), "stem_width": (16, 32)}
    theirs = MaxxVit(model_cfgs["coatnet_0"], img_size=size, head_hidden_size=192, **options).eval()
    theirs.load_state_dict(checkpoint_filter_fn(state, theirs))
    ours = create_model(
        "coatnet_0_224",
        image_size=size,
        num_classes=10,
        depth=DEPTH,
        dim=(32, 64, 96, 192),
        dim_conv_stem=(16, 32),
    ).eval()
    report = load_pretrained(ours, state)
    assert report.resized
    x = images(*size)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < TOLERANCE
    assert not load_pretrained(model, state).resized


def test_all_of_timms_models_are_named() -> None:
    names = set(timm.list_models(module="maxxvit"))
    assert len(names) == 58
    assert names <= set(list_models())


def test_attention_in_plain_loops() -> None:
    """The weight of a cell is by the product of query and key, and the bias of their offset (equation 3)."""
    torch.manual_seed(0)
    model = randomise(CoAtNet(num_classes=3, dim=16, depth=(1, 1, 2, 1), dim_head=8, image_size=(64, 96)))
    attention = model.stages[2].blocks[1].attention
    rows, columns, dim = 3, 5, 64  # a map that is smaller than the largest, of 4 x 6 cells
    x = torch.randn(2, rows, columns, dim)
    table = attention.bias.table.detach().unflatten(0, (2 * 4 - 1, 2 * 6 - 1))
    qkv = attention.attention.to_qkv(x).detach().unflatten(-1, (3, 8, 8))
    mixed = torch.empty(2, rows, columns, 8, 8)
    cells = [(y, x) for y in range(rows) for x in range(columns)]
    for image in range(2):
        for head in range(8):
            for y, z in cells:
                query = qkv[image, y, z, 0, head]
                scores = torch.stack(
                    [
                        query @ qkv[image, v, w, 1, head] / 8**0.5 + table[y - v + 3, z - w + 5, head]
                        for v, w in cells
                    ]
                )
                values = torch.stack([qkv[image, v, w, 2, head] for v, w in cells])
                mixed[image, y, z, head] = scores.softmax(0) @ values
    expected = attention.attention.to_out(mixed.flatten(3))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_smaller_images_are_taken_and_larger_ones_refused() -> None:
    model = CoAtNet(num_classes=3, dim=16, depth=(1, 1, 1, 1), dim_head=8, image_size=64).eval()
    assert model(images(32, 64)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"image size must be at most \(64, 64\), got \(64, 96\)"):
        model(images(64, 96))
    with pytest.raises(ValueError, match=r"image size must be a multiple of \(32, 32\), got \(48, 64\)"):
        model(images(48, 64))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layout": ("C", "T")}, r"layout must be one for each of 4 stages, got \('C', 'T'\)"),
        ({"layout": ("C", "C", "T", "TC")}, "layout must be one of C, T, CT; got 'TC'"),
        ({"dim_head": 48}, "dim must be a multiple of heads, got dim=64 and heads=48"),
        ({"padding": "valid"}, "padding must be one of same, symmetric, mixed, max; got 'valid'"),
        ({"norm": "group"}, "norm must be one of layer, batch; got 'group'"),
        ({"conv": "resnet"}, "conv must be one of mbconv, convnext; got 'resnet'"),
        ({"conv": "convnext", "padding": "max"}, "got padding='max'"),
        ({"conv": "convnext", "mbconv_shrinkage_rate": 0.5}, "mbconv_shrinkage_rate=0.5"),
        (
            {"conv": "convnext", "dim_conv_stem": 12},
            "needs a multiple of its channels as output, got 12 and 16",
        ),
        ({"image_size": 72}, r"image size must be a multiple of \(32, 32\), got \(72, 72\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    options = {"num_classes": 3, "dim": 16, "depth": (1, 1, 1, 1), "dim_head": 8, "image_size": 64}
    with pytest.raises(ValueError, match=message):
        CoAtNet(**{**options, **wrong})
