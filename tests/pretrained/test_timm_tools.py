"""Tools written for timm's models read ours."""

from __future__ import annotations

from timm.data import resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from vit_pytorch import create_model, load_pretrained

NAME = "vit_tiny_patch16_224"


def test_data_configuration() -> None:
    config = resolve_data_config(model=create_model(NAME, depth=1))
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["interpolation"] == "bicubic"
    assert config["crop_pct"] == 0.9


def build_pair() -> tuple[nn.Module, nn.Module]:
    reference = VisionTransformer(embed_dim=192, depth=3, num_heads=3)
    model = create_model(NAME, depth=3)
    load_pretrained(model, reference.state_dict())
    return model, reference


def summarise(groups: list[dict]) -> list[tuple[float, float, list[tuple[int, ...]]]]:
    return sorted(
        (
            group.get("lr_scale", 1.0),
            group["weight_decay"],
            sorted(tuple(parameter.shape) for parameter in group["params"]),
        )
        for group in groups
    )


def test_layer_decay() -> None:
    ours, theirs = (
        summarise(
            param_groups_layer_decay(
                model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75
            )
        )
        for model in build_pair()
    )
    assert ours == theirs
    assert len({scale for scale, _, _ in ours}) == 5


def test_weight_decay() -> None:
    ours, theirs = (
        summarise(param_groups_weight_decay(model, 0.05, model.no_weight_decay())) for model in build_pair()
    )
    assert ours == theirs
