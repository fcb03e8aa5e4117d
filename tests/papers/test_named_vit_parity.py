"""Plain ViTs that were published under other papers' names, each as timm builds it, one block deep."""

import json
from functools import partial
from importlib import import_module

import pytest
import timm
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2Config,
    Siglip2ForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.papers.reference import (
    TOLERANCE,
    check_parity,
    difference,
    images,
    randomise,
)
from vit_pytorch import ViT, create_model, list_models, load_pretrained
from vit_pytorch.layers.patches import LinearStem
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

TIMMS = {
    name
    for module in ("vision_transformer", "vision_transformer_relpos", "deit", "beit", "eva")
    for name in timm.list_models(module=module)
    if "_rope_" not in name or "_reg" in name
}
NAMES = [name for name in list_models() if name in TIMMS]
SIZES = {
    "image_size",
    "patch_size",
    "num_classes",
    "dim",
    "heads",
    "mlp_dim",
    "depth",
    "dim_head",
}
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
        config = {key: value for key, value in find_entry(name).config.items() if key not in SIZES}
        for option in ("pool", "attention"):
            if isinstance(config.get(option), dict):
                config[option] = config[option]["kind"]
        different.setdefault(json.dumps([find_entry(name).architecture.__name__, config]), name)
    return different


@pytest.mark.parametrize("name", settings().values())
def test_logits_gradients_and_decay(name):
    """With the options of the named model, in a small size."""
    torch.manual_seed(0)
    config = find_entry(name).config
    size = 5 * config["patch_size"]
    # Sapiens 2 has grouped queries in its inner layers alone.
    grouped = isinstance(config.get("attention"), dict)
    # What differential attention subtracts depends on the layer.
    depth = 2 if config.get("attention") == "differential" else 1
    options = {"embed_dim": 48, "num_heads": 4, "depth": depth, **({"num_kv_heads": 2} if grouped else {})}
    reference = randomise(timm.create_model(name, img_size=size, num_classes=10, **options))
    ours = {"dim": 48, "heads": 4, "dim_head": 12, "depth": depth}
    if hasattr(reference.blocks[0], "in_split"):
        ours["mlp_dim"] = reference.blocks[0].in_split[0]
    else:
        places = (
            part.in_features
            for place, part in reference.blocks.named_modules()
            if place.endswith(".mlp.fc2") and "rel_pos" not in place
        )
        ours["mlp_dim"] = next(places)
    if grouped:
        ours["attention"] = {"kind": "grouped_query", "kv_heads": 2}
    if isinstance(config.get("pool"), dict):
        ours["pool"] = {**config["pool"], "mlp_dim": reference.attn_pool.mlp.fc2.in_features}
    model = create_model(name, image_size=size, num_classes=10, **ours).eval()
    check_parity(model, reference, images(size, size))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("eva02_tiny_patch14_336", "EVA-02, fused"),
        ("eva02_base_patch16_clip_224", "EVA-02"),
        ("vit_base_patch16_sapiens2", "Sapiens 2"),
        ("vit_pe_core_tiny_patch16_384", "OpenAI CLIP"),
        ("vit_pe_lang_large_patch14_448", "OpenAI CLIP"),
        ("vit_base_patch32_clip_quickgelu_224", "OpenAI CLIP"),
    ],
)
def test_layouts_of_authors(name, layout):
    """timm's reader of the authors' files reads what is written; loading does, too."""
    options = {"attention": {"kind": "grouped_query", "kv_heads": 6}} if "sapiens2" in name else {}
    size = 5 * find_entry(name).config["patch_size"]
    build = partial(create_model, name, depth=1, image_size=size, **options)
    model = randomise(build())
    if model.num_classes:
        # A projection, which has no bias there.
        model.head.bias.zero_()
    written = to_format(model, layout)
    again = build()
    assert load_pretrained(again, written).format == layout
    assert all(tensor.equal(again.state_dict()[key]) for key, tensor in model.state_dict().items())
    options = {"num_kv_heads": 6} if "sapiens" in name else {}
    reference = timm.create_model(name, depth=1, img_size=model.image_size, **options).eval()
    read = import_module(type(reference).__module__).checkpoint_filter_fn(dict(written), reference)
    reference.load_state_dict(read)
    batch = images(*model.image_size)
    assert difference(model(batch), reference(batch)) < TOLERANCE


