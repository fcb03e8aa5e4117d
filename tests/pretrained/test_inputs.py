"""First layers for other channels and patch sizes, against timm's functions and by what they compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.models import adapt_input_conv

from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.pretrained.conftest import build
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.pretrained.inputs import adapt_channels, resize_patches
from vit_pytorch.registry import find_entry


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_channels_are_adapted_as_timm_does(model: ViT, channels: int) -> None:
    weight = model.patch_embed.proj.weight.data
    assert torch.allclose(adapt_channels(weight, channels), adapt_input_conv(channels, weight), atol=1e-7)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_pytorch", "timm", "transformers"])
def test_grey_images_give_what_they_gave_in_rgb(model: ViT, name: str) -> None:
    grey = build(channels=1).eval()
    report = load_pretrained(grey, to_format(model, name))
    assert report.adapted == {"patch_embed.proj.weight": ((48, 3, 8, 8), (48, 1, 8, 8))}
    assert "patch_embed.proj.weight adapted from (48, 3, 8, 8) to (48, 1, 8, 8)" in str(report)
    x = images(48, 48)[:, :1]
    assert difference(grey(x), model.eval()(x.expand(-1, 3, -1, -1))) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("channels", [4, 6])
def test_alike_channels_give_what_they_gave(model: ViT, channels: int) -> None:
    """Of six channels, two times RGB; of four, where all are alike but in the mean of the weights."""
    more = build(channels=channels).eval()
    load_pretrained(more, model.state_dict())
    weight = model.patch_embed.proj.weight
    assert more.patch_embed.proj.weight[:, 3].allclose(weight[:, 0] * 3 / channels)
    if channels == 6:
        x = images(48, 48)
        assert difference(more(torch.cat([x, x], dim=1)), model.eval()(x)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("crossvit_tiny_240", 2),
        ("crossvit_9_dagger_240", 2),
        ("pit_ti_224", 1),
        ("levit_128s", 1),
        ("cvt_13", 1),
        ("maxvit_tiny_tf_224", 1),
        ("mobilevit_xxs", 1),
        ("xcit_nano_12_p16_224", 1),
    ],
)
def test_other_first_layers(name: str, count: int) -> None:
    entry = find_entry(name)
    model = randomise(entry.build(**entry.tiny)).eval()
    grey = entry.build(**entry.tiny, channels=1).eval()
    assert len(load_pretrained(grey, model.state_dict()).adapted) == count
    x = images(*model.image_size)[:, :1]
    assert difference(grey(x), model(x.expand(-1, 3, -1, -1))) < 10 * TOLERANCE


def test_strict_refuses_to_adapt(model: ViT) -> None:
    with pytest.raises(ValueError, match="does not fit ViT strictly"):
        load_pretrained(build(channels=1), model.state_dict(), strict=True)


def test_channels_that_are_neither_grey_nor_rgb_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"patch_embed\.proj\.weight expects \(48, 3, 8, 8\), got \(48, 5, 8, 8\)"
    ):
        load_pretrained(build(), build(channels=5).state_dict())


@pytest.mark.parametrize("size", [(4, 4), (16, 16), (12, 6), (7, 9)])
def test_patches_are_resized_as_timm_does(model: ViT, size: tuple[int, int]) -> None:
    weight = model.patch_embed.proj.weight.data
    want = resample_patch_embed(weight, list(size), interpolation="bilinear", antialias=False)
    torch.testing.assert_close(resize_patches(weight, size), want, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_larger_patches_give_on_enlarged_images_what_they_gave(model: ViT) -> None:
    """Patches are enlarged one by one: at their borders, those of an enlarged image see their neighbours."""
    large = build(image_size=96, patch_size=16).eval()
    report = load_pretrained(large, model.state_dict())
    assert report.adapted == {"patch_embed.proj.weight": ((48, 3, 8, 8), (48, 3, 16, 16))}
    assert report.resized == {}
    patches = images(48, 48).unfold(2, 8, 8).unfold(3, 8, 8)
    b, c, rows, columns = patches.shape[:4]
    enlarged = torch.nn.functional.interpolate(patches.reshape(-1, c, 8, 8), (16, 16), mode="bilinear")
    x = enlarged.view(b, c, rows, columns, 16, 16).permute(0, 1, 2, 4, 3, 5).reshape(b, c, 96, 96)
    assert difference(large(x), model.eval()(images(48, 48))) < TOLERANCE


@torch.inference_mode()
def test_named_models_take_weights_of_other_channels_and_patches(tmp_path: Path) -> None:
    sizes = {"dim": 24, "depth": 1, "heads": 2, "dim_head": 12, "mlp_dim": 48}
    create_model("vit_tiny_patch16_224", **sizes).save_pretrained(tmp_path)
    model = create_model("vit_tiny_patch16_224", pretrained=tmp_path, channels=4, patch_size=32, **sizes)
    assert model.load_report.adapted == {"patch_embed.proj.weight": ((24, 3, 16, 16), (24, 4, 32, 32))}
    assert model.load_report.resized == {"positions.table": ((14, 14), (7, 7))}
    assert model(torch.zeros(1, 4, 224, 224)).shape == (1, 1000)
