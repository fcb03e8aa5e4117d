"""Registers: transformers' DINOv2, which pools without them, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.layers.tokens import Head
from vit_pytorch.pretrained import to_format

CONFIG = {
    "image_size": 40,
    "patch_size": 8,
    "num_labels": 7,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
SMALL = {"image_size": 40, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 2, "heads": 3}
DINOV2 = {**SMALL, "dim_head": 16, "mlp_dim": 192, "pool": "cls+mean", "num_registers": 4, "layer_scale": 1.0}


@torch.no_grad()
def test_headless_counts():
    for name, count in (("small", 22_057_344), ("base", 86_582_016)):
        with torch.device("meta"):
            model = create_model(f"vit_{name}_patch14_reg4_dinov2")
        assert sum(parameter.numel() for parameter in model.parameters()) == count


@torch.no_grad()
def test_classifier_equals_transformers(tmp_path):
    """It sees the class token and the mean of the patches, the registers left out."""
    reference = randomise(Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**CONFIG)))
    batch = images(40, 40)
    want = reference(batch).logits
    reference.save_pretrained(tmp_path)
    for checkpoint in (reference.state_dict(), tmp_path):
        model = ViT(**DINOV2).eval()
        report = load_pretrained(model, checkpoint)
        assert (report.format, report.kept) == ("transformers DINOv2", ())
        assert report.dropped == ("embeddings.mask_token",)
        assert difference(model(batch), want) < TOLERANCE
    features = model.forward_features(batch)
    embedding = model.forward_head(features, pre_logits=True)
    assert embedding.equal(torch.cat([features[:, 0], features[:, 5:].mean(dim=1)], dim=1))
    assert model.head_hidden_size == 96
    again = ViT(**DINOV2).eval()
    load_pretrained(again, to_format(model, "transformers DINOv2"))
    assert again(batch).equal(model(batch))


@torch.no_grad()
def test_golden_classifier():
    facts, state, tensors = read_golden("dinov2_registers")
    sizes = {"image_size": 32, "dim": 48, "depth": 3, "heads": 4, "dim_head": 12, "num_classes": 10}
    assert facts["num_register_tokens"] == 4
    with pytest.warns(UserWarning, match="16 patches are few"):
        model = ViT(**{**DINOV2, **sizes}).eval()
    load_pretrained(model, state)
    assert difference(model.forward_features(tensors["input"]), tensors["last_hidden_state"]) < TOLERANCE
    assert difference(model(tensors["input"]), tensors["output"]) < TOLERANCE


def test_size_of_transformers_default():
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", pool="cls+mean", num_registers=4, layer_scale=1.0)
        reference = Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(num_labels=1000))
    count = sum(parameter.numel() for parameter in model.parameters())
    theirs = sum(parameter.numel() for parameter in reference.parameters())
    # A mask token is theirs alone.
    assert theirs == count + 768 == 87_357_928


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean", "map"])
def test_registers_with_any_pooling(pool):
    """They change the logits, they are not what is pooled, and they have no positions."""
    model = randomise(ViT(**{**DINOV2, "pool": pool}))
    batch = images(40, 40)
    before = model(batch)
    features = model.forward_features(batch)
    first = int(model.prefix.class_token is not None)
    changed = features.clone()
    changed[:, first : first + 4] += 1
    assert model.forward_head(changed).equal(model.forward_head(features))
    assert model.embed(batch)[0, first : first + 4].equal(model.prefix.registers[0])
    with torch.no_grad():
        model.prefix.registers.mul_(-1)
    assert not model(batch).isclose(before).any()


@torch.no_grad()
def test_the_final_norm_acts_on_both_pools():
    model = randomise(ViT(**DINOV2, head=Head(norm=True)))
    features = model.forward_features(images(40, 40))
    mean = features[:, model.num_prefix_tokens :].mean(dim=1)
    want = model.head(model.fc_norm(torch.cat([features[:, 0], mean], dim=1)))
    assert model.forward_head(features).equal(want)