@torch.no_grad()
def test_pixels_that_are_left_over():
    """A patch of 14 leaves six pixels of each row and column, which play no role."""
    name = "vit_so400m_patch14_siglip_gap_384"
    sizes = {"depth": 1, "num_classes": 10}
    reference = randomise(timm.create_model(name, img_size=76, embed_dim=48, num_heads=3, **sizes))
    shape = {"dim": 48, "heads": 3, "dim_head": 16, "mlp_dim": int(48 * 3.7362)}
    model = create_model(name, image_size=76, **shape, **sizes).eval()
    load_pretrained(model, reference.state_dict())
    batch = images(76, 76)
    logits = model(batch)
    assert difference(logits, reference(batch)) < TOLERANCE
    batch[:, :, 70:] = batch[..., 70:] = 9
    assert model(batch).equal(logits)
    assert model.patchify(batch).equal(model.patchify(batch[..., :70, :70]))
    with pytest.raises(ValueError, match="leaves out what no patch covers"):
        model(batch, mask=torch.ones(2, 76, 76, dtype=torch.bool))


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
@pytest.mark.parametrize("generation", [1, 2])
def test_siglip_classifiers_of_transformers(generation: int):
    """They classify the mean of the patches; the attention pool beside it plays no role."""
    torch.manual_seed(0)
    text = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"), 1)
    batch = images(40, 40)
    if generation == 1:
        config = SiglipConfig(vision_config=THEIRS, text_config=text, num_labels=7)
        reference = randomise(SiglipForImageClassification(config))
        logits = reference(batch).logits
    else:
        sizes = {name: value for name, value in THEIRS.items() if name != "image_size"}
        vision = {**sizes, "num_patches": 25}
        config = Siglip2Config(vision_config=vision, text_config=text, num_labels=7)
        reference = randomise(Siglip2ForImageClassification(config))
        pixels = batch.unflatten(3, (5, 8)).unflatten(2, (5, 8)).permute(0, 2, 4, 3, 5, 1).reshape(2, 25, -1)
        logits = reference(pixels, torch.ones(2, 25, dtype=torch.long), torch.tensor([[5, 5]] * 2)).logits
    build = partial(ViT, **{**OURS, "num_classes": 7}, act="gelu_tanh")
    model = build(pool="mean").eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.format == "transformers SigLIP"
    assert not report.kept
    assert difference(model(batch), logits) < TOLERANCE
    again = build(pool="mean").eval()
    load_pretrained(again, to_format(model, "transformers SigLIP"))
    assert again(batch).equal(model(batch))
    with pytest.raises(ValueError, match=r"takes the mean of the patches, .* pool='mean', class_token=False"):
        load_pretrained(build(pool="map"), reference.state_dict())


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
    other = ViT(**{**OURS, **options, "positions": "none"}, act="swiglu" if gated else "gelu")
    with pytest.raises(ValueError, match="no tensor tells: build ViT with positions='rope_normalized'"):
        load_pretrained(other, reference.state_dict())
    with pytest.raises(ValueError, match="no tensor tells: build ViT with positions='rope_normalized'"):
        to_format(other, report.format)


def test_positions_that_no_tensor_tells():
    """A name, a configuration or the model's own rotations tell them; a model without any is warned of."""
    build = partial(create_model, "vit_small_patch16_dinov3", depth=1, num_classes=0)
    named = build()
    state = to_format(named, "timm Eva")
    load_pretrained(build(), state)
    config = {name: value for name, value in named.config.items() if name != "positions"}
    load_pretrained(ViT(**config, positions="rope_normalized"), state)
    for other in (ViT(**config, positions="none"), build(positions="none")):
        with pytest.warns(
            UserWarning, match="which positions it was trained with, .* ViT has none: build it by name"
        ):
            load_pretrained(other, state)
        load_pretrained(other, other.state_dict())
