import pytest
import torch
import torch.nn.functional as F

from vit_pytorch.layers.patches import PrefixTokens
from vit_pytorch.layers.tokens import AttentionPool


def test_prefix_tokens():
    prefix = PrefixTokens(6, class_token=True, registers=3)
    assert len(prefix) == 4
    x = torch.randn(2, 5, 6)
    tokens = torch.cat([prefix.class_token, prefix.registers], dim=1)
    assert prefix(x).equal(torch.cat([tokens.expand(2, -1, -1), x], dim=1))


@pytest.mark.parametrize(("class_token", "registers"), [(True, 0), (False, 2), (False, 0)])
def test_some_prefix_tokens(class_token, registers):
    prefix = PrefixTokens(6, class_token=class_token, registers=registers)
    assert len(prefix) == class_token + registers
    assert prefix(torch.randn(2, 5, 6)).shape == (2, len(prefix) + 5, 6)


def test_attention_pool_formula():
    pool = AttentionPool(8, heads=2, mlp_dim=12)
    x = torch.randn(3, 5, 8)
    q, (k, v) = pool.to_q(pool.query[0]), pool.to_kv(x).chunk(2, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = F.softmax(q[:, head] @ k[..., head].transpose(1, 2) / 4**0.5, dim=-1)
        heads.append(weights @ v[..., head])
    pooled = pool.to_out(torch.cat(heads, dim=-1))[:, 0]
    torch.testing.assert_close(pool(x), pooled + pool.mlp(pool.norm(pooled)))


def test_attention_pool_ignores_order():
    pool = AttentionPool(8, heads=2, mlp_dim=12)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(pool(x.flip(1)), pool(x))


def test_attention_pool_width():
    with pytest.raises(ValueError, match="dim must be a multiple of heads, got dim=9 and heads=2"):
        AttentionPool(9, heads=2, mlp_dim=12)
