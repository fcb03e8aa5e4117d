"""Principal components against scikit-learn's, and the colours of tokens."""

import pytest
import torch
from sklearn.decomposition import PCA

from vit_pytorch.analysis import colours_of_tokens, principal_components, token_colours


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(50, 6), (5, 40)])
def test_against_scikit_learn(shape):
    x = draw(*shape) * torch.arange(1, shape[1] + 1) + 3
    found = principal_components(x, 3)
    reference = PCA(3, svd_solver="full").fit(x.double().numpy())
    axes = torch.from_numpy(reference.components_)
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    torch.testing.assert_close(found.axes, axes)
    torch.testing.assert_close(found.share, torch.from_numpy(reference.explained_variance_ratio_))
    torch.testing.assert_close(found.project(x), (x.double() - x.double().mean(dim=0)) @ axes.mT)


def test_the_sign_does_not_depend_on_that_of_the_samples():
    x = draw(30, 5)
    torch.testing.assert_close(principal_components(x, 4).axes, principal_components(-x.flip(0), 4).axes)


def test_colours_are_the_components_stretched():
    tokens = draw(2, 3, 4, 10)
    found = colours_of_tokens(tokens)
    values = principal_components(tokens.flatten(0, 2), 3).project(tokens)
    values = values - values.flatten(0, 2).amin(dim=0)
    torch.testing.assert_close(found.colours, (values / values.flatten(0, 2).amax(dim=0)).float())
    assert found.foreground.all()


def objects(grid: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make tokens of two images in which a corner differs from the rest by far more than by noise."""
    tokens = draw(2, *grid, 12)
    corner = torch.zeros(2, *grid, dtype=torch.bool)
    corner[(slice(None), *(slice(0, extent // 2) for extent in grid))] = True
    tokens[corner] += 30 * torch.eye(12)[0]
    return tokens, corner


@pytest.mark.parametrize("grid", [(4, 6), (4, 4, 4)], ids=str)
def test_the_background_is_left_out(grid):
    tokens, corner = objects(grid)
    found = colours_of_tokens(tokens, foreground="above")
    assert torch.equal(found.foreground, corner)
    assert found.colours[~corner].eq(0).all()
    alone = colours_of_tokens(tokens[corner][:, None])
    torch.testing.assert_close(found.colours[corner], alone.colours[:, 0])
    other = colours_of_tokens(tokens, foreground="below")
    assert torch.equal(other.foreground, ~corner)
    most = colours_of_tokens(tokens, foreground="above", threshold=-2.0)
    assert most.foreground.all()


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "pit_ti_224", "crossvit_tiny_240", "xcit_nano_12_p16_224"]
)
def test_tokens_of_models(build, name):
    """Any model that gives maps between its layers; prefix tokens are not among them."""
    model = build(name)
    x = draw(2, 3, *model.image_size)
    found = token_colours(model, x, layer=0, norm=False)
    layer = model.forward_intermediates(x, [0], intermediates_only=True)[0]
    assert found.colours.shape == (2, *layer.shape[2:], 3)
    torch.testing.assert_close(found.colours, colours_of_tokens(layer.movedim(1, -1)).colours)


def test_refuses(build, images):
    with pytest.raises(ValueError, match="foreground must be one of all, above, below; got 'left'"):
        colours_of_tokens(draw(1, 4, 4, 8), foreground="left")
    with pytest.raises(ValueError, match=r"at least 3 patches, got 0 above the threshold 9.0"):
        colours_of_tokens(draw(1, 4, 4, 8), foreground="above", threshold=9.0)
    with pytest.raises(ValueError, match="5 samples of 2 values have 1 to 2 components, got 3"):
        principal_components(draw(5, 2), 3)
    with pytest.raises(ValueError, match=r"indices of layers must be in \[-2, 1\], got 2"):
        token_colours(build(), images(32, 32), layer=2)
