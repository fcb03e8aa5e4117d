import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_pytorch.layers import linear as module
from vit_pytorch.layers.linear import Linear, linear


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"], autouse=True)
def _library(request, monkeypatch):
    monkeypatch.setattr(module, "MKL_IS_SLOW", request.param)


@pytest.mark.parametrize("shape", [(3, 100), (200,), (2, 5, 7, 9), (1, 1), (0, 70)])
@pytest.mark.parametrize("bias", [False, True])
def test_is_linear(shape, bias):
    layer = Linear(12, 20, bias=bias)
    x = torch.randn(*shape, 12, requires_grad=True)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_gradients():
    layer = Linear(12, 20)
    x = torch.randn(4, 50, 12, requires_grad=True)
    weight = torch.randn(4, 50, 20)
    inputs = (x, layer.weight, layer.bias)
    ours = torch.autograd.grad((layer(x) * weight).sum(), inputs)
    theirs = torch.autograd.grad((F.linear(*inputs) * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
        assert a.stride() == b.stride()


def test_views_that_are_not_contiguous():
    layer = Linear(12, 20)
    x = torch.randn(12, 80, 3).permute(2, 1, 0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_other_types():
    layer = Linear(12, 20).double()
    assert layer(torch.randn(100, 12, dtype=torch.float64)).dtype == torch.float64
    layer = Linear(12, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(100, 12)).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(100, 12).bfloat16())


def test_is_a_linear_layer():
    layer = Linear(12, 20)
    plain = nn.Linear(12, 20)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(100, 12)
    torch.testing.assert_close(copy.deepcopy(layer)(x), plain(x))
    assert linear(x, plain.weight).shape == (100, 20)
