"""SAM 2's Hiera computes what timm's and transformers' compute; padded windows against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.hieradet_sam2 import HieraDet, checkpoint_filter_fn
from torch import Tensor
from transformers import Sam2HieraDetConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.hiera import MaskUnitAttention
from vit_pytorch.pretrained import to_format
from vit_pytorch.sam2_hiera import SAM2Hiera

# Maps of 16, 8, 4 and 2 cells, the third and the fourth padded to windows of 6 and 3.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": 16,
    "depth": (1, 1, 2, 2),
    "window_size": (8, 4, 6, 3),
    "global_layers": (3,),
    "position_grid": 5,
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "embed_dim": 16,
    "stages": (1, 1, 2, 2),
    "window_spec": (8, 4, 6, 3),
    "global_att_blocks": (3,),
    "global_pos_size": (5, 5),
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {}),
    "positions shrink": ({"image_size": (32, 64), "position_grid": (9, 20)}, {"global_pos_size": (9, 20)}),
    "scaled": ({"layer_scale": 0.1}, {"init_values": 0.1}),
    "windows alone": (
        {"depth": (2, 1), "window_size": (6, 5), "global_layers": (), "heads": 2, "image_size": 48},
        {
            "stages": (2, 1),
            "window_spec": (6, 5),
            "global_att_blocks": (),
            "num_heads": 2,
            "q_pool": 1,
        },
    ),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
}
SHALLOW = (
    {"depth": (1, 1, 2, 1), "global_layers": (3,)},
    {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
)
FAMILY = Family(
    SAM2Hiera,
    HieraDet,
    OURS,
    THEIRS,
    OPTIONS,
    module="hieradet_sam2",
    named=[
        Named("sam2_hiera_tiny", *SHALLOW, size=(224, 320)),
        Named("sam2_hiera_base_plus", *SHALLOW, size=(224, 224)),
        Named("hieradet_small"),
    ],
    maps=tuple(OPTIONS),
    trained=("plain",),
)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (96, 64), (128, 224)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    model, reference = FAMILY.pair("plain")
    x = images(*size)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_the_authors() -> None:
    """Their files have a decoder, and no norm; timm's reader makes the same of what is written."""
    model, reference = FAMILY.pair("no classes")
    written = {
        name: tensor
        for name, tensor in to_format(model, "facebookresearch").items()
        if "head.norm" not in name
    }
    written["sam_mask_decoder.iou_token.weight"] = torch.ones(1, 4)
    again = SAM2Hiera(**{**OURS, "num_classes": 0}).eval()
    with pytest.warns(UserWarning, match=r"fc_norm\.weight, fc_norm\.bias are not from"):
        report = load_pretrained(again, written)
    assert report.format == "facebookresearch"
    assert {*report.kept} == {"fc_norm.weight", "fc_norm.bias"}
    x = images(64, 64)
    assert again.forward_features(x).equal(model.forward_features(x))
    reference.load_state_dict(
        checkpoint_filter_fn(dict(written), prefix="image_encoder.trunk."), strict=False
    )
    wanted = reference.forward_features(x).permute(0, 3, 1, 2)
    assert difference(again.forward_features(x), wanted) < TOLERANCE * max(1, wanted.abs().max())


@torch.inference_mode()
def test_weights_of_transformers() -> None:
    config = Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 2],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 6, 3],
        window_positional_embedding_background_size=[5, 5],
        global_attention_blocks=[3],
    )
    reference = randomise(Sam2HieraDetModel(config))
    state = {f"vision_encoder.backbone.{name}": tensor for name, tensor in reference.state_dict().items()}
    model = SAM2Hiera(**{**OURS, "num_classes": 0}).eval()
    with pytest.warns(UserWarning, match=r"fc_norm\.weight, fc_norm\.bias are not from"):
        report = load_pretrained(model, {**state, "prompt_encoder.no_mask_embed.weight": torch.ones(1, 4)})
    assert (report.format, {*report.kept}) == ("transformers", {"fc_norm.weight", "fc_norm.bias"})
    assert report.dropped == ("/prompt_encoder.no_mask_embed.weight",)
    x = images(64, 96)
    wanted = reference(x).last_hidden_state.permute(0, 3, 1, 2)
    assert difference(model.forward_features(x), wanted) < TOLERANCE * max(1, wanted.abs().max())
    written = to_format(model, "transformers")
    assert {name for name in written if "head" not in name} == state.keys()
    assert all(written[name].equal(state[name]) for name in state)


def attend_in_loops(attention: MaskUnitAttention, x: Tensor, unit: int) -> Tensor:
    """Attend from the cells of a map to those of their windows, of which zeros outside of it are some."""
    height, width, dim = x.shape
    rows = []
    for y in range(height):
        for z in range(width):
            up, left = y // unit * unit, z // unit * unit
            cells = [
                x[a, b] if a < height and b < width else torch.zeros(dim)
                for a in range(up, up + unit)
                for b in range(left, left + unit)
            ]
            tokens = torch.stack(cells)[None]
            index = (y - up) * unit + z - left
            rows.append(attention.attention(tokens)[0, index])
    return torch.stack(rows).unflatten(0, (height, width))


@torch.inference_mode()
def test_zeros_fill_windows() -> None:
    attention = MaskUnitAttention(8, 8, heads=2, unit=3, pool=False)
    randomise(attention)
    x = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    for sample, got in zip(x, attention(x), strict=True):
        assert difference(got, attend_in_loops(attention, sample, 3)) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window_size": (8, 4, 7, 7)}, r"even in all stages but the last, got \(8, 4, 7, 7\)"),
        ({"window_size": (8, 4)}, r"one for each of 4 stages, got \(8, 4\)"),
        ({"global_layers": (6,)}, r"global_layers must be below depth 6, got \(6,\)"),
        ({"image_size": 48}, r"image size must be a multiple of \(32, 32\), got \(48, 48\)"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SAM2Hiera(**{**OURS, **options})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "depth": (1, 1),
        "window_size": (2, 2),
        "global_layers": (1,),
        "position_grid": 4,
    }
    model = SAM2Hiera(image_size=16, channels=1, num_classes=10, dim=32, heads=2, **sizes)
    assert accuracy_on_digits(model, size=16, epochs=6) > 0.9
