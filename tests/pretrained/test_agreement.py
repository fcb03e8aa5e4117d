"""What weights do not tell, the configuration beside them does: it is kept, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.pretrained.conftest import build
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.create import architectures
from vit_pytorch.pretrained import to_format

THEIRS = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "num_labels": 7,
    "image_size": 48,
    "patch_size": 8,
}
VISION = {name: value for name, value in THEIRS.items() if name != "num_labels"}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
STAGES = {"image_size": 64, "embed_dim": 16, "num_labels": 7}


def saved(folder: Path, kind: str, **config: Any) -> torch.nn.Module:
    """Save a model of transformers in a folder, as its users do."""
    architecture = getattr(transformers, kind)
    torch.manual_seed(0)
    model = randomise(architecture(architecture.config_class(**config)))
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({"hidden_act": "relu"}, {"act": "relu"}, "act is relu, the model's gelu\nbuild it with act='relu'"),
        ({"hidden_act": "gelu_fast"}, {"act": "gelu_tanh"}, "act is gelu_tanh, the model's gelu"),
        ({"hidden_act": "mish"}, None, "act is mish, the model's gelu"),
        ({"layer_norm_eps": 1e-3}, {"norm_eps": 1e-3}, "norm_eps is 0.001, the model's 1e-06"),
        ({"num_attention_heads": 4}, {"heads": 4, "dim_head": 12}, "heads is 4, the model's 3"),
    ],
)
def test_settings_of_transformers(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any] | None, message: str
) -> None:
    reference = saved(tmp_path, "ViTForImageClassification", **{**THEIRS, **theirs})
    model = build()
    before = model.head.weight.clone()
    with pytest.raises(ValueError, match="describes another function than ViT computes") as caught:
        load_pretrained(model, tmp_path)
    assert message in str(caught.value)
    assert torch.equal(model.head.weight, before)
    load_pretrained(model, reference.state_dict())
    if ours is not None:
        model = build(**ours).eval()
        load_pretrained(model, tmp_path)
        assert difference(model(images(48, 48)), reference(images(48, 48)).logits) < TOLERANCE


def test_epsilons_that_make_no_difference(tmp_path: Path) -> None:
    saved(tmp_path, "ViTForImageClassification", **THEIRS, layer_norm_eps=1e-12)
    load_pretrained(build(norm_eps=1e-6), tmp_path)


def test_what_a_folder_of_ours_describes_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    randomise(build()).save_pretrained(tmp_path)
    model, built = build(), []
    init = type(model).__init__
    monkeypatch.setattr(type(model), "__init__", lambda own, **given: built.append(init(own, **given)))
    load_pretrained(model, tmp_path)
    assert len(built) == 1


def test_settings_of_our_own_folders(tmp_path: Path) -> None:
    randomise(build(act="silu", norm_eps=1e-3)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"act is silu, the model's gelu\nnorm_eps is 0\.001"):
        load_pretrained(build(), tmp_path)


@pytest.mark.parametrize("arguments", [{}, {"act_layer": "relu"}])
def test_settings_of_timms_folders(tmp_path: Path, arguments: dict[str, Any]) -> None:
    # CLIP's names without "quickgelu" have the plain activation
    theirs = "vit_base_patch32_clip_224" if arguments else "vit_base_patch32_clip_quickgelu_224"
    size = {"embed_dim": 48, "depth": 1, "num_heads": 12}
    reference = timm.create_model(theirs, num_classes=7, **size, **arguments)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": theirs, "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = {"dim": 48, "depth": 1, "dim_head": 4, "mlp_dim": 192, "num_classes": 7}
    with pytest.raises(ValueError, match=r"act is (quickgelu|relu), the model's gelu"):
        create_model("vit_base_patch32_clip_224", pretrained=tmp_path, **own)
    if arguments:
        config["model_args"] = {"act_layer": "gelu", "num_heads": 6, "global_pool": ""}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="heads is 6, the model's 12"):
            create_model("vit_base_patch32_clip_224", pretrained=tmp_path, **own)
        create_model("vit_base_patch32_clip_224", pretrained=tmp_path, **{**own, "heads": 6, "dim_head": 8})


def test_timms_weights_under_the_name_of_another_model(tmp_path: Path) -> None:
    size = {"dim": 48, "depth": 1, "heads": 3, "dim_head": 16, "mlp_dim": 192, "num_classes": 7}
    model = create_model("vit_large_patch14_clip_quickgelu_224", **size)
    save_file(to_format(model, "timm"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_large_patch14_clip_224"}))
    load_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="heads is 16, the model's 3"):
        load_pretrained(create_model("vit_large_patch14_clip_224", **size), tmp_path)


def test_the_images_part_of_a_configuration_of_images_and_texts(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(vision_config=VISION, text_config={**TEXT, "vocab_size": 10})
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    own = {"stem": {"kind": "linear", "pre_norm": True}, "norm_eps": 1e-5, "num_classes": 0}
    with pytest.raises(ValueError, match="act is quickgelu, the model's gelu"):
        load_pretrained(build(**own), tmp_path)
    load_pretrained(build(**own, act="quickgelu"), tmp_path)


HIERA = {"dim": 16, "depth": (1, 2, 1, 1), "heads": (1, 2, 4, 8), "image_size": 64, "num_classes": 7}
PARTICULAR = [
    (
        "DINOv3ViTModel",
        {**VISION, "rope_theta": 50.0},
        "ViT",
        {"positions": "rope_normalized", "qkv_bias": "qv", "layer_scale": 1.0, "norm_eps": 1e-5},
        "theta is 50.0, the model's 100.0",
    ),
    (
        "Swinv2ForImageClassification",
        {
            **STAGES,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
            "pretrained_window_sizes": [8, 8],
        },
        "SwinTransformerV2",
        {"image_size": 64, "dim": 16, "depth": (1, 1), "heads": (2, 4), "window_size": 4},
        "pretrained_window_sizes is [8, 8], the model's [0, 0]",
    ),
    (
        "SwinForImageClassification",
        {**STAGES, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "layer_norm_eps": 1e-3},
        "SwinTransformer",
        {"image_size": 64, "dim": 16, "depth": (1, 1), "heads": (2, 4), "window_size": 4, "norm_eps": 1e-3},
        "norm_eps is 0.001, 1e-05, the model's 0.001",
    ),
    (
        "HieraForImageClassification",
        {**STAGES, "image_size": [64, 64], "depths": [1, 2, 1, 1], "num_heads": [2, 4, 8, 16]},
        "Hiera",
        HIERA,
        "build it with heads=(2, 4, 8, 16)",
    ),
    (
        "MobileViTForImageClassification",
        {
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 48],
            "image_size": 64,
            "output_stride": 16,
            "num_labels": 7,
        },
        "MobileViT",
        {
            "image_size": 64,
            "dims": [24, 32, 40],
            "channels": [8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 48],
        },
        "output_stride is 16, the model's 32",
    ),
    (
        "VideoMAEForVideoClassification",
        {**THEIRS, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False},
        "ViT3D",
        {"image_patch_size": 8, "frames": 4, "frame_patch_size": 2, "pool": "mean", "positions": "sequence"},
        "what is classified is the first token, the model's pool is 'mean'",
    ),
    (
        "ViTForImageClassification",
        THEIRS,
        "ViT",
        {"pool": "mean", "class_token": True, "num_classes": 7},
        "what is classified is the first token, the model's pool is 'mean'",
    ),
]


@pytest.mark.parametrize(("kind", "config", "name", "own", "message"), PARTICULAR)
def test_settings_of_single_architectures(
    tmp_path: Path, kind: str, config: dict[str, Any], name: str, own: dict[str, Any], message: str
) -> None:
    saved(tmp_path, kind, **config)
    sizes = {"image_size": 48, "dim": 48, "depth": 2, "heads": 3, "dim_head": 16, "mlp_dim": 96}
    sizes = {"patch_size": 8, "num_classes": 0, **sizes} if kind.startswith(("DINO", "ViT")) else sizes
    staged = kind.startswith(("Swin", "Hiera", "Mobile"))
    model = architectures()[name](**{"num_classes": 7, **({} if staged else sizes), **own})
    with pytest.raises(ValueError, match="describes another function") as caught:
        load_pretrained(model, tmp_path)
    assert message in str(caught.value)


BEIT = {"qkv_bias": "qv", "layer_scale": 0.1, "class_token": True, "norm_eps": 1e-12}
MEAN = {"pool": "mean", "head": {"kind": "linear", "norm": True}}


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["BeitForImageClassification", "Data2VecVisionForImageClassification"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"use_relative_position_bias": True, "use_absolute_position_embeddings": False},
            {"positions": "relative_by_layer", **MEAN},
        ),
        (
            {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
            {"positions": "relative", "pool": "cls"},
        ),
        (
            {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
            {"layer_scale": None, **MEAN},
        ),
    ],
)
def test_transformers_beit(tmp_path: Path, kind: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    reference = saved(tmp_path, kind, **THEIRS, **theirs)
    x = images(48, 48)
    for checkpoint in (tmp_path, reference.state_dict()):
        model = build(**{**BEIT, **ours}).eval()
        assert load_pretrained(model, checkpoint).format == "transformers BEiT"
        assert difference(model(x), reference(x).logits) < TOLERANCE


DEIT = {"num_registers": 1, "positions": {"kind": "learned", "registers": True}, "norm_eps": 1e-12}
DINOV2 = {"layer_scale": 1.0, "act": "swiglu", "mlp_dim": 128, "pool": "cls+mean"}
TOWER = {"stem": {"kind": "linear", "pre_norm": True}, "act": "quickgelu", "norm_eps": 1e-5}


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("ViTMSNForImageClassification", THEIRS, {}),
        ("DeiTForImageClassification", THEIRS, DEIT),
        (
            "Dinov2ForImageClassification",
            {**THEIRS, "use_swiglu_ffn": True},
            DINOV2,
        ),
        ("CLIPVisionModelWithProjection", {**VISION, "projection_dim": 7}, TOWER),
    ],
)
def test_classifiers_of_transformers(
    tmp_path: Path, kind: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    if kind.startswith("Dino"):
        theirs = {name: value for name, value in theirs.items() if name != "intermediate_size"}
    reference = saved(tmp_path, kind, **theirs)
    found = reference(images(48, 48))
    expected = found.image_embeds if "Projection" in kind else found.logits
    # in memory, names differ from those in files
    for checkpoint in (tmp_path, reference.state_dict()):
        model = build(**ours).eval()
        assert not load_pretrained(model, checkpoint).kept
        assert difference(model(images(48, 48)), expected) < TOLERANCE


@torch.inference_mode()
def test_siglip2_projects_flattened_patches(tmp_path: Path) -> None:
    config = {name: value for name, value in VISION.items() if name != "image_size"}
    reference = saved(tmp_path, "Siglip2VisionModel", **config, num_patches=36)
    model = build(pool="map", act="gelu_tanh", num_classes=0).eval()
    load_pretrained(model, tmp_path)
    x = images(48, 48)
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 36, -1)
    expected = reference(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(2, 36, dtype=torch.long),
        spatial_shapes=torch.tensor([[6, 6]] * 2),
    )
    assert difference(model(x), expected.pooler_output) < TOLERANCE


def test_a_norm_behind_the_pooling_begins_with_the_classifier(tmp_path: Path) -> None:
    saved(tmp_path, "VideoMAEModel", **VISION, num_frames=4, tubelet_size=2, layer_norm_eps=1e-6)
    model = architectures()["ViT3D"](
        image_size=48,
        image_patch_size=8,
        frames=4,
        frame_patch_size=2,
        num_classes=7,
        dim=48,
        depth=2,
        heads=3,
        dim_head=16,
        mlp_dim=96,
        pool="mean",
        fc_norm=True,
        positions="sequence",
    )
    with pytest.warns(UserWarning, match=r"head\.weight, head\.bias, fc_norm\.weight, fc_norm\.bias are not"):
        load_pretrained(model, tmp_path)
    assert torch.equal(model.fc_norm.weight, torch.ones(48))
