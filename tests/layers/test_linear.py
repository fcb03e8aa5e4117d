"""Linear layers by oneDNN: a switch of the process that changes no layer."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.checking import traces
from vit_pytorch.layers import linear as module
from vit_pytorch.layers.linear import MKL_LINEAR, use_onednn_linear


@pytest.fixture(autouse=True)
def _switch() -> Iterator[None]:
    use_onednn_linear()
    yield
    use_onednn_linear(False)
    assert F.linear is MKL_LINEAR


@pytest.mark.parametrize("shape", [(3, 100), (200,), (2, 5, 7, 9), (1, 1), (0, 70)])
@pytest.mark.parametrize("bias", [False, True])
def test_is_linear(shape, bias):
    layer = nn.Linear(12, 20, bias=bias)
    x = torch.randn(*shape, 12, requires_grad=True)
    torch.testing.assert_close(layer(x), MKL_LINEAR(x, layer.weight, layer.bias))


def test_gradients():
    layer = nn.Linear(12, 20)
    x = torch.randn(4, 50, 12, requires_grad=True)
    weight = torch.randn(4, 50, 20)
    inputs = (x, layer.weight, layer.bias)
    ours = torch.autograd.grad((layer(x) * weight).sum(), inputs)
    theirs = torch.autograd.grad((MKL_LINEAR(*inputs) * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
        assert a.stride() == b.stride()


def test_views_that_are_not_contiguous():
    layer = nn.Linear(12, 20)
    x = torch.randn(12, 80, 3).permute(2, 1, 0)
    torch.testing.assert_close(layer(x), MKL_LINEAR(x, layer.weight, layer.bias))


@traces
def test_other_types_and_traced_graphs_are_left_alone(monkeypatch):
    layer = nn.Linear(12, 20)
    x = torch.randn(100, 12)
    want = layer(x)
    monkeypatch.setattr(F, "conv2d", None)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), want)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), want)
    assert layer.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16


@pytest.mark.parametrize(("text", "slow"), [("vendor_id : AuthenticAMD", True), ("GenuineIntel", False)])
def test_processors_are_told_apart(text, slow, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    assert module.mkl_is_slow() == (slow and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize("slow", [False, True])
def test_commands_take_the_faster_one_and_put_it_back(slow, monkeypatch):
    monkeypatch.setattr(module, "mkl_is_slow", lambda: slow)
    use_onednn_linear(False)
    with module.faster_linear():
        assert (F.linear is module.onednn_linear) == slow
    assert F.linear is MKL_LINEAR
