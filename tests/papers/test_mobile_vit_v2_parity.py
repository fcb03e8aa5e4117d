"""MobileViTV2 computes what timm's and transformers' MobileViTV2 compute."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import MobileViTV2Config, MobileViTV2ForImageClassification

from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, check_parity, difference, images, randomise, settle
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.mobile_vit_v2 import MobileViTV2, SeparableAttention
from vit_pytorch.pretrained import to_format


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (50, 71)], ids=str)
def test_logits_gradients_and_decay(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    reference = randomise(timm.create_model("mobilevitv2_050", num_classes=10))
    model = create_model("mobilevitv2_050", num_classes=10).eval()
    check_parity(model, reference, images(*size))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (128, 192)], ids=str)
def test_classifier_of_transformers(size: tuple[int, int]) -> None:
    """Of sizes whose maps are whole patches; of others, transformers' leaves the rest of the map out."""
    torch.manual_seed(0)
    config = MobileViTV2Config(width_multiplier=0.5, n_attn_blocks=[1, 1, 2], num_labels=7)
    reference = settle(randomise(MobileViTV2ForImageClassification(config)), images(64, 64, batch=4))
    model = MobileViTV2(image_size=64, width=0.5, depths=(1, 1, 2), num_classes=7).eval()
    assert load_pretrained(model, reference.state_dict()).format == "transformers"
    x = images(*size)
    assert difference(model(x), reference(x).logits) < TOLERANCE
    written, state = to_format(model, "transformers"), reference.state_dict()
    assert written.keys() == state.keys()
    assert all(written[key].equal(tensor) for key, tensor in state.items())


@torch.no_grad()
def test_attention_in_plain_loops() -> None:
    """Each cell sees those at its place in all patches: every second row and column."""
    torch.manual_seed(0)
    attention = SeparableAttention(6, patch=(2, 2))
    x = torch.randn(1, 4, 6, 6)
    found = attention(x)
    for row in range(2):
        for column in range(2):
            cells = x[0, row::2, column::2].reshape(-1, 6)
            projected = attention.to_qkv(cells)
            weights = projected[:, 0].exp() / projected[:, 0].exp().sum()
            context = sum(weight * key for weight, key in zip(weights, projected[:, 1:7], strict=True))
            expected = torch.stack([attention.to_out(F.relu(value) * context) for value in projected[:, 7:]])
            torch.testing.assert_close(found[0, row::2, column::2].reshape(-1, 6), expected)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="dims must be one for each of 5 stages"):
        MobileViTV2(image_size=64, num_classes=7, dims=(8, 16))


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    model = create_model("mobilevitv2_050", channels=1, num_classes=10, image_size=32, width=0.25)
    assert accuracy_on_digits(model, size=32, epochs=12, goal=0.9) > 0.9
