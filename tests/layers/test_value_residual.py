"""Value residuals: each form against loops over layers and heads, and what they must not change."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT
from vit_pytorch.learnable_memory_vit import Adapter
from vit_pytorch.mp3 import MP3

SMALL: dict[str, Any] = {
    "image_size": 40,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": 3,
    "heads": 3,
    "mlp_dim": 40,
    "dim_head": 8,
}
FORMS = ["identity", "learnable", "gated", "sparse", (2,)]


def own_values(model: ViT, tokens: Tensor, layer: int) -> Tensor:
    """Compute a layer's values before the heads are split."""
    block = model.blocks[layer]
    weight, bias = (part.chunk(3)[2] for part in (block.attention.to_qkv.weight, block.attention.to_qkv.bias))
    return block.norm1(tokens) @ weight.T + bias


def written_out(model: ViT, form: object, x: Tensor) -> Tensor:
    """Compute the logits with every layer's values mixed before the heads are split, head by head."""
    tokens = model.embed(x)
    first = own_values(model, tokens, 0)
    for layer, block in enumerate(model.blocks):
        attention = block.attention
        normed = block.norm1(tokens)
        values = own_values(model, tokens, layer)
        if layer > 0 and form == "identity":
            values = 0.5 * first + 0.5 * values
        elif layer > 0 and form == "learnable":
            values = attention.value_mix.weights[0] * first + attention.value_mix.weights[1] * values
        elif layer > 0 and form == "gated":
            gates = torch.sigmoid(normed @ attention.value_mix.gate.weight.T + attention.value_mix.gate.bias)
            gates = gates.repeat_interleave(8, dim=-1)
            values = gates * first + (1 - gates) * values
        elif layer == 2 and form in ("sparse", (2,)):
            values = (first + values) / 2
        q, k = (
            normed @ weight.T + bias
            for weight, bias in zip(
                attention.to_qkv.weight.chunk(3)[:2], attention.to_qkv.bias.chunk(3)[:2], strict=True
            )
        )
        heads = []
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            weights = (q[..., part] @ k[..., part].mT / 8**0.5).softmax(dim=-1)
            heads.append(weights @ values[..., part])
        tokens = tokens + attention.to_out(torch.cat(heads, dim=-1))
        tokens = tokens + block.feedforward(block.norm2(tokens))
    return model.head(model.norm(tokens)[:, 0])


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_equals_loops(form: Any) -> None:
    model = randomise(ViT(**SMALL, value_residual=form))
    x = images(40, 40)
    assert difference(model(x), written_out(model, form, x)) < TOLERANCE


def test_true_is_the_learnable_form() -> None:
    model = ViT(**SMALL, value_residual=True)
    numbers = {name: p for name, p in model.named_parameters() if ".value_mix." in name}
    assert list(numbers) == [f"blocks.{layer}.attention.value_mix.weights" for layer in (1, 2)]
    assert all(parameter.tolist() == [0.5, 0.5] for parameter in numbers.values())
    even = ViT(**SMALL, value_residual="identity")
    even.load_state_dict(model.state_dict(), strict=False)
    gated = ViT(**SMALL, value_residual="gated")
    gated.load_state_dict(model.state_dict(), strict=False)
    x = images(40, 40)
    assert torch.allclose(model(x), even(x), atol=1e-6)
    assert torch.allclose(model(x), gated(x), atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "relative", "relative_by_layer", "rope", "rope_mixed"])
def test_without_a_share_of_the_first_values_it_is_the_plain_vit(positions: str) -> None:
    plain = randomise(ViT(**SMALL, positions=positions))
    model = ViT(**SMALL, positions=positions, value_residual=True).eval()
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    x = images(40, 40)
    assert difference(model(x), plain(x)) > 1e-3
    for block in model.blocks[1:]:
        block.attention.value_mix.weights.data = torch.tensor([0.0, 1.0])
    assert difference(model(x), plain(x)) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("streams", [None, 2])
def test_checkpointing_gives_the_same_gradients(form: Any, streams: int | None) -> None:
    model = randomise(ViT(**SMALL, value_residual=form, hyper_connections=streams))
    targets = torch.tensor([1, 2])
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        F.cross_entropy(model(images(40, 40)), targets).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))
    assert min(gradient.abs().max() for gradient in gradients[0]) > 0


@pytest.mark.parametrize("form", FORMS)
def test_pickles(form: Any) -> None:
    model = randomise(ViT(**SMALL, value_residual=form, positions="rope"))
    again = pickle.loads(pickle.dumps(model))
    assert again(images(40, 40)).equal(model(images(40, 40)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"value_residual": "dense"}, "learnable, identity, gated, sparse; got 'dense'"),
        ({"value_residual": (0, 1)}, r"layers must be .*, got \(0, 1\)"),
        ({"value_residual": (3,)}, r"must be 1 to 2, got \[3\]"),
        ({"value_residual": ()}, r"value_residual must be .*, got \(\)"),
        ({"value_residual": True, "depth": 1}, "needs a depth of at least 2, got 1"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(**{**SMALL, **wrong})


def test_methods_that_rewrite_attention_refuse_it() -> None:
    model = ViT(**SMALL, value_residual=True)
    with pytest.raises(ValueError, match="plain"):
        MP3(vit=model, masking_ratio=0.75)
    with pytest.raises(ValueError, match="plain"):
        Adapter(vit=model, num_classes=2)
