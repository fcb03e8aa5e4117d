"""Relevance against slow computations by other means, and where it must lie."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_pytorch import ViT
from vit_pytorch.analysis import (
    TokenLayout,
    class_relevance,
    maps_and_gradients,
    read_relevance,
    relevance_of_maps,
)
from vit_pytorch.base import VisionModel
from vit_pytorch.layers.positions import Learned


class SlowViT:
    """The forward pass of a small ViT in numpy, one head at a time, whose maps can be changed on the way."""

    def __init__(self, model: ViT) -> None:
        self.heads = model.blocks[0].attention.heads
        self.weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
        self.depth = len(model.blocks)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def run(self, tokens: np.ndarray, change: dict[int, np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Give the logits and the maps; `change` is added to the map of a layer."""
        maps = []
        x = tokens
        for layer in range(self.depth):
            name = f"blocks.{layer}"
            qkv = self.linear(f"{name}.attention.to_qkv", self.norm(f"{name}.norm1", x))
            q, k, v = (np.split(part, self.heads, axis=1) for part in np.split(qkv, 3, axis=1))
            found, mixed = [], []
            for head in range(self.heads):
                scores = np.exp(q[head] @ k[head].T / np.sqrt(q[head].shape[1]))
                found.append(scores / scores.sum(axis=1, keepdims=True))
                seen = found[head] + (change[layer][head] if layer in change else 0)
                mixed.append(seen @ v[head])
            maps.append(np.stack(found))
            x = x + self.linear(f"{name}.attention.to_out", np.concatenate(mixed, axis=1))
            hidden = self.linear(f"{name}.feedforward.to_hidden", self.norm(f"{name}.norm2", x))
            x = x + self.linear(f"{name}.feedforward.to_out", np.maximum(hidden, 0))
        return self.linear("head", self.norm("norm", x)[0]), maps


