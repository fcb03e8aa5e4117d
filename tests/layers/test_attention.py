from functools import partial

import pytest
import torch
from torch import nn

from tests.tolerances import tolerance
from vit_pytorch.layers.attention import (
    Attention,
    CrossAttention,
    ExplicitAttention,
    FusedAttention,
    heads_per_stage,
)


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 4, 7, 6).unbind(0)


def test_against_torch():
    ours = Attention(24, heads=4, dim_head=6)
    reference = nn.MultiheadAttention(24, 4, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = ours.to_qkv.weight, ours.to_qkv.bias
    reference.out_proj = ours.to_out
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), reference(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("scale", [None, 0.3])
def test_kernels_agree(qkv, scale):
    fused, explicit = FusedAttention(scale=scale), ExplicitAttention(scale=scale)
    seen = []
    explicit.weights.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    torch.testing.assert_close(fused(*qkv), explicit(*qkv))
    torch.testing.assert_close(seen[0].sum(dim=-1), torch.ones(2, 4, 7))
    assert (seen[0] >= 0).all()


@pytest.mark.parametrize("keys", [7, 1100])
def test_values_of_another_width(keys):
    """Each channel of the values is mixed alike, so that some of them can be mixed alone."""
    q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, 4, keys, 6), torch.randn(2, 4, keys, 12)
    bias = torch.randn(4, 5, keys)
    halves = [FusedAttention()(q, k, half, bias) for half in v.chunk(2, dim=-1)]
    for kernel in (FusedAttention(), ExplicitAttention()):
        torch.testing.assert_close(kernel(q, k, v, bias), torch.cat(halves, dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks(qkv, dtype):
    """A key that a mask hides is as good as absent; a bias of minus infinity hides, too."""
    q, k, v = (part.to(dtype) for part in qkv)
    visible = torch.tensor([True, True, False, True, False, True, True])
    bias = torch.zeros(7, dtype=dtype).masked_fill(~visible, -torch.inf)
    expected = FusedAttention()(q, k[:, :, visible], v[:, :, visible])
    # Scaled queries, scores, masked scores, weights and the output may each be rounded.
    close = tolerance(expected, terms=7, roundings=5)
    for kernel in (FusedAttention(), ExplicitAttention()):
        for mask in (visible, bias):
            torch.testing.assert_close(kernel(q, k, v, mask.expand(7, 7)), expected, **close)


@pytest.mark.parametrize("learned", [False, True])
def test_bias_of_each_head(qkv, learned):
    """A bias without an axis for the samples is that of all; it receives its gradient."""
    q, k, v = qkv
    bias = torch.randn(4, 7, 7, requires_grad=learned)
    want = torch.stack([((q[i] @ k[i].mT) / 6**0.5 + bias).softmax(dim=-1) @ v[i] for i in range(2)])
    got = FusedAttention()(q, k, v, bias)
    torch.testing.assert_close(got, want)
    if learned:
        ours, theirs = (torch.autograd.grad(x.square().sum(), bias)[0] for x in (got, want))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="the kernel is a processor's")
def test_bias_of_each_head_takes_the_fused_kernel(qkv):
    with torch.inference_mode(), torch.profiler.profile() as profile:
        FusedAttention()(*qkv, torch.randn(4, 7, 7))
    names = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names


def test_a_learned_mask_learns(qkv):
    masks = [torch.zeros(4, 7, 7, requires_grad=True) for _ in range(2)]
    for kernel, mask in zip((FusedAttention(), ExplicitAttention()), masks, strict=True):
        kernel(*qkv, mask).square().sum().backward()
    torch.testing.assert_close(masks[0].grad, masks[1].grad)
    assert masks[0].grad.any()
    torch.manual_seed(0)
    dropped = FusedAttention(0.5)(*qkv, masks[0])
    assert not dropped.allclose(FusedAttention(0.5)(*qkv, masks[0]))
    torch.testing.assert_close(FusedAttention(0.5).eval()(*qkv, masks[0]), FusedAttention()(*qkv, masks[0]))


def test_heads_per_stage():
    assert heads_per_stage((64, 96), None) == (2, 3)
    assert heads_per_stage((64, 96), (4, 1)) == (4, 1)
    for heads, message in (
        (None, r"dims must be multiples of 32"),
        ((4,), r"one for each of 2 stages, got \(4,\)"),
        ((5, 4), r"got \(48, 96\) and \(5, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            heads_per_stage((48, 96), heads)


def test_cross_attention_from_the_class_token():
    """The class token's row of self-attention with the same weights."""
    ours, full = CrossAttention(24, heads=4, dim_head=6), Attention(24, heads=4, dim_head=6)
    full.to_out = ours.to_out
    full.to_qkv.weight.data = torch.cat([ours.to_q.weight, ours.to_kv.weight])
    full.to_qkv.bias.data = torch.cat([ours.to_q.bias, ours.to_kv.bias]).normal_()
    ours.to_q.bias.data, ours.to_kv.bias.data = full.to_qkv.bias.data.split([24, 48])
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x[:, :1], x), full(x)[:, :1])


def test_scale(qkv):
    """Without a scale every key counts the same; with a huge one only the best."""
    q, k, v = qkv
    uniform = FusedAttention(scale=0.0)(q, k, v)
    torch.testing.assert_close(uniform, v.mean(dim=2, keepdim=True).expand_as(v))
    best = (q @ k.transpose(-2, -1)).argmax(dim=-1, keepdim=True).expand_as(v)
    torch.testing.assert_close(FusedAttention(scale=1e6)(q, k, v), v.gather(2, best))


@pytest.mark.parametrize("kernel", [FusedAttention, ExplicitAttention])
def test_dropout_in_training_only(qkv, kernel):
    attend = kernel(dropout=0.5)
    assert not attend(*qkv).equal(attend(*qkv))
    attend.eval()
    torch.testing.assert_close(attend(*qkv), FusedAttention()(*qkv))


def test_qk_norm():
    attention = Attention(24, heads=4, dim_head=6, qk_norm=partial(nn.LayerNorm, eps=1e-6))
    q, k, v = attention.project(torch.randn(2, 7, 24))
    for normed in (q, k):
        torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 4, 7), atol=1e-5, rtol=0)
        torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(2, 4, 7), atol=1e-3, rtol=0)
    assert v.var(-1).std() > 1e-3


def test_options():
    attention = Attention(
        24, heads=3, dim_head=5, qkv_bias=False, out_bias=False, dropout=0.5, kernel=ExplicitAttention
    )
    assert isinstance(attention.kernel, ExplicitAttention)
    assert [tuple(parameter.shape) for parameter in attention.parameters()] == [(45, 24), (24, 15)]
    x = torch.randn(2, 7, 24)
    assert (attention(x) == 0).any()
    assert not (attention.eval()(x) == 0).any()
