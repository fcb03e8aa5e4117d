"""CKA by its definitions, its invariances, and between layers."""

from itertools import permutations

import pytest
import torch

from vit_pytorch.analysis import layer_similarity, linear_cka
from vit_pytorch.analysis.similarity import gram_matrix, hsic


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_its_definition_in_features():
    """|Y'X|^2 / (|X'X| |Y'Y|) of centred features (arXiv:1905.00414, section 3)."""
    x, y = draw(9, 4), draw(9, 6, seed=1) + draw(9, 4) @ draw(4, 6, seed=2)
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    expected = (b.mT @ a).square().sum() / ((a.mT @ a).norm() * (b.mT @ b).norm())
    assert linear_cka(x, y) == pytest.approx(expected.item())


def test_unbiased_hsic_is_the_mean_over_distinct_images():
    """The U-statistic, over all ordered pairs, triples and quadruples of different images."""
    k, l = gram_matrix(draw(6, 3)), gram_matrix(draw(6, 5, seed=1))  # noqa: E741
    pairs, triples, quadruples = (list(permutations(range(6), count)) for count in (2, 3, 4))
    expected = (
        sum(k[i, j] * l[i, j] for i, j in pairs) / len(pairs)
        + sum(k[i, j] * l[q, r] for i, j, q, r in quadruples) / len(quadruples)
        - 2 * sum(k[i, j] * l[i, q] for i, j, q in triples) / len(triples)
    )
    torch.testing.assert_close(hsic(k[None], l[None], unbiased=True).squeeze(), expected)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rotation_scale_and_place_do_not_count(unbiased):
    x, y = draw(8, 5), draw(8, 5, seed=1)
    rotation = torch.linalg.qr(draw(5, 5, seed=2)).Q
    moved = 3 * x @ rotation + draw(5, seed=3)
    assert linear_cka(x, moved, unbiased=unbiased) == pytest.approx(1)
    expected = linear_cka(x, y, unbiased=unbiased)
    assert linear_cka(moved, y, unbiased=unbiased) == pytest.approx(expected)
    assert abs(expected) < 0.8


def test_unbiased_is_about_zero_where_features_are_independent():
    """With more features than images, the biased value is high for want of images alone."""
    pairs = [(draw(16, 200, seed=2 * i), draw(16, 200, seed=2 * i + 1)) for i in range(20)]
    biased, unbiased = (torch.tensor([linear_cka(x, y, unbiased=u) for x, y in pairs]) for u in (False, True))
    assert biased.min() > 0.8
    assert abs(unbiased.mean()) < 0.05


@pytest.mark.parametrize("unbiased", [False, True])
def test_layers_of_a_model(build, images, unbiased):
    model, x = build(depth=3), images(32, 32, batch=6)
    found = layer_similarity(model, [x], unbiased=unbiased)
    layers = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    expected = [[linear_cka(a, b, unbiased=unbiased) for b in layers] for a in layers]
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(found.diagonal(), torch.ones(3))
    torch.testing.assert_close(found, found.mT)


def test_two_models_in_batches(build, images):
    """HSIC is averaged over the batches, each of its three parts for itself."""
    model, other = build(depth=3), build("pit_ti_224")
    batches = [
        torch.randn(5, 3, *other.image_size, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    model = build(depth=3, image_size=other.image_size)
    found = layer_similarity(model, iter(batches), other)
    parts = torch.zeros(3, dtype=torch.float64)
    for x in batches:
        first, second = (
            m.forward_intermediates(x, [-1], output_fmt="NLC", intermediates_only=True)[0]
            for m in (model, other)
        )
        a, b = gram_matrix(first)[None], gram_matrix(second)[None]
        parts += torch.stack([hsic(p, q, unbiased=True).squeeze() for p, q in ((a, b), (a, a), (b, b))])
    assert found.shape == (3, len(other.feature_info))
    assert found[-1, -1].item() == pytest.approx((parts[0] / (parts[1] * parts[2]).sqrt()).item(), rel=1e-5)


def test_refuses(build, images):
    with pytest.raises(ValueError, match="unbiased HSIC needs at least 4 images at a time, got 3"):
        layer_similarity(build(), [images(32, 32, batch=3)])
    with pytest.raises(ValueError, match=r"^HSIC needs at least 2 images at a time, got 1"):
        linear_cka(draw(1, 3), draw(1, 3))
    with pytest.raises(ValueError, match="same images, got 4 and 5"):
        linear_cka(draw(4, 3), draw(5, 3))
    with pytest.raises(ValueError, match="at least 1 batch of images, got 0"):
        layer_similarity(build(), [])
