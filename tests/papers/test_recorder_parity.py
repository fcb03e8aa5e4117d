"""The recorder's maps are those that transformers gives, and those inside timm's models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import timm.models
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, load_pretrained
from vit_pytorch.cait import CaiT
from vit_pytorch.extractor import Extractor
from vit_pytorch.recorder import Recorder
from vit_pytorch.xcit import XCiT

OURS = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 3,
    "heads": 3,
    "mlp_dim": 192,
}
THEIRS = {"img_size": 48, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}


@contextmanager
def inputs_of(model: nn.Module, ending: str) -> Iterator[list[Tensor]]:
    """Collect what enters every module whose name ends so."""
    found: list[Tensor] = []
    handles = [
        part.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        for name, part in model.named_modules()
        if name.endswith(ending)
    ]
    yield found
    for handle in handles:
        handle.remove()


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference of maps, which are not uniform."""
    assert ours.shape == theirs.shape
    assert theirs.std(-1).mean() > 0.05 / theirs.shape[-1]
    return (ours - theirs).abs().max().item()


def unfuse(model: nn.Module) -> None:
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False


@torch.inference_mode()
def test_maps_equal_transformers() -> None:
    config = ViTConfig(
        image_size=48,
        patch_size=8,
        num_labels=7,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        attn_implementation="eager",
    )
    reference = randomise(ViTForImageClassification(config))
    model = ViT(**OURS, dim_head=16, norm_eps=config.layer_norm_eps).eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 48)
    theirs = reference(x, output_attentions=True, output_hidden_states=True)
    ours = Recorder(model)(x)[1]
    assert apart(ours, torch.stack(theirs.attentions, dim=1)) < TOLERANCE
    embeddings = Extractor(model, [0, 1, 2], return_embeddings_only=True)(x)
    for layer, hidden in enumerate(theirs.hidden_states[1:]):
        assert difference(embeddings[layer], hidden) < TOLERANCE


@torch.inference_mode()
def test_maps_equal_timms_cait() -> None:
    reference = randomise(timm.models.Cait(**THEIRS))
    unfuse(reference)
    model = CaiT(**OURS, cls_depth=2).eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 48)
    with (
        inputs_of(reference, ".proj_w") as softmax,
        inputs_of(reference.blocks, ".attn_drop") as mixed,
        inputs_of(reference.blocks_token_only, ".attn_drop") as class_rows,
    ):
        reference(x)
    recorder = Recorder(model)
    stage, class_stage = recorder(x)[1]
    recorder.eject()
    mixed_stage, same_class_stage = Recorder(model, mixed=True)(x)[1]
    assert class_stage.shape == (2, 2, 3, 1, 37)
    assert apart(stage, torch.stack(softmax, dim=1).permute(0, 1, 4, 2, 3)) < TOLERANCE
    assert apart(mixed_stage, torch.stack(mixed, dim=1)) < TOLERANCE
    assert apart(class_stage, torch.stack(class_rows, dim=1)) < TOLERANCE
    assert same_class_stage.equal(class_stage)


@torch.inference_mode()
def test_maps_equal_timms_xcit() -> None:
    reference = randomise(timm.models.Xcit(**THEIRS, cls_attn_layers=2, eta=1.0, tokens_norm=True))
    unfuse(reference)
    model = XCiT(**OURS, cls_depth=2).eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 48)
    with (
        inputs_of(reference.blocks, ".attn_drop") as channels,
        inputs_of(reference.cls_attn_blocks, ".attn_drop") as class_rows,
    ):
        reference(x)
    stage, class_stage = Recorder(model)(x)[1]
    assert stage.shape == (2, 3, 3, 16, 16)
    assert class_stage.shape == (2, 2, 3, 1, 37)
    assert apart(stage, torch.stack(channels, dim=1)) < TOLERANCE
    assert apart(class_stage, torch.stack(class_rows, dim=1)) < TOLERANCE
