"""Positions and filters: against loops, and components that were put there."""

import math

import pytest
import torch

from vit_pytorch.analysis import embedding_filters, position_similarity, similarity_of_table
from vit_pytorch.layers.positions import FactorisedPositions, LearnedPositions, SinCosPositions, sincos_table


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 2)], ids=str)
def test_against_loops(grid):
    torch.manual_seed(0)
    positions = LearnedPositions(grid, 8, prefix=1)
    found = position_similarity(positions)
    assert found.shape == (*grid, *grid)
    rows = positions.table[0, 1:].tolist()
    expected = torch.tensor([[cosine(a, b) for b in rows] for a in rows])
    torch.testing.assert_close(found.reshape(expected.shape), expected)


def test_fixed_positions_have_a_closed_form():
    """Along a row, sin-cos embeddings are alike by the mean of cos(distance x frequency)."""
    found = position_similarity(SinCosPositions((6, 6), 32))
    frequency = 10_000.0 ** -torch.linspace(0, 1, 8)
    apart = torch.stack([torch.cos(d * frequency).mean() for d in range(6)])
    torch.testing.assert_close(found[2, 0, 2], (1 + apart) / 2)
    torch.testing.assert_close(found, similarity_of_table(sincos_table((6, 6), 32), (6, 6)))


def test_factorised_positions():
    """With rows and columns that are orthogonal, half is alike in the same row or column."""
    positions = FactorisedPositions((3, 3), 6)
    with torch.no_grad():
        positions.rows.copy_(torch.eye(6)[None, :3])
        positions.columns.copy_(torch.eye(6)[None, 3:])
    found = position_similarity(positions)
    same = torch.eye(3)
    expected = (same[:, None, :, None] + same[None, :, None, :]) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("vit_tiny_patch16_224", (8, 8)),
        ("navit_tiny_patch16", (8, 8)),
        ("xcit_nano_12_p16_224", (8, 8)),
        ("pit_ti_224", (7, 7)),
    ],
)
def test_models(build, name, grid):
    model = build(name)
    found = position_similarity(model)
    assert found.shape == (*grid, *grid)
    same = found.flatten(2).flatten(0, 1).diagonal()
    torch.testing.assert_close(same, torch.ones_like(same))
    assert position_similarity(model, (2, 3)).shape == (2, 3, 2, 3)


@pytest.mark.parametrize(
    ("name", "overrides"), [("crossvit_tiny_240", {}), ("vit_tiny_patch16_224", {"positions": "none"})]
)
def test_models_without_positions_of_one_grid(build, name, overrides):
    with pytest.raises(ValueError, match=r"`positions` are added .* got a (CrossViT|ViT) without"):
        position_similarity(build(name, **overrides))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "pit_ti_224"])
def test_filters_are_the_components_that_were_put_there(build, name):
    """Filters mixed from orthogonal patterns of falling strength, around a mean that does not count."""
    model = build(name)
    conv = getattr(model.patch_embed, "proj", model.patch_embed)
    generator = torch.Generator().manual_seed(0)
    dim, size = conv.weight.shape[0], conv.weight[0].numel()
    patterns = torch.linalg.qr(torch.randn(size, 3, generator=generator)).Q.mT
    mix = torch.randn(dim, 3, generator=generator)
    mix = torch.linalg.qr(mix - mix.mean(dim=0)).Q * torch.tensor([3.0, 2.0, 1.0])
    with torch.no_grad():
        conv.weight.copy_((mix @ patterns + torch.randn(size, generator=generator)).view_as(conv.weight))
    found = embedding_filters(model, 3)
    assert found.shape == (3, *conv.weight.shape[1:])
    peak = patterns.gather(1, patterns.abs().argmax(dim=1, keepdim=True))
    torch.testing.assert_close(found.flatten(1), patterns * peak.sign(), atol=1e-5, rtol=0)


def test_filters_refuse(build):
    with pytest.raises(ValueError, match=r"linear patch embedding.* got a CCT with a ConvTokenizer"):
        embedding_filters(build("cct_2_3x2_32"))
    with pytest.raises(ValueError, match=r"got a CrossViT with none"):
        embedding_filters(build("crossvit_tiny_240"))
    with pytest.raises(ValueError, match="24 samples of 48 values have 1 to 24 components, got 28"):
        embedding_filters(build())
