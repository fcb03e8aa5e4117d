"""ConViT computes what timm's computes; positional attention against plain loops, and as a convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.convit import ConVit
from torch import Tensor
from torch.nn.functional import pad

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.convit import ConViT, OffsetWeights

OURS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 40,
    "depth": 3,
    "heads": 5,
    "mlp_dim": 160,
    "local_layers": 2,
}
THEIRS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "embed_dim": 8,
    "depth": 3,
    "num_heads": 5,
    "local_up_to_layer": 2,
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "biases": ({"qkv_bias": True}, {"qkv_bias": True}),
    "mean": ({"pool": "mean"}, {"global_pool": "avg"}),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
}
FAMILY = Family(
    ConViT,
    ConVit,
    OURS,
    THEIRS,
    OPTIONS,
    module="convit",
    named=[Named("convit_tiny")],
    maps=("plain", "mean"),
    trained=("plain",),
)


@torch.inference_mode()
def test_a_model_without_gates_has_no_name_of_its_own() -> None:
    """Its weights are read where the file has the name of a gate."""
    reference = randomise(ConVit(**{**THEIRS, "local_up_to_layer": 0}))
    model = ConViT(**{**OURS, "local_layers": 0}).eval()
    load_pretrained(model, {**reference.state_dict(), "blocks.0.attn.gating_param": torch.zeros(0)})
    x = images(32, 32)
    assert difference(model(x), reference(x)) < TOLERANCE


def weights_in_loops(weights: OffsetWeights, height: int, width: int) -> Tensor:
    """Return what each patch takes from each other, one by one."""
    scores = torch.zeros(weights.linear.out_features, height * width, height * width)
    for one in range(height * width):
        for other in range(height * width):
            down, right = other // width - one // width, other % width - one % width
            place = torch.tensor([right, down, right**2 + down**2], dtype=torch.float32)
            scores[:, one, other] = weights.linear(place)
    return scores.softmax(dim=-1)


@torch.inference_mode()
@pytest.mark.parametrize("grid", [(3, 4), (2, 3)])
def test_weights_of_offsets(grid: tuple[int, int]) -> None:
    """Of the largest grid and of a smaller one."""
    weights = OffsetWeights((3, 4), 2, 1.0)
    randomise(weights)
    torch.testing.assert_close(weights(*grid), weights_in_loops(weights, *grid))


@torch.inference_mode()
def test_starts_as_a_convolution() -> None:
    """With great strength and open gates, each of nine heads takes the token of one neighbour."""
    torch.manual_seed(0)
    model = ConViT(**{**OURS, "dim": 36, "heads": 9, "locality_strength": 50.0})
    block: Any = model.blocks[0]
    block.attention.attention.kernel.gate.fill_(50.0)
    torch.nn.init.eye_(block.attention.attention.to_out.weight)
    tokens = torch.randn(2, 16, 36)
    found = block.attention(tokens, model.block_inputs((4, 4))).unflatten(1, (4, 4))
    cells = pad(tokens.unflatten(1, (4, 4)), (0, 0, 1, 1, 1, 1))
    # What is beside the map is replaced by its nearest cell, so the inside is compared.
    for head in range(9):
        right, down = head // 3, head % 3
        for row in (1, 2):
            for column in (1, 2):
                taken = {(a, b) for a in range(3) for b in range(3)} & {(down, right), (right, down)}
                values = [cells[:, row + a, column + b, 4 * head : 4 * head + 4] for a, b in taken]
                got = found[:, row, column, 4 * head : 4 * head + 4]
                assert any(torch.allclose(got, value, atol=1e-4) for value in values)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="local_layers must be below depth=3, got 3"):
        ConViT(**{**OURS, "local_layers": 3})
    with pytest.raises(ValueError, match="needs all patches, got 3 kept ones"):
        ConViT(**OURS).encode(torch.randn(1, 3, 40), ids_keep=torch.arange(3)[None])


def test_pooling_changes() -> None:
    model = ConViT(**OURS).eval()
    model.reset_classifier(5, "avg")
    x = images(32, 32)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(pooled, model.forward_features(x)[:, 1:].mean(dim=1))
    assert model.config["pool"] == "mean"


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    model = ConViT(
        image_size=20,
        patch_size=4,
        channels=1,
        num_classes=10,
        dim=64,
        depth=3,
        heads=4,
        mlp_dim=128,
        local_layers=2,
    )
    assert accuracy_on_digits(model, size=20, epochs=10, goal=0.9) > 0.9
