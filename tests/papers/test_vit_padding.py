"""Batches of images of several sizes: what an image gives beside others is what it gives alone."""

import pytest
import torch
from torch.fx import symbolic_trace

from tests.papers.reference import randomise
from tests.tolerances import tolerance
from vit_pytorch import ViT
from vit_pytorch.deepvit import DeepViT
from vit_pytorch.layers.patches import seen_patches
from vit_pytorch.vit_1d import ViT as ViT1D

SMALL = {"image_size": 20, "patch_size": 4, "num_classes": 3, "dim": 16, "depth": 2, "heads": 2}
SMALL |= {"dim_head": 8, "mlp_dim": 24}
SIZES = ((20, 20), (12, 16), (4, 20), (8, 8))
OPTIONS = {
    "plain": {},
    "mean": {"pool": "mean"},
    "class and mean": {"pool": "cls+mean", "num_registers": 2},
    "attention pool": {"pool": "map"},
    "attention pool of all": {"pool": {"kind": "map", "prefix": True}, "class_token": True},
    "dual norm": {"stem": "dual_norm"},
    "pre-norm": {"stem": {"kind": "linear", "pre_norm": True}},
    "two tables": {"positions": "learned_2d"},
    "sin-cos": {"positions": "sincos", "pool": "mean"},
    "sequence": {"positions": "sequence", "pool": "mean"},
    "none": {"positions": "none"},
    "relative": {"positions": "relative"},
    "relative by layer": {"positions": "relative_by_layer", "pool": "mean"},
    "rotary": {"positions": "rope", "num_registers": 1},
    "rotary, mixed": {"positions": "learned+rope_mixed"},
    "value residual": {"value_residual": True, "qk_norm": True},
    "streams": {"hyper_connections": 2},
    "grouped": {"attention": {"kind": "grouped_query", "kv_heads": 1}},
    "differential": {"attention": "differential", "positions": "relative_log", "num_registers": 1},
    "shared norm": {
        "norm": {"kind": "layer", "shared": True},
        "positions": {"kind": "learned", "registers": True},
        "num_registers": 2,
    },
}


def padded(images, fill=torch.nan):
    """One batch of images, and the mask that tells them from what fills it up."""
    batch = torch.full((len(images), 3, 20, 20), fill)
    mask = torch.zeros(len(images), 20, 20, dtype=torch.bool)
    for at, image in enumerate(images):
        batch[at, :, : image.shape[1], : image.shape[2]] = image
        mask[at, : image.shape[1], : image.shape[2]] = True
    return batch, mask


def images_of(sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("name", OPTIONS)
def test_padded_is_unpadded(name):
    model = randomise(ViT(**SMALL, **OPTIONS[name])).eval()
    images = images_of()
    alone = torch.cat([model(image[None]) for image in images])
    assert (alone[1:] - alone[:1]).abs().max() > 1e-3
    torch.testing.assert_close(model(*padded(images)), alone, atol=1e-5, rtol=0)
    batch, mask = padded(images[:1])
    torch.testing.assert_close(model(batch, mask), model(batch), atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_images_alone():
    model = randomise(ViT(**SMALL, pool="mean", positions="relative"))
    images = images_of()
    model(*padded(images)).square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(model(image[None]).square().sum() for image in images).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_padding_is_dropped_before_patches_are():
    model = ViT(**SMALL, patch_dropout=0.5).train()
    batch, mask = padded(images_of(((8, 8), (20, 20))))
    tokens = torch.zeros(2, 26, 16)
    for _ in range(20):
        _, kept = model.patch_dropout(tokens, 1, seen_patches(mask, batch, model.grid))
        assert {0, 1, 5, 6} <= set(kept[0].tolist()), "all four patches of the small image stay"
    logits = model(batch, mask)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["mean", "relative", "attention pool", "differential"])
def test_what_fx_traces_takes_masks_or_none(name):
    model = randomise(ViT(**SMALL, **OPTIONS[name])).eval()
    traced = symbolic_trace(model)
    batch, mask = padded(images_of())
    expected = model(batch, mask)
    torch.testing.assert_close(traced(batch, mask), expected, **tolerance(expected))
    expected = model(batch := torch.randn(2, 3, 20, 20))
    torch.testing.assert_close(traced(batch), expected, **tolerance(expected))


def test_padded_batches_are_exported():
    model = randomise(ViT(**SMALL, positions="rope", pool="mean")).eval()
    batch, mask = padded(images_of(), fill=0.0)
    program = torch.export.export(model, (batch, mask), strict=False)
    torch.testing.assert_close(program.module()(batch, mask), model(batch, mask))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch, mask), model(batch, mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 24, "stem": "conv"}, "a mask cannot be taken: its convolutional stem mixes patches"),
        ({"positions": "rope_normalized"}, "its positions 'rope_normalized' are stretched over each input"),
        ({"positions": "rope_scaled"}, "its positions 'rope_scaled' are stretched over each input"),
        (
            {"positions": {"kind": "learned", "dynamic_img_size": True}},
            "its dynamic_img_size stretches positions over each input",
        ),
        ({"patch_dropout": 0.5, "pool": "mean"}, "patch_dropout drops some of the patches that are pooled"),
    ],
)
def test_models_whose_patches_know_the_padding(options, message):
    model = ViT(**{**SMALL, **options})
    size = model.image_size[0]
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, size, size), torch.ones(1, size, size, dtype=torch.bool))


def test_models_with_another_course():
    sizes = {"num_classes": 3, "dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16}
    signals = ViT1D(seq_len=80, patch_size=4, **sizes)
    with pytest.raises((ValueError, TypeError), match=r"mask|positional arguments"):
        signals(torch.randn(1, 3, 80), torch.ones(1, 80, dtype=torch.bool))
    deep = DeepViT(image_size=20, patch_size=4, **sizes)
    with pytest.raises((ValueError, TypeError), match=r"mask|positional arguments"):
        deep(torch.randn(1, 3, 20, 20), torch.ones(1, 20, 20, dtype=torch.bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask.float(), r"expected a boolean mask of \(1, 20, 20\) .*, got torch.float32"),
        (lambda mask: mask[:, :16], r"got torch.bool of \(1, 16, 20\)"),
        (lambda mask: mask.index_fill(2, torch.arange(18, 20), False), "the mask cuts a patch"),
        (torch.zeros_like, "an image must have at least one patch"),
    ],
)
def test_masks_that_are_none(change, message):
    model = ViT(**SMALL)
    mask = torch.ones(1, 20, 20, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 20, 20), change(mask))
