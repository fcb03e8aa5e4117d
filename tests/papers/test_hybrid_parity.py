"""Hybrids: timm's models on ResNets, and maps of any network."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models import vision_transformer_hybrid
from torch import Tensor, nn

from tests.papers.reference import check_parity, check_steps, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.hybrid import HybridViT, MapEmbed, ResNet, StandardisedConv
from vit_pytorch.pretrained import to_format

DEEP = list_models("vit_*_resnet*d_*")
SIZES = {"num_classes": 7, "dim": 48, "depth": 2, "heads": 3, "dim_head": 16, "mlp_dim": 96}
OURS = {"image_size": 80, **SIZES, "resnet_depths": (1, 2), "resnet_width": 32}
# In double precision: the rounding of many convolutions adds up in single.
TOLERANCE = 1e-10


def reference(name: str, **options) -> nn.Module:
    return randomise(timm.create_model(name, depth=1, num_classes=10, **options)).double()


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224", "vit_base_r50_s16_224"])
def test_named_models_equal_timms(name):
    theirs = reference(name)
    model = create_model(name, depth=1, num_classes=10).eval().double()
    report = load_pretrained(model, theirs.state_dict())
    assert (report.format, report.kept, report.dropped) == ("timm", (), ())
    batch = images(224, 224, batch=1).double()
    assert difference(model(batch), theirs(batch)) < TOLERANCE
    assert difference(model.patch_embed(batch), theirs.patch_embed(batch)) < TOLERANCE
    written, state = to_format(model, "timm"), theirs.state_dict()
    assert written.keys() == state.keys()
    assert all(written[key].equal(state[key]) for key in state)


@pytest.mark.parametrize("name", [*DEEP, "vit_tiny_r_s16_p8_224"])
def test_stems_and_networks_with_batch_norm_equal_timms(name):
    """Logits, weights written back, gradients, layer-wise rates and weight decay."""
    theirs = reference(name, img_size=64)
    model = create_model(name, depth=1, num_classes=10, image_size=64).eval().double()
    check_parity(model, theirs, images(64, 64).double())


def mobile_clip(**options) -> tuple[HybridViT, nn.Module]:
    """Ours, and timm's with random weights, of 16 patches and two blocks."""
    theirs = randomise(timm.create_model("vit_base_mci_224", depth=2, num_classes=10, img_size=64))
    model = create_model("vit_base_mci_224", depth=2, num_classes=10, image_size=64, **options).eval()
    return model, theirs.double()


def test_mobile_clip_equals_timms():
    """Logits, weights written back, gradients, layer-wise rates and weight decay."""
    model, theirs = mobile_clip()
    check_parity(model.double(), theirs, images(64, 64).double())


def test_ten_steps_of_mobile_clip():
    """By AdamW, in training mode, with statistics of the batch."""
    model, theirs = mobile_clip()
    load_pretrained(model.double(), theirs.state_dict())
    check_steps(model, theirs, images(64, 64, batch=4).double())


@torch.no_grad()
def test_names_of_mobile_clips_authors():
    """timm's reader of their files reads what is written; loading does, beside the text's encoder."""
    model, theirs = mobile_clip()
    load_pretrained(model.double(), theirs.state_dict())
    with pytest.raises(ValueError, match="a classifier without bias, and the model's is not zero"):
        to_format(model, "MobileCLIP")
    model.head.bias.zero_()
    written = to_format(model, "MobileCLIP")
    convert = vision_transformer_hybrid.checkpoint_filter_fn
    theirs.load_state_dict(convert(dict(written), theirs))
    batch = images(64, 64).double()
    assert difference(model(batch), theirs(batch)) < TOLERANCE
    again = mobile_clip()[0].double()
    text = {"text_encoder.transformer.0.pre_norm_mha.0.weight": torch.ones(4)}
    report = load_pretrained(again, {**written, **text})
    assert (report.format, report.kept, len(report.dropped)) == ("MobileCLIP", (), 1)
    assert again(batch).equal(model(batch))


