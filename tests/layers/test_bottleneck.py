from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_pytorch.layers.conv import InvertedBottleneck, OnMap, SqueezeExcite, pool_map


def channels_lie_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


def test_convolutions_on_a_map_find_its_channels_last():
    seen = []
    on_map = OnMap(nn.Conv2d(3, 4, 3, padding=1))
    on_map.layers[0].register_forward_hook(lambda module, inputs, out: seen.extend([inputs[0], out]))
    image = torch.randn(2, 3, 5, 6)
    got = on_map(image.permute(0, 2, 3, 1))
    torch.testing.assert_close(got.permute(0, 3, 1, 2), on_map.layers[0](image))
    assert all(map(channels_lie_last, seen[:2]))
    assert got.is_contiguous()


def test_the_gradient_of_pooling_has_its_channels_last():
    x = torch.randn(2, 5, 6, 4).permute(0, 3, 1, 2).requires_grad_()
    pooled = pool_map(x)
    torch.testing.assert_close(pooled, x.mean(dim=(2, 3)))
    gradient = torch.autograd.grad(pooled.square().sum(), x)[0]
    assert channels_lie_last(gradient)
    torch.testing.assert_close(gradient, (2 * pooled / 30)[:, :, None, None].expand_as(x))


@pytest.mark.parametrize(
    ("hard", "gate"), [(False, lambda y: 1 / (1 + (-y).exp())), (True, lambda y: ((y + 3) / 6).clamp(0, 1))]
)
def test_squeeze_and_excitation_in_plain_steps(hard, gate):
    layer = SqueezeExcite(4, 3, act="relu", hard=hard)
    layer.excite.bias.data = torch.tensor([-5.0, -1.0, 1.0, 5.0])
    x = torch.randn(2, 4, 5, 6)
    want = gate(layer.excite(layer.squeeze(x.mean(dim=(2, 3))).relu()))
    torch.testing.assert_close(layer(x), x * want[:, :, None, None])


@pytest.mark.parametrize("excite", [None, partial(SqueezeExcite, hidden_dim=3)])
@pytest.mark.parametrize("norm_out", [False, True])
def test_inverted_bottleneck_in_plain_steps(excite, norm_out):
    layer = InvertedBottleneck(
        4,
        6,
        8,
        depthwise=lambda width: nn.Conv2d(width, width, 3, 2, 1, groups=width),
        excite=excite,
        norm_out=norm_out,
    )
    x = torch.randn(2, 5, 6, 4)
    got = layer(x)

    def norm(y):
        return F.batch_norm(y, None, None, training=True)

    middle = layer.depthwise.layers
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.expand.weight[:, :, None, None])
    y = F.silu(norm(middle[2](F.silu(norm(y)))))
    if excite is not None:
        y = middle[5](y)
    y = F.conv2d(y, layer.project.weight[:, :, None, None], layer.project.bias)
    y = norm(y) if norm_out else y
    torch.testing.assert_close(got.permute(0, 3, 1, 2), y, rtol=1e-4, atol=1e-5)
    assert (layer.project.bias is None) is norm_out
    assert len(middle) == (5 if excite is None else 6)
