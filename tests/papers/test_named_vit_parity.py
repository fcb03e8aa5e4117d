"""Plain ViTs that were published under other papers' names, each as timm builds it, one block deep."""

import json
from functools import partial

import pytest
import timm
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, create_model, list_models, load_pretrained
from vit_pytorch.layers.patches import LinearStem
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

TIMMS = {
    name
    for module in ("vision_transformer", "deit", "beit", "eva")
    for name in timm.list_models(module=module)
    if "_rope_" not in name
}
NAMES = [name for name in list_models() if name in TIMMS]
SMALL = {"image_size": 40, "patch_size": 8, "num_classes": 0, "dim": 48, "depth": 2, "heads": 3}
OURS = {**SMALL, "dim_head": 16, "mlp_dim": 96}
THEIRS = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 40,
    "patch_size": 8,
}


def settings() -> dict[str, str]:
    """Give one name for each different set of options beside the size."""
    different: dict[str, str] = {}
    for name in NAMES:
        sizes = ("image_size", "dim", "heads", "mlp_dim", "depth", "dim_head")
        config = {key: value for key, value in find_entry(name).config.items() if key not in sizes}
        different.setdefault(json.dumps([find_entry(name).architecture.__name__, config]), name)
    return different


@torch.no_grad()
@pytest.mark.parametrize("name", settings().values())
def test_logits(name):
    torch.manual_seed(0)
    size = 5 * find_entry(name).config["patch_size"]
    reference = randomise(timm.create_model(name, depth=1, img_size=size, num_classes=10))
    model = create_model(name, depth=1, image_size=size, num_classes=10).eval()
    report = load_pretrained(model, reference.state_dict())
    batch = images(size, size)
    assert difference(model(batch), reference(batch)) < TOLERANCE
    written, state = to_format(model, report.format), reference.state_dict()
    assert written.keys() == state.keys()
    assert all(written[key].equal(state[key]) for key in state)


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_preparation(name):
    entry = find_entry(name)
    with torch.device("meta"):
        reference = timm.create_model(name, num_classes=1000)
    assert sum(parameter.numel() for parameter in reference.parameters()) == entry.parameters
    repository, _, tag = (entry.hub_id or f"timm/{name}").partition("/")[2].partition(".")
    assert repository == name.replace("quickgelu_", "")
    cfg = timm.models.get_pretrained_cfg(f"{repository}.{tag}" if tag else repository)
    assert (cfg.hf_hub_id is None) == (entry.hub_id is None)
    assert cfg.tag == tag or not tag
    assert not tag or cfg.num_classes == entry.config["num_classes"]
    assert tuple(cfg.input_size[1:]) == 2 * (entry.config["image_size"],)
    for key in ("mean", "std", "interpolation", "crop_pct"):
        assert entry.default_cfg[key] == getattr(cfg, key), key


@torch.no_grad()
def test_clip_of_transformers():
    """Tokens behind the last norm; there, it acts on the class token alone."""
    torch.manual_seed(0)
    reference = CLIPVisionModel(CLIPVisionConfig(**THEIRS))
    randomise(reference)
    model = ViT(**OURS, stem=LinearStem(pre_norm=True), norm_eps=1e-5, act="quickgelu").eval()
    assert load_pretrained(model, reference.state_dict()).format == "transformers CLIP"
    batch = images(40, 40)
    assert difference(model(batch), reference(batch).pooler_output) < TOLERANCE
    again = ViT(**OURS, stem=LinearStem(pre_norm=True), norm_eps=1e-5, act="quickgelu").eval()
    load_pretrained(again, to_format(model, "transformers CLIP"))
    assert again(batch).equal(model(batch))


@torch.no_grad()
def test_siglip_of_transformers():
    torch.manual_seed(0)
    reference = randomise(SiglipVisionModel(SiglipVisionConfig(**THEIRS)))
    model = ViT(**OURS, pool="map", act="gelu_tanh").eval()
    assert load_pretrained(model, reference.state_dict()).format == "transformers SigLIP"
    batch, theirs = images(40, 40), reference(images(40, 40))
    assert difference(model.forward_features(batch), theirs.last_hidden_state) < TOLERANCE
    assert difference(model(batch), theirs.pooler_output) < TOLERANCE
    again = ViT(**OURS, pool="map", act="gelu_tanh").eval()
    load_pretrained(again, to_format(model, "transformers SigLIP"))
    assert again(batch).equal(model(batch))


@torch.no_grad()
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("qkv_bias", [True, "qv"])
def test_dinov3_of_transformers(gated, qkv_bias):
    """Tokens behind the last norm, for images of the size that the model has and of another one."""
    config = DINOv3ViTConfig(
        **THEIRS, num_register_tokens=4, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu"
    )
    reference = randomise(DINOv3ViTModel(config))
    options = {"positions": "rope_normalized", "layer_scale": 1.0, "num_registers": 4, "norm_eps": 1e-5}
    build = partial(ViT, **OURS, **options, qkv_bias=qkv_bias, act="swiglu" if gated else "gelu")
    model = build().eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.format.startswith("transformers DINOv3")
    for size in ((40, 40), (32, 40)):
        batch = images(*size)
        assert difference(model.forward_features(batch), reference(batch).last_hidden_state) < TOLERANCE
    again = build().eval()
    load_pretrained(again, to_format(model, report.format))
    assert again(batch).equal(model(batch))