def test_patches_that_are_embedded_by_convolutions():
    """A pixel changes its own patch only."""
    model = HybridViT(**{**OURS, "resnet_depths": (), "resnet_width": 8, "resnet": "patches"}).eval()
    assert model.grid.shape == (5, 5)
    batch = images(80, 80)
    moved = batch.clone()
    moved[:, :, 31, 32] += 1
    changed = (model.patch_embed(moved) != model.patch_embed(batch)).any(dim=2)
    assert changed.nonzero()[:, 1].tolist() == [7, 7]
    assert isinstance(model.patch_embed.proj, nn.Identity)


@torch.no_grad()
def test_single_precision_is_near():
    name = "vit_small_r26_s32_224"
    theirs, model = reference(name).float(), create_model(name, depth=1, num_classes=10).eval()
    load_pretrained(model, theirs.state_dict())
    batch = images(224, 224, batch=1)
    assert difference(model(batch), theirs(batch)) < 1e-4


@torch.no_grad()
def test_reads_googles_names(tmp_path):
    """What is written under Google's names is what timm's reader of such files understands."""
    name = "vit_small_r26_s32_224"
    torch.manual_seed(0)
    model = randomise(create_model(name, depth=1)).eval()
    written = to_format(model, "vit_jax")
    assert written["block1/unit1/gn_proj/scale"].shape == (1, 1, 1, 256)
    np.savez(tmp_path / "hybrid.npz", **{key: tensor.numpy() for key, tensor in written.items()})
    theirs = timm.create_model(name, depth=1).eval()
    theirs.load_pretrained(str(tmp_path / "hybrid.npz"))
    batch = images(224, 224, batch=1)
    assert difference(model.double()(batch.double()), theirs.double()(batch.double())) < TOLERANCE
    again = create_model(name, depth=1).eval()
    assert load_pretrained(again, tmp_path / "hybrid.npz").format == "vit_jax"
    assert again.double()(batch.double()).equal(model(batch.double()))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(7, 2, (9, 12)), (3, 2, (5, 8)), (3, 1, (4, 7)), (1, 2, (5, 6))]
)
def test_standardised_convolution(kernel, stride, size):
    """The kernels of a channel have mean 0 and variance 1; the map is divided by the stride, rounded up."""
    conv = StandardisedConv(4, 6, kernel, stride=stride)
    batch = torch.randn(2, 4, *size)
    weight = conv.weight.flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / (
        weight.var(1, correction=0, keepdim=True) + 1e-8
    ) ** 0.5
    missing = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    padded = batch.new_zeros(2, 4, *(n + m for n, m in zip(size, missing, strict=True)))
    top, left = (m // 2 for m in missing)
    padded[:, :, top : top + size[0], left : left + size[1]] = batch
    want = nn.functional.conv2d(padded, weight.view_as(conv.weight), stride=stride)
    assert want.shape[2:] == tuple(-(-n // stride) for n in size)
    torch.testing.assert_close(conv(batch), want, rtol=1e-4, atol=1e-5)


class Pooled(nn.Module):
    """A network that gives a map of a given reduction, as a tensor or among others."""

    def __init__(self, kind: str, reduction: tuple[int, int] = (8, 8)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.kind = kind
        self.reduction = reduction

    def forward(self, x: Tensor) -> object:
        first = self.norm(self.conv(x))
        last = nn.functional.avg_pool2d(first, self.reduction)
        return {"map": last, "list": [first, last], "dict": {"a": first, "b": last}}[self.kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["map", "list", "dict"])
def test_any_network_that_gives_a_map(kind):
    network = Pooled(kind).train()
    model = randomise(HybridViT(image_size=40, **SIZES, backbone=network))
    assert model.grid.patch == (8, 8)
    assert model.patch_embed.backbone is network
    assert network.norm.num_batches_tracked == 0
    batch = images(40, 24)
    last = nn.functional.avg_pool2d(network.norm(network.conv(batch)), 8)
    tokens = last.flatten(2).mT @ model.patch_embed.proj.weight[:, :, 0, 0].T + model.patch_embed.proj.bias
    torch.testing.assert_close(model.patch_embed(batch), tokens)
    assert model(batch).shape == (2, 7)


def test_patches_of_several_cells():
    """Patch size counts cells of the map, along each axis for itself."""
    network = Pooled("map", (2, 4))
    model = HybridViT(image_size=(60, 80), patch_size=(3, 2), **SIZES, backbone=network)
    assert model.grid.patch == (6, 8)
    assert model.forward_features(images(60, 80)).shape == (2, 101, 48)
    # One cell a patch: the network may be the identity, a ViT of pixels.
    pixels = HybridViT(image_size=8, **SIZES, backbone=nn.Identity())
    assert pixels.forward_features(images(8, 8)).shape == (2, 65, 48)


@torch.no_grad()
def test_networks_of_timm_and_torchvision():
    resnet = timm.create_model("resnet18", features_only=True, out_indices=(1, 2))
    model = HybridViT(image_size=64, **SIZES, backbone=resnet).eval()
    assert model.grid.patch == (8, 8)
    assert model(images(64, 48)).shape == (2, 7)
    whole = torchvision.models.resnet18()
    getter = torchvision.models.feature_extraction.create_feature_extractor(whole, ["layer2"])
    model = HybridViT(image_size=64, **SIZES, backbone=getter).eval()
    batch = images(64, 64)
    assert model.patch_embed.proj.in_channels == 128
    want = model.patch_embed.proj(getter(batch)["layer2"]).flatten(2).mT
    assert model.patch_embed(batch).equal(want)


def test_everything_learns_and_is_saved(tmp_path):
    model = HybridViT(**OURS)
    model(images(80, 80)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.eval().save_pretrained(tmp_path)
    again = HybridViT.from_pretrained(tmp_path)
    assert again(images(80, 80)).equal(model(images(80, 80)))
    handed = HybridViT(image_size=40, **SIZES, backbone=Pooled("map"))
    with pytest.raises(ValueError, match="no configuration file can hold: backbone"):
        handed.save_pretrained(tmp_path / "handed")


def test_options_of_the_vit():
    model = HybridViT(**OURS, positions="rope", num_registers=2, patch_dropout=0.5).train()
    assert isinstance(model.patch_embed, MapEmbed)
    assert model.forward_features(images(80, 80)).shape == (2, 3 + 50, 48)


@pytest.mark.parametrize("positions", ["rope", "rope_normalized", "rope_scaled"])
def test_rotations_act(positions):
    torch.manual_seed(0)
    without = HybridViT(**OURS, positions="none").eval()
    model = HybridViT(**OURS, positions=positions).eval()
    model.load_state_dict(without.state_dict())
    assert difference(model(images(80, 80)), without(images(80, 80))) > 1e-4


def test_wrong_networks():
    with pytest.raises(ValueError, match=r"a backbone must return maps .*, got \(1, 3, 64\)"):
        HybridViT(image_size=8, **SIZES, backbone=nn.Flatten(2))
    with pytest.raises(ValueError, match=r"a multiple of the backbone's map \(19, 19\), got \(40, 40\)"):
        HybridViT(image_size=40, **SIZES, backbone=nn.MaxPool2d(3, 2))
    with pytest.raises(ValueError, match="the width of a ResNet must be a multiple of 32, got 48"):
        ResNet(3, (2,), width=48)
    with pytest.raises(ValueError, match=r"stages of at least one block, got \(2, 0\) blocks"):
        ResNet(3, (2, 0))
    with pytest.raises(ValueError, match=r"stages of at least one block, got \(\) blocks"):
        HybridViT(**{**OURS, "resnet_depths": (), "resnet": "d"})
    with pytest.raises(ValueError, match=r"needs resnet_depths=\(\), got \(1, 2\)"):
        HybridViT(**OURS, resnet="patches")
    with pytest.raises(ValueError, match="needs patch_size=1, got 2"):
        HybridViT(**{**OURS, "resnet_depths": ()}, resnet="patches", patch_size=2)
    with pytest.raises(
        ValueError, match="resnet must be one of big_transfer, d, whitened, patches; got 'v3'"
    ):
        HybridViT(**OURS, resnet="v3")
    model = HybridViT(image_size=40, **SIZES, backbone=nn.AdaptiveAvgPool2d(5))
    with pytest.raises(
        ValueError, match=r"gives \(5, 5\) patches for images of size \(24, 40\), expected \(3, 5\)"
    ):
        model(images(24, 40))
