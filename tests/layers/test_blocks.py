import copy
from math import erf, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_pytorch.layers.blocks import (
    ACTIVATIONS,
    Block,
    DropPath,
    Encoder,
    FeedForward,
    LayerScale,
    Residual,
    activation,
)


class Add(nn.Module):
    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def forward(self, x):
        return x + self.amount


def test_activations():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    want = {
        "gelu": [v * (1 + erf(v / sqrt(2))) / 2 for v in x.tolist()],
        "gelu_tanh": x * (1 + torch.tanh(sqrt(2 / torch.pi) * (x + 0.044715 * x**3))) / 2,
        "quickgelu": x / (1 + torch.exp(-1.702 * x)),
        "hardswish": x * (x + 3).clamp(0, 6) / 6,
        "relu": x.clamp(min=0),
        "relu6": x.clamp(0, 6),
        "silu": x / (1 + torch.exp(-x)),
    }
    assert want.keys() == ACTIVATIONS.keys()
    for name, values in want.items():
        torch.testing.assert_close(activation(name)(x), torch.as_tensor(values, dtype=x.dtype))


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"one of gelu, .*; got 'swish'"):
        activation("swish")


def test_feedforward():
    layer = FeedForward(6, 10, dropout=0.5)
    x = torch.randn(2, 3, 6)
    assert not layer(x).equal(layer(x))
    layer.eval()
    hidden = F.gelu(x @ layer.to_hidden.weight.T + layer.to_hidden.bias)
    torch.testing.assert_close(layer(x), hidden @ layer.to_out.weight.T + layer.to_out.bias)


def test_layer_scale():
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(LayerScale(6, 0.1)(x), 0.1 * x)


def test_drop_path():
    """Whole samples are dropped, what is kept makes up for them, and eval drops nothing."""
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    kept = y[:, 0, 0] != 0
    assert y[kept].equal(torch.full_like(y[kept], 1 / 0.75))
    assert not y[~kept].any()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_drop_path_range(p):
    with pytest.raises(ValueError, match=rf"\[0, 1\), got {p}"):
        DropPath(p)


def test_residual():
    x = torch.randn(2, 3, 6)
    norm, branch, scale = nn.LayerNorm(6), nn.Linear(6, 6), LayerScale(6, 0.3)
    assert Residual(branch, norm, [scale])(x).equal(x + scale(branch(norm(x))))
    assert Residual(branch, norm)(x).equal(x + branch(norm(x)))


def test_block_applies_attention_first():
    double, increment = Residual(nn.Identity(), nn.Identity()), Residual(Add(1), nn.Identity())
    x = torch.ones(1, 2, 3)
    assert Block(double, increment)(x).equal(torch.full_like(x, 5.0))


def test_encoder_passes_the_layer():
    encoder = Encoder(lambda layer: Add(10**layer), depth=4)
    x = torch.zeros(1, 2, 3)
    assert encoder(x).equal(torch.full_like(x, 1111.0))
    assert [step[0, 0, 0].item() for step in encoder.steps(x)] == [1, 11, 111, 1111]


@pytest.mark.parametrize(
    ("layers", "stop_early", "last", "taken"),
    [
        ([0, 2], False, 1111, [1, 111]),
        ([0, 2], True, 111, [1, 111]),
        ([3], True, 1111, [1111]),
        ([], False, 1111, []),
    ],
)
def test_intermediates(layers, stop_early, last, taken):
    encoder = Encoder(lambda layer: Add(10**layer), depth=4)
    x, found = encoder.intermediates(torch.zeros(1, 2, 3), layers, stop_early=stop_early)
    assert x[0, 0, 0] == last
    assert [tokens[0, 0, 0].item() for tokens in found] == taken


@pytest.mark.parametrize("compiled", [False, True])
def test_statistics_and_gradients_under_checkpointing(compiled):
    """A batch counts once in running statistics, in code as it is written and in compiled code."""
    torch.manual_seed(0)
    plain = Encoder(lambda layer: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU()), depth=2)
    encoder = copy.deepcopy(plain)
    encoder.grad_checkpointing = True
    x = torch.randn(5, 4)
    plain(x).square().sum().backward()
    run = torch.compile(encoder, backend="aot_eager") if compiled else encoder
    run(x).square().sum().backward()
    for ours, theirs in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(dict(encoder.named_buffers()), dict(plain.named_buffers()))