def test_against_finite_differences_of_a_hand_written_transformer():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="6 patches are few"):
        model = ViT(
            image_size=(6, 9),
            patch_size=3,
            num_classes=4,
            dim=8,
            depth=2,
            heads=2,
            mlp_dim=12,
            dim_head=4,
            act="relu",
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model = model.double().eval()
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    classes = torch.tensor([2, 0])
    logits, maps, gradients = maps_and_gradients(model, x, classes)
    slow, tokens, step = SlowViT(model), model.embed(x).detach().numpy(), 1e-5
    expected = []
    for sample, chosen in enumerate(classes.tolist()):
        of_sample, found = slow.run(tokens[sample], {})
        np.testing.assert_allclose(logits[sample], of_sample, atol=1e-12)
        flow = np.eye(7)
        for layer, layer_maps in enumerate(found):
            np.testing.assert_allclose(maps[layer][sample], layer_maps, atol=1e-12)
            slopes = np.zeros_like(layer_maps)
            for entry in np.ndindex(*layer_maps.shape):
                change = np.zeros_like(layer_maps)
                change[entry] = step
                up, down = (slow.run(tokens[sample], {layer: sign * change})[0][chosen] for sign in (1, -1))
                slopes[entry] = (up - down) / (2 * step)
            np.testing.assert_allclose(gradients[layer][sample], slopes, atol=1e-7)
            flow = flow + np.maximum(slopes * layer_maps, 0).mean(axis=0) @ flow
        expected.append(flow)
    np.testing.assert_allclose(relevance_of_maps(maps, gradients), np.stack(expected), atol=1e-7)
    found = class_relevance(model, x, classes, mode="nearest")[:, ::3, ::3]
    np.testing.assert_allclose(found.flatten(1), np.stack(expected)[:, 0, 1:], atol=1e-7)


def plant(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Make noise with two patches of different colours in a grid of 6 x 6; give their places and colours."""
    pictures = 0.1 * torch.randn(count, 3, 18, 18, generator=generator)
    places = torch.rand(count, 36, generator=generator).topk(2, dim=1).indices
    colours = torch.rand(count, 3, generator=generator).topk(2, dim=1).indices
    for image, place, colour in zip(pictures, places.tolist(), colours.tolist(), strict=True):
        for cell, channel in zip(place, colour, strict=True):
            row, column = divmod(cell, 6)
            image[channel, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 1
    return pictures, places, colours


def learn_colours(pool: str) -> VisionModel:
    """Train a small ViT to tell which two of the three colours an image has."""
    torch.manual_seed(0)
    model = ViT(
        image_size=18,
        patch_size=3,
        num_classes=3,
        dim=24,
        depth=2,
        heads=2,
        mlp_dim=48,
        dim_head=12,
        pool=pool,
        # what a patch shows decides, and not where it is
        positions=Learned(std=0.02),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        pictures, _, colours = plant(64, generator)
        present = F.one_hot(colours, 3).sum(dim=1).float()
        loss = F.binary_cross_entropy_with_logits(model(pictures), present)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_the_patch_that_makes_the_class_is_the_most_relevant(pool):
    model = learn_colours(pool)
    model.zero_grad()
    pictures, places, colours = plant(32, torch.Generator().manual_seed(1))
    for chosen in (0, 1):
        found = class_relevance(model, pictures, colours[:, chosen], mode="nearest")[:, ::3, ::3].flatten(1)
        assert (found.argmax(dim=1) == places[:, chosen]).float().mean() >= 0.9
    assert all(parameter.grad is None for parameter in model.parameters())


def test_class_token_that_joins_late():
    """As the full matrices say, in which patches gain nothing where the class token alone attends."""
    generator = torch.Generator().manual_seed(0)
    patches, late = torch.rand(2, 3, 4, 4, generator=generator), torch.rand(2, 3, 1, 5, generator=generator)
    slopes = [torch.randn(layer.shape, generator=generator) for layer in (patches, late)]
    whole = torch.zeros(2, 2, 5, 5)
    whole[0, :, 1:, 1:] = (patches * slopes[0]).clamp(min=0).mean(dim=1)
    whole[1, :, :1] = (late * slopes[1]).clamp(min=0).mean(dim=1)
    expected = (torch.eye(5) + whole[1]) @ (torch.eye(5) + whole[0])
    found = relevance_of_maps([patches, late], slopes)
    torch.testing.assert_close(found, expected)
    layout = TokenLayout((2, 2), (4, 4), prefix=1, class_token=True)
    torch.testing.assert_close(read_relevance(found, layout), expected[:, 0, 1:].view(2, 2, 2))


def test_pooled_patches_lose_the_relevance_that_they_start_with():
    """Where nothing is relevant, the identity alone is left of R."""
    zeros = [torch.zeros(1, 2, 6, 6)]
    found = relevance_of_maps(zeros, zeros)
    torch.testing.assert_close(found, torch.eye(6)[None])
    assert read_relevance(found, TokenLayout((2, 3), (4, 4))).eq(0).all()


@pytest.mark.parametrize(
    "name", ["cait_xxs24_224", "deepvit_S", "cct_2_3x2_32", "sl_vit_patch4_32", "navit_tiny_patch16"]
)
def test_models_of_other_kinds(build, images, name):
    model = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = images(32, 32)
    found, other = (class_relevance(model, x, torch.tensor(classes)) for classes in ([0, 1], [0, 2]))
    assert found.shape == (2, 32, 32)
    assert found.min() >= 0
    assert found.amax(dim=(1, 2)).gt(0).all()
    torch.testing.assert_close(found[0], other[0])
    assert not torch.allclose(found[1], other[1])
    best = model(x).argmax(dim=1)
    torch.testing.assert_close(class_relevance(model, x), class_relevance(model, x, best))


def test_under_no_grad(build, images):
    model, x = build(), images(32, 32)
    with torch.no_grad():
        found = class_relevance(model, x)
    torch.testing.assert_close(found, class_relevance(model, x))
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("name", "overrides", "classes", "message"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 0}, None, "num_classes=0"),
        ("vit_tiny_patch16_224", {}, [0, 7], r"from 0 to 6 for each of 2 images, got \[0, 7\]"),
        ("vit_tiny_patch16_224", {}, [0], r"for each of 2 images, got \[0\]"),
        ("xcit_nano_12_p16_224", {}, None, "XCiT, whose cross-covariance mixes channels"),
        ("deit_small_patch16_224_ats", {}, None, "no layer drops or merges them"),
    ],
)
def test_refuses(build, images, name, overrides, classes, message):
    told = None if classes is None else torch.tensor(classes)
    with pytest.raises(ValueError, match=message):
        class_relevance(build(name, **overrides), images(32, 32), told)


def test_refuses_gradients_of_other_maps():
    with pytest.raises(ValueError, match=r"\(1, 2, 5, 5\).*, got \[\(1, 2, 4, 4\)\]"):
        relevance_of_maps([torch.zeros(1, 2, 5, 5)], [torch.zeros(1, 2, 4, 4)])
