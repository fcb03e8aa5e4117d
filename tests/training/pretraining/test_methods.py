"""From settings to methods: what is built, from which weights, around which models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.papers.golden import read_golden
from tests.training.pretraining.small import METHODS, VIT, few_digits, settings
from vit_pytorch import create_model
from vit_pytorch.cli.layers import read_layer
from vit_pytorch.data import Preprocessing, Splits
from vit_pytorch.registry import find_entry
from vit_pytorch.training.config import DataConfig, write_config
from vit_pytorch.training.pretraining.config import DinoConfig, EsViTConfig, MAEConfig
from vit_pytorch.training.pretraining.methods import Length, backbone_of, last_layers, make_method, views_of
from vit_pytorch.training.pretraining.run import build

PREP = Preprocessing(image_size=(32, 32))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return few_digits()


@pytest.mark.parametrize("name", METHODS)
def test_all_that_learns_has_gradients(name, splits):
    """What a method leaves out, such as positions, is kept still; nothing of the trial stays."""
    _, _, method = build(settings(name), splits)
    assert all(parameter.grad is None for parameter in method.parameters())
    assert method.training
    still = {key for key, parameter in method.named_parameters() if not parameter.requires_grad}
    teacher = {key for key in still if key.startswith("teacher.") or key.endswith("last_layer.gain")}
    assert still - teacher == ({"vit.positions.table"} if name == "mp3" else set())
    if name in ("dino", "esvit"):
        method.freeze_last_layer = 0
    method(torch.rand(4, 1, 12, 12)).backward()
    lacking = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert len(last_layers(method)) == {"dino": 1, "esvit": 2}.get(name, 0)
    assert backbone_of(method).default_cfg["architecture"] == VIT["name"]


@pytest.mark.parametrize("name", ["cvt_13", "pit_ti_224", "maxvit_t", "crossvit_tiny_240", "cait_xxs24_224"])
@pytest.mark.parametrize("method", ["mae", "simmim", "mpp", "mp3"])
def test_models_that_cannot_be_masked_are_refused_in_one_sentence(name, method):
    entry = find_entry(name)
    model = entry.build(**{**entry.tiny, "num_classes": 0})
    with pytest.raises(ValueError, match=f"^method {method} cannot teach {name}: .*[^.]$") as error:
        make_method(METHODS[method], model, PREP, Length(1, 1), name=name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cvt_13", "pit_ti_224", "maxvit_t"])
def test_models_in_stages_are_taught_by_esvit(name):
    entry = find_entry(name)
    model = entry.build(**{**entry.tiny, "num_classes": 0})
    size = (model.image_size[0], model.image_size[1])
    heads: dict[str, Any] = {"num_logits": 16, "hidden_dim": 16, "bottleneck_dim": 8, "num_local_crops": 1}
    method = make_method(EsViTConfig(**heads), model, Preprocessing(image_size=size), Length(1, 1), name=name)
    assert type(backbone_of(method)) is type(model)


def test_the_length_counts_steps_as_the_loop_does():
    length = Length.of(103, epochs=3, batch=10, accumulate=4)
    assert (length.epoch_steps, length.steps, length.after(0.5)) == (3, 9, 2)
    assert Length.of(7, epochs=1, batch=10, accumulate=1).steps == 1


def test_views_are_those_asked_for():
    config = DinoConfig(num_local_crops=3, blur=0.5, solarize=0.3, flip=0.1, local_lower_crop_scale=0.2)
    first, second, *local = views_of(config, (64, 64), (24, 24))
    assert [view.size for view in (first, second, *local)] == [(64, 64)] * 2 + [(24, 24)] * 3
    assert (first.blur, second.blur, local[0].blur) == (0.5, 0.05, 0.25)
    assert (first.solarize, second.solarize, local[0].solarize) == (0.0, 0.3, 0.0)
    assert (first.scale, local[0].scale) == ((0.4, 1.0), (0.2, 0.4))
    assert {view.flip for view in (first, second, *local)} == {0.1}


def test_crops_are_cut_from_larger_images(splits):
    config = settings(DinoConfig(**{**vars(METHODS["dino"]), "source_size": 20}))
    _, data, _ = build(config, splits)
    ((images, _), *_), ((val, _), *_) = (
        list(loader) for loader in (data.train_dataloader(), data.val_dataloader())
    )
    assert images.shape[2:] == (20, 20)
    assert val.shape[2:] == data.preprocessing.image_size == (12, 12)


@pytest.mark.filterwarnings("ignore:16 patches are few")
def test_starts_from_a_whole_autoencoder_or_from_a_model(tmp_path: Path, splits):
    _, weights, _ = read_golden("mae")
    save_file(weights, tmp_path / "mae.safetensors")
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "dim": 48,
        "depth": 2,
        "heads": 4,
        "dim_head": 12,
        "mlp_dim": 192,
    }
    small = MAEConfig(decoder_dim=32, decoder_depth=2, decoder_heads=4)
    data = DataConfig(channels=3)
    config = settings(small, model={"name": VIT["name"], **sizes}, data=data)
    _, _, method = build(config, splits, str(tmp_path / "mae.safetensors"))
    model = create_model(VIT["name"], **sizes, num_classes=5)
    model.save_pretrained(tmp_path / "run" / "model")
    _, _, other = build(settings("mpp", model=config.model, data=data), splits, str(tmp_path / "run"))
    assert method.mask_token.equal(weights["mask_token"])
    assert method.to_pixels.weight.equal(weights["decoder_pred.weight"])
    assert backbone_of(method).patch_embed.proj.weight.equal(weights["patch_embed.proj.weight"])
    assert backbone_of(other).patch_embed.proj.weight.equal(model.patch_embed.proj.weight)


def test_what_is_written_down_is_whole(tmp_path: Path):
    write_config(settings("dino"), tmp_path / "config.yaml")
    found = read_layer(tmp_path / "config.yaml")
    assert found["method"] == vars(METHODS["dino"])
    assert found["monitor"]["patience"] == 3


def test_local_crops_that_a_model_refuses_are_named():
    entry = find_entry("hiera_tiny_224")
    model = entry.build(**{**entry.tiny, "num_classes": 0, "image_size": 64})
    prep = Preprocessing(image_size=(64, 64))
    with pytest.raises(ValueError, match=r"method\.local_size, .*, is 16, and 32 would do"):
        make_method(DinoConfig(local_size=16), model, prep, Length(1, 1), name="hiera_tiny_224")


def test_local_crops_as_large_as_the_global_ones_are_refused():
    model = create_model("vit_tiny_patch16_224", image_size=64, patch_size=8, num_classes=0)
    prep = Preprocessing(image_size=(64, 64))
    for size in (64, 96):
        with pytest.raises(
            ValueError, match=rf"smaller than the global ones of 64 x 64 .* is {size}, and 24 would do"
        ):
            make_method(DinoConfig(local_size=size), model, prep, Length(1, 1), name="vit_tiny_patch16_224")
