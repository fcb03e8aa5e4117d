"""MLP-Mixer computes what timm's MlpMixer computes; a small one is beside its table."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import MlpMixer

from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.mlp_mixer import MLPMixer
from vit_pytorch.registry import find_entry

SIZES = {"image_size": 32, "patch_size": 8, "num_classes": 7, "dim": 24, "token_dim": 20, "mlp_dim": 48}
NAMES = timm.list_models("mixer_*")


def test_all_of_timms_models_are_named() -> None:
    assert sorted(list_models("mixer_*")) == sorted(NAMES)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mixer_s32_224", "mixer_b16_224"])
def test_named_models_equal_timms(name: str) -> None:
    """With two of the blocks, in which nothing but their number differs."""
    config = find_entry(name).config
    reference = MlpMixer(patch_size=config["patch_size"], embed_dim=config["dim"], num_blocks=2)
    randomise(reference)
    model = create_model(name, depth=2).eval()
    load_pretrained(model, reference.state_dict())
    x = images(224, 224, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE
    ours = model.forward_intermediates(x, norm=True, intermediates_only=True)
    theirs = reference.forward_intermediates(x, norm=True, intermediates_only=True)
    assert len(ours) == len(theirs) == 2
    assert all(difference(a, b) < TOLERANCE for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def test_equation_1() -> None:
    """In loops over channels and patches, where the paper has stars for indices."""
    model = randomise(MLPMixer(**SIZES, depth=1))
    (block,) = model.blocks
    x = model.embed(images(32, 32))

    def mlp(part: torch.nn.Module, vector: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(part.to_hidden.weight @ vector + part.to_hidden.bias)
        return part.to_out.weight @ hidden + part.to_out.bias

    want = x.clone()
    normed = block.norm1(x)
    for b in range(2):
        for channel in range(24):
            want[b, :, channel] += mlp(block.mix_tokens, normed[b, :, channel])
    normed = block.norm2(want)
    for b in range(2):
        for patch in range(16):
            want[b, patch] += mlp(block.mix_features, normed[b, patch])
    assert difference(block(x), want) < TOLERANCE


def test_other_sizes_and_some_of_the_patches_are_refused() -> None:
    model = MLPMixer(**SIZES, depth=1)
    with pytest.raises(ValueError, match=r"image size must be \(32, 32\), .* got \(32, 16\)"):
        model(images(32, 16))
    with pytest.raises(ValueError, match="mixes all patches by place, got 3 kept ones"):
        model.encode(torch.randn(2, 3, 24), ids_keep=torch.tensor([[0, 1, 2]] * 2))


def test_drop_path_rises_linearly() -> None:
    model = MLPMixer(**SIZES, depth=3, drop_path=0.2)
    rates = [[part.p for part in block.modules() if isinstance(part, DropPath)] for block in model.blocks]
    assert rates == [[], [pytest.approx(0.1)], [pytest.approx(0.2)]]


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 20, "patch_size": 4, "dim": 64, "depth": 2, "token_dim": 32, "mlp_dim": 128}
    model = create_model("mixer_s16_224", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=20, epochs=8, goal=0.9) > 0.9
