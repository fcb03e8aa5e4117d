"""Rollout in closed form, against plain loops, and where it cannot be followed."""

import numpy as np
import pytest
import torch

from vit_pytorch.analysis import TokenLayout, read_out, relevance_of_maps, rollout_of_maps


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


def test_uniform_attention():
    layers, tokens = 3, 7
    flow = rollout_of_maps([torch.full((2, 4, tokens, tokens), 1 / tokens)] * layers)
    kept = 0.5**layers
    expected = kept * torch.eye(tokens) + (1 - kept) / tokens
    torch.testing.assert_close(flow, expected.expand(2, -1, -1))


def test_identity_attention():
    eye = torch.eye(5).expand(1, 3, 5, 5)
    torch.testing.assert_close(rollout_of_maps([eye] * 4), torch.eye(5)[None])


def test_without_residual_one_layer_is_its_map():
    maps = random_maps(2, 3, 6, 6)
    torch.testing.assert_close(rollout_of_maps([maps], identity=0.0), maps.mean(dim=1))


@pytest.mark.parametrize("fuse", ["mean", "max", "min"])
def test_against_loops(fuse):
    maps = [random_maps(2, 3, 6, 6, seed=seed) for seed in range(3)]
    flow = rollout_of_maps(maps, fuse=fuse, identity=0.3)
    for sample in range(2):
        reached = np.eye(6)
        for layer in maps:
            fused = getattr(np, fuse)(layer[sample].double().numpy(), axis=0)
            mixed = np.zeros((6, 6))
            for query in range(6):
                for key in range(6):
                    mixed[query, key] = 0.7 * fused[query, key] / fused[query].sum() + 0.3 * (query == key)
            reached = np.array([[mixed[i] @ reached[:, j] for j in range(6)] for i in range(6)])
        np.testing.assert_allclose(flow[sample], reached, atol=1e-6)
    torch.testing.assert_close(flow.sum(dim=2), torch.ones(2, 6))


def test_class_token_that_joins_late():
    """As the full matrices say, in which the patches keep themselves where the class token alone attends."""
    patches = [random_maps(2, 3, 4, 4, seed=seed) for seed in range(2)]
    late = [random_maps(2, 3, 1, 5, seed=seed) for seed in (2, 3)]
    flow = rollout_of_maps([*patches, *late])
    expected = torch.eye(5).repeat(2, 1, 1)
    for layer in patches:
        whole = torch.eye(5).repeat(2, 1, 1)
        whole[:, 1:, 1:] = (layer.mean(dim=1) + torch.eye(4)) / 2
        expected = whole @ expected
    for layer in late:
        whole = torch.eye(5).repeat(2, 1, 1)
        whole[:, 0] = (layer.mean(dim=1)[:, 0] + torch.eye(5)[0]) / 2
        expected = whole @ expected
    torch.testing.assert_close(flow, expected)


def test_pooling_reads_the_patches_behind_the_prefix():
    layer, pool = random_maps(2, 3, 6, 6), random_maps(2, 2, 1, 4, seed=1)
    flow = rollout_of_maps([layer, pool])
    mixed = (layer.mean(dim=1) + torch.eye(6)) / 2
    torch.testing.assert_close(flow, pool.mean(dim=1) @ mixed[:, 2:])


def test_a_row_that_is_zero_after_fusing_becomes_uniform():
    heads = torch.stack([torch.eye(4), torch.eye(4)[[1, 0, 2, 3]]])[None]
    flow = rollout_of_maps([heads], fuse="min", identity=0.0)
    torch.testing.assert_close(flow[0, :2], torch.full((2, 4), 0.25))
    torch.testing.assert_close(flow[0, 2:], torch.eye(4)[2:])


def test_half_precision_is_multiplied_in_single():
    maps = [random_maps(2, 3, 6, 6, seed=seed).bfloat16() for seed in range(4)]
    expected = rollout_of_maps([layer.float() for layer in maps])
    torch.testing.assert_close(rollout_of_maps(maps), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        relevance_of_maps(maps, maps), relevance_of_maps(*[[m.float() for m in maps]] * 2)
    )


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {}, "at least 1 layer, got 0"),
        ([random_maps(1, 2, 5, 5)], {"fuse": "median"}, "fuse must be one of mean, max, min; got 'median'"),
        ([random_maps(1, 2, 5, 5)], {"identity": 1.5}, r"in \[0, 1\], got 1.5"),
        ([random_maps(1, 2, 5, 5) - 0.5], {}, "at least 0, got -0"),
        ([random_maps(1, 2, 5, 5), random_maps(1, 2, 3, 5)], {}, "5 tokens .* 3 queries and 5 keys"),
        ([random_maps(1, 2, 9, 9), random_maps(1, 2, 5, 5)], {}, "9 tokens .* 5 queries and 5 keys"),
        ([random_maps(1, 2, 5, 5), random_maps(4, 2, 5, 5)], {}, "1 samples in layer 1, got 4; .* windows"),
        ([random_maps(1, 2, 1, 4), random_maps(1, 2, 4, 4)], {}, "in layer 0, got 1 queries and 4 keys"),
    ],
)
def test_what_cannot_be_followed(maps, options, message):
    with pytest.raises(ValueError, match=message):
        rollout_of_maps(maps, **options)


def test_reading_out():
    flow = torch.arange(49.0).view(1, 7, 7)
    of_class = read_out(flow, TokenLayout((2, 3), (4, 4), prefix=1, class_token=True))
    torch.testing.assert_close(of_class, flow[:, 0, 1:].view(1, 2, 3))
    of_mean = read_out(flow, TokenLayout((2, 3), (4, 4), prefix=1))
    torch.testing.assert_close(of_mean, flow[:, 1:, 1:].mean(dim=1).view(1, 2, 3))
