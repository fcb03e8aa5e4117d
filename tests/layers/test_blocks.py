import copy
from math import erf, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.checking import traces
from vit_pytorch.layers.blocks import (
    ACTIVATIONS,
    GATED,
    Block,
    DropPath,
    FeedForward,
    LayerScale,
    activation,
    collect_outputs,
    set_grad_checkpointing,
)


class Double(nn.Module):
    def forward(self, x, inputs=None):
        return 2 * x


class Tower(nn.Module):
    """Blocks with batch norms, in a loop."""

    def __init__(self, depth):
        super().__init__()
        norm = nn.BatchNorm1d
        self.blocks = nn.ModuleList(Block(4, Double(), nn.Linear(4, 4), norm=norm) for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_activations():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    want = {
        "gelu": [v * (1 + erf(v / sqrt(2))) / 2 for v in x.tolist()],
        "gelu_tanh": x * (1 + torch.tanh(sqrt(2 / torch.pi) * (x + 0.044715 * x**3))) / 2,
        "quickgelu": x / (1 + torch.exp(-1.702 * x)),
        "hardswish": x * (x + 3).clamp(0, 6) / 6,
        "relu": x.clamp(min=0),
        "relu2": x.clamp(min=0) ** 2,
        "relu6": x.clamp(0, 6),
        "silu": x / (1 + torch.exp(-x)),
        "star_relu": x.clamp(min=0) ** 2,
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


@torch.no_grad()
def test_gated_feedforwards():
    """The hidden layer is two, one of which gates the other; each starts as a layer of its own does."""
    x = torch.randn(2, 3, 6)
    for act in GATED:
        layer = FeedForward(6, 10, act=act)
        first, second = (x @ layer.to_hidden.weight.T).chunk(2, dim=-1)
        gated = {
            "swiglu": first / (1 + torch.exp(-first)) * second,
            "geglu": first * second * (1 + torch.erf(second / sqrt(2))) / 2,
        }[act]
        torch.testing.assert_close(layer(x), gated @ layer.to_out.weight.T)
        assert layer.to_hidden.weight.abs().max() == pytest.approx(sqrt(6 / 16), rel=0.1)


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


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_block(layer_scale):
    block = Block(6, Double(), FeedForward(6, 8), norm=nn.LayerNorm, layer_scale=layer_scale)
    x = torch.randn(2, 3, 6)
    scale = layer_scale or 1.0
    after = x + scale * 2 * F.layer_norm(x, (6,))
    want = after + scale * block.feedforward(F.layer_norm(after, (6,)))
    torch.testing.assert_close(block(x), want)


def test_a_dropped_path_leaves_the_sample():
    block = Block(6, Double(), Double(), drop_path=0.5)
    x = torch.randn(400, 3, 6)
    same = (block(x) == x).flatten(1).all(dim=1).float().mean().item()
    assert same == pytest.approx(0.25, abs=0.07)
    assert not (block.eval()(x) == x).any()


def test_outputs_are_collected():
    tower = Tower(4).eval()
    x = torch.randn(5, 4)
    steps = [x]
    for block in tower.blocks:
        steps.append(block(steps[-1]))
    with collect_outputs([tower.blocks[0], tower.blocks[2]]) as outputs:
        assert tower(x).equal(steps[4])
    assert [output.equal(steps[i]) for output, i in zip(outputs, (1, 3), strict=True)] == [True, True]
    calls = []
    tower.blocks[3].register_forward_hook(lambda *_: calls.append(1))
    with collect_outputs([tower.blocks[2]], stop_early=True) as outputs:
        tower(x)
    assert outputs[0].equal(steps[3])
    assert calls == []
    with (
        collect_outputs(tower.blocks),
        pytest.raises(RuntimeError, match="by one thread at a time"),
        collect_outputs(tower.blocks),
    ):
        pass
    assert tower(x).equal(steps[4])


def test_checkpointing_needs_layers():
    with pytest.raises(ValueError, match="Linear has no layers"):
        set_grad_checkpointing(nn.Linear(2, 2))


def test_checkpointing_keeps_fewer_activations():
    tower = Tower(3)
    x = torch.randn(5, 4, requires_grad=True)
    counts = []
    for enable in (False, True):
        set_grad_checkpointing(tower, enable)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            tower(x)
        counts.append(len(kept))
    assert counts[1] < counts[0] / 2


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=traces)])
def test_statistics_and_gradients_under_checkpointing(compiled):
    """A batch counts once in running statistics, in code as it is written and in compiled code."""
    torch.manual_seed(0)
    plain = Tower(2)
    tower = copy.deepcopy(plain)
    set_grad_checkpointing(tower)
    x = torch.randn(5, 4)
    plain(x).square().sum().backward()
    run = torch.compile(tower, backend="aot_eager") if compiled else tower
    run(x).square().sum().backward()
    for ours, theirs in zip(tower.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(dict(tower.named_buffers()), dict(plain.named_buffers()))
