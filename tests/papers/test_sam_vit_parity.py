"""SAMViT computes what timm's and transformers' image encoders compute; positions against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer_sam import VisionTransformerSAM, checkpoint_filter_fn
from torch import Tensor
from transformers import SamVisionConfig, SamVisionModel

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
)
from vit_pytorch import load_pretrained
from vit_pytorch.layers.positions import DecomposedPositions
from vit_pytorch.pretrained import to_format
from vit_pytorch.sam_vit import SAMViT
from vit_pytorch.simmim import SimMIM

OURS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 48,
    "window_size": 3,
    "global_layers": (1,),
    "neck_dim": 16,
    "norm_eps": 1e-5,
}
THEIRS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "num_classes": 7,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "window_size": 3,
    "global_attn_indexes": (1,),
    "neck_chans": 16,
    "use_rel_pos": True,
}
# our options, timm's for them; windows divide the map in the second
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "whole windows": ({"window_size": 4, "qkv_bias": False}, {"window_size": 4, "qkv_bias": False}),
    "windows alone": ({"global_layers": ()}, {"global_attn_indexes": ()}),
    "not square": ({"image_size": (32, 48)}, {"img_size": (32, 48)}),
    "no neck": ({"neck_dim": None, "positions": "none"}, {"neck_chans": None, "use_abs_pos": False}),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
}
FAMILY = Family(
    SAMViT,
    VisionTransformerSAM,
    OURS,
    THEIRS,
    OPTIONS,
    module="vision_transformer_sam",
    named=[Named("samvit_base_patch16_224")],
    maps=("plain", "whole windows", "not square", "no neck"),
    norms=[(False, False), (True, True)],
    trained=("plain",),
)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(24, 24), (48, 32), (60, 44)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    """Positions are stretched, those that are added and those inside attention."""
    model, reference = FAMILY.pair("plain")
    x = images(*size)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_another_size() -> None:
    """They are stretched when they are loaded, and when the input becomes another one, alike."""
    _, reference = FAMILY.pair("plain")
    model = SAMViT(**{**OURS, "image_size": 48}).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.resized == {
        "positions.table": ((8, 8), (12, 12)),
        "blocks.1.attention.attention.position": ((8, 8), (12, 12)),
    }
    x = images(48, 48)
    assert difference(model(x), reference(x)) < TOLERANCE
    resized, _ = FAMILY.pair("plain")
    resized.set_input_size(48)
    assert difference(resized(x), model(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_the_authors() -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model = randomise(SAMViT(**{**OURS, "num_classes": 0}))
    file = {**to_format(model, "segment_anything"), "mask_decoder.iou_token.weight": torch.zeros(1, 4)}
    again = SAMViT(**{**OURS, "num_classes": 0}).eval()
    assert load_pretrained(again, file).format == "segment_anything"
    reference = VisionTransformerSAM(**{**THEIRS, "num_classes": 0}).eval()
    reference.load_state_dict(checkpoint_filter_fn(dict(file), reference))
    x = images(32, 32)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_transformers() -> None:
    config = SamVisionConfig(
        hidden_size=24,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
        mlp_dim=48,
        window_size=3,
        global_attn_indexes=[1],
        layer_norm_eps=1e-6,
    )
    reference = randomise(SamVisionModel(config))
    model = SAMViT(**{**OURS, "num_classes": 0, "norm_eps": 1e-6}).eval()
    assert load_pretrained(model, reference.state_dict()).format == "transformers"
    x = images(32, 32)
    features = model.forward_features(x).transpose(1, 2).unflatten(2, (8, 8))
    assert difference(features, reference(x).last_hidden_state) < TOLERANCE
    written, state = to_format(model, "transformers"), reference.state_dict()
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)


def products_in_loops(positions: DecomposedPositions, q: Tensor, height: int, width: int) -> Tensor:
    """Return what each pair of cells adds to the scores of a head, one by one."""
    found = torch.zeros(height * width, height * width)
    for one in range(height * width):
        for other in range(height * width):
            down, right = one // width - other // width, one % width - other % width
            embedding = positions.rows[down + height - 1] + positions.columns[right + width - 1]
            found[one, other] = q[one] @ embedding
    return found


@torch.inference_mode()
def test_products_with_offsets() -> None:
    positions = randomise(DecomposedPositions((2, 3), 4))
    q = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    model = SAMViT(**OURS)
    _, _, found = positions(q, q, model.block_inputs((2, 3)))
    for sample in range(2):
        for head in range(3):
            expected = products_in_loops(positions, q[sample, head], 2, 3)
            torch.testing.assert_close(found[sample, head], expected, rtol=1e-5, atol=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"global_layers must be in \[0, 1\], got \(2,\)"):
        SAMViT(**{**OURS, "global_layers": (2,)})
    model = SAMViT(**OURS)
    with pytest.raises(ValueError, match="needs all patches, got 3 kept ones"):
        model.encode(torch.randn(1, 3, 24), ids_keep=torch.arange(3)[None])
    with pytest.raises(ValueError, match="features are as wide as tokens, got 16 and 24"):
        SimMIM(encoder=model)


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 20, "patch_size": 4, "dim": 64, "depth": 3, "heads": 4}
    model = SAMViT(
        **sizes, mlp_dim=128, window_size=3, global_layers=(2,), neck_dim=32, channels=1, num_classes=10
    )
    assert accuracy_on_digits(model, size=20, epochs=10, goal=0.9) > 0.9
