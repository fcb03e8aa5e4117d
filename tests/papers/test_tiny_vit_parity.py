"""TinyViT computes what timm's computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.tiny_vit import TinyVit

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
)
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.pretrained import to_format
from vit_pytorch.tiny_vit import TinyViT

# Maps of 16, 8 and 4 cells: windows that divide them, and that do not.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (2, 1, 2),
    "heads": (2, 4),
    "window_size": (4, 3),
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "embed_dims": (16, 24, 32),
    "depths": (2, 1, 2),
    "num_heads": (1, 2, 4),
    "window_sizes": (9, 4, 3),
    "drop_path_rate": 0.0,
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {}),
    "odd maps": ({"image_size": (50, 37)}, {}),
    "a window wider than the map": ({"window_size": (4, 7)}, {"window_sizes": (1, 4, 7)}),
    "a window as wide as the map": ({"window_size": (8, 4)}, {"window_sizes": (1, 8, 4)}),
    "hidden channels": (
        {"expansion": 2, "mlp_ratio": 3, "act": "silu"},
        {"mbconv_expand_ratio": 2, "mlp_ratio": 3, "act_layer": torch.nn.SiLU},
    ),
}
FAMILY = Family(
    TinyViT,
    TinyVit,
    OURS,
    THEIRS,
    OPTIONS,
    module="tiny_vit",
    named=[Named("tiny_vit_5m_224")],
    maps=("plain", "odd maps"),
    trained=("plain",),
)


# what a name of timm's is called in the authors' files, in this order
AUTHORS = (
    ("patch_embed.conv1", "patch_embed.seq.0"),
    ("patch_embed.conv2", "patch_embed.seq.2"),
    ("stages.1.downsample", "layers.0.downsample"),
    ("stages.2.downsample", "layers.1.downsample"),
    ("stages.", "layers."),
    (".conv.weight", ".c.weight"),
    ("head.norm.", "norm_head."),
    ("head.fc.", "head."),
)


@torch.inference_mode()
def test_weights_of_the_authors() -> None:
    model, reference = FAMILY.build("plain")
    state = {}
    for name, tensor in reference.state_dict().items():
        for timms, authors in AUTHORS:
            name = name.replace(timms, authors)
        state[name] = tensor
    assert load_pretrained(model, {"model": state}).format == "microsoft"
    x = images(64, 64)
    assert difference(model(x), reference(x)) < TOLERANCE
    back = to_format(model, "microsoft")
    assert back.keys() == state.keys()
    assert all(back[name].equal(state[name]) for name in state)


@torch.inference_mode()
def test_biases_of_another_window() -> None:
    """They are stretched when weights are loaded, and stay symmetric."""
    _, reference = FAMILY.build("plain")
    model = TinyViT(**{**OURS, "window_size": (6, 3)}).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.resized == {"stages.1.blocks.0.attention.bias.table": ((4, 4), (6, 6))}
    bias = model.stages[1].blocks[0].attention.bias()
    assert bias.shape == (2, 36, 36)
    assert bias.equal(bias.mT)


def test_convolutional_blocks_start_as_nothing() -> None:
    """Around the bottleneck a map is activated only."""
    model = TinyViT(**OURS)
    x = torch.randn(2, 5, 5, 16, generator=torch.Generator().manual_seed(0))
    assert model.stages[0].blocks[0](x).equal(torch.nn.functional.gelu(x))


def test_rates_of_dropped_branches_rise() -> None:
    model = TinyViT(**OURS, drop_path=0.4)
    rates = [part.p for part in model.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": (2, 4, 4)}, r"heads must be one for each of 2 stages, got \(2, 4, 4\)"),
        ({"heads": None}, r"dims must be multiples of 32, the head dimension, got \(24, 32\)"),
        ({"window_size": (4, 4, 4)}, r"window_size must be one number or one for each of 2 stages, got"),
        ({"dim": (16, 32)}, r"dim must be one number or one for each of 3 stages, got \(16, 32\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyViT(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "dim": (32, 64), "depth": (1, 1), "heads": (2,), "window_size": 2}
    model = create_model("tiny_vit_5m_224", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=16, epochs=6, goal=0.9) > 0.9
