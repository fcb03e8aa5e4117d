"""Hyper-connections: the paper's algorithm written out, and the residual network that they start as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT
from vit_pytorch.layers.hyper_connections import HyperConnection, HyperConnections
from vit_pytorch.mp3 import MP3
from vit_pytorch.training.optim import parameter_groups

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


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_starts_as_the_residual_network(streams: int, static: bool) -> None:
    torch.manual_seed(0)
    plain = ViT(**SMALL).eval()
    model = ViT(**SMALL, hyper_connections=HyperConnections(streams, not static)).eval()
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert all(".connect1." in name or ".connect2." in name for name in missing.missing_keys)
    # The streams are summed, so that tokens are as many times as long, which the final norm takes away.
    _, ours = model.forward_intermediates(images(40, 40))
    _, theirs = plain.forward_intermediates(images(40, 40))
    for tokens, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(tokens, streams * expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(model(images(40, 40)), plain(images(40, 40)), atol=1e-5)


def step(connection: HyperConnection, branch: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """Run one layer on one sample (n s d), one token and stream at a time (algorithm 2)."""
    tokens, streams, _ = h.shape
    read, mixes, shares = [], [], []
    for token in range(tokens):
        a, mix, b = connection.alpha[:, 0], connection.alpha[:, 1:], connection.beta
        if connection.dynamic:
            normed = connection.norm(h[token])
            w_a, w_mix, w_b = connection.to_alpha_beta.weight.split([1, streams, 1])
            a = a + connection.alpha_scale * torch.tanh(normed @ w_a[0])
            mix = mix + connection.alpha_scale * torch.tanh(normed @ w_mix.T)
            b = b + connection.beta_scale * torch.tanh(normed @ w_b[0])
        read.append(sum(a[i] * h[token, i] for i in range(streams)))
        mixes.append(mix)
        shares.append(b)
    out = branch(torch.stack(read)[None])[0]
    found = torch.empty_like(h)
    for token in range(tokens):
        for j in range(streams):
            kept = sum(mixes[token][i, j] * h[token, i] for i in range(streams))
            found[token, j] = kept + shares[token][j] * out[token]
    return found


@torch.inference_mode()
@pytest.mark.parametrize("static", [False, True])
def test_equals_the_algorithm(static: bool) -> None:
    model = randomise(ViT(**SMALL, hyper_connections=HyperConnections(3, not static), layer_scale=0.1))
    x = images(40, 40)
    logits = []
    for tokens in model.embed(x):
        h = tokens[:, None].repeat(1, 3, 1)
        for block in model.blocks:
            h = step(block.connect1, lambda x, b=block: b.scale1(b.attention(b.norm1(x))), h)
            h = step(block.connect2, lambda x, b=block: b.scale2(b.feedforward(b.norm2(x))), h)
        logits.append(model.head(model.norm(h.sum(dim=1))[0]))
    assert difference(model(x), torch.stack(logits)) < TOLERANCE


def test_every_layer_reads_another_stream() -> None:
    model = ViT(**SMALL, hyper_connections=4)
    layers = [part for part in model.modules() if isinstance(part, HyperConnection)]
    assert [layer.alpha[:, 0].argmax().item() for layer in layers] == [0, 1, 2, 3, 0, 1]
    for layer in layers:
        assert layer.alpha[:, 0].sum() == 1
        assert layer.alpha[:, 1:].equal(torch.eye(4))
        assert layer.beta.tolist() == [1.0] * 4
        assert layer.alpha_scale.item() == layer.beta_scale.item() == pytest.approx(0.01)
        assert not layer.to_alpha_beta.weight.any()


def test_static_parts_do_not_decay() -> None:
    model = ViT(**SMALL, hyper_connections=2)
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    connection = model.blocks[0].connect1
    assert id(connection.to_alpha_beta.weight) in decayed
    assert id(connection.alpha) not in decayed
    assert id(connection.beta) not in decayed


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match=r"hyper_connections must be .*, got 0"):
        ViT(**SMALL, hyper_connections=0)
    with pytest.raises(ValueError, match="hyper_static is a setting of hyper_connections='hyper'"):
        ViT(**SMALL, hyper_static=True)
    with pytest.raises(ValueError, match="plain"):
        MP3(vit=ViT(**SMALL, hyper_connections=2), masking_ratio=0.75)
