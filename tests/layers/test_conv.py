import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_pytorch.layers.blocks import Block, FeedForward
from vit_pytorch.layers.conv import PositionedBlock, PositionGenerator
from vit_pytorch.layers.init import init_convs


def test_position_generator_adds_each_channels_own_convolution():
    generator = PositionGenerator(3, 5)
    x = torch.randn(2, 4, 6, 3)
    want = x.clone()
    for channel in range(3):
        plane = x[..., channel][:, None]
        conv = F.conv2d(plane, generator.conv.weight[channel][None], padding=2)
        want[..., channel] += conv[:, 0] + generator.conv.bias[channel]
    torch.testing.assert_close(generator(x), want)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="is odd, got 2"):
        PositionGenerator(3, 2)


def test_places_come_last_in_a_positioned_block():
    generator = PositionGenerator(6)
    block = PositionedBlock(6, nn.Identity(), FeedForward(6, 8), positions=generator).eval()
    block.attention.forward = lambda x, inputs: 2 * x
    plain = Block(6, block.attention, block.feedforward)
    plain.norm1, plain.norm2 = block.norm1, block.norm2
    x = torch.randn(2, 3, 4, 6)
    assert block(x).equal(generator(plain(x)))


def test_convolutions_start_by_the_fan_out_of_a_group():
    torch.manual_seed(0)
    convs = nn.ModuleList([nn.Conv2d(64, 256, 3), nn.Conv2d(256, 256, 3, groups=256), nn.Linear(8, 8)])
    before = convs[2].weight.clone()
    init_convs(convs)
    for conv, fan_out in ((convs[0], 256 * 9), (convs[1], 9)):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert not conv.bias.any()
    assert convs[2].weight.equal(before)
