"""ConvMixer computes what timm's computes; a small one is beside its table."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.conv_mixer import ConvMixer
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.registry import find_entry

SIZES = {"image_size": 24, "patch_size": 4, "num_classes": 7, "dim": 8, "kernel_size": 3}
NAMES = timm.list_models("convmixer_*")


def test_all_of_timms_models_are_named() -> None:
    assert sorted(list_models("convmixer_*")) == sorted(NAMES)


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_named_models_equal_timms(name: str) -> None:
    """With two of the blocks, in which nothing but their number differs."""
    config = find_entry(name).config
    sizes = {key: config[key] for key in ("dim", "kernel_size", "patch_size")}
    act = torch.nn.ReLU if name == "convmixer_768_32" else torch.nn.GELU
    reference = randomise(timm.models.convmixer.ConvMixer(**sizes, depth=2, act_layer=act))
    model = create_model(name, depth=2).eval()
    load_pretrained(model, reference.state_dict())
    x = images(112, 84, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE
    ours = model.forward_intermediates(x, intermediates_only=True)
    theirs = reference.forward_intermediates(x, intermediates_only=True)
    assert len(ours) == len(theirs) == 2
    assert all(difference(a, b) < TOLERANCE for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def test_equations_2_and_3() -> None:
    """In loops over the places, the borders padded by zeros."""
    model = randomise(ConvMixer(**SIZES, depth=1))
    (block,) = model.stages
    x = model.embed(images(24, 24))
    conv, _, norm = block.mix_places.layers

    def normed(values: Tensor, batch_norm: torch.nn.BatchNorm2d) -> Tensor:
        scale = batch_norm.weight / (batch_norm.running_var + batch_norm.eps).sqrt()
        return (F.gelu(values) - batch_norm.running_mean) * scale + batch_norm.bias

    mixed = torch.zeros_like(x)
    for y in range(6):
        for z in range(6):
            mixed[:, y, z] += conv.bias
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if 0 <= y + down < 6 and 0 <= z + right < 6:
                        mixed[:, y, z] += x[:, y + down, z + right] * conv.weight[:, 0, down + 1, right + 1]
    mixed = normed(mixed, norm) + x
    linear = block.mix_channels
    want = normed(mixed @ linear.weight.T + linear.bias, block.norm.layers[1])
    assert difference(block(x), want) < TOLERANCE


def test_drop_path_rises_linearly() -> None:
    model = ConvMixer(**SIZES, depth=3, drop_path=0.2)
    rates = [[part.p for part in block.modules() if isinstance(part, DropPath)] for block in model.stages]
    assert rates == [[], [pytest.approx(0.1)], [pytest.approx(0.2)]]


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 2, "dim": 48, "depth": 3, "kernel_size": 5}
    model = create_model("convmixer_768_32", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=16, epochs=6, goal=0.95) > 0.95
