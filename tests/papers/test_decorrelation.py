"""Decorrelation takes the paper's step, lowers what it says, and folds away."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.papers.learning import digits, learn
from tests.papers.reference import TOLERANCE, difference
from vit_pytorch import ViT
from vit_pytorch.cait import CaiT
from vit_pytorch.decorrelation import DecorLinear, decorrelate

SMALL: dict[str, Any] = {
    "image_size": 20,
    "patch_size": 4,
    "num_classes": 10,
    "channels": 1,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "dim_head": 16,
    "mlp_dim": 64,
}


def layer(**settings: float) -> DecorLinear:
    """Make a layer whose R is far from the identity."""
    made = DecorLinear(5, 4, **settings)
    made.decor += 0.3 * torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    return made


def one_step(decor: Tensor, x: Tensor, lr: float, kappa: float) -> tuple[Tensor, float]:
    """Write one step of R out: R - lr ((1 - kappa) C + kappa V) R, and what it makes smaller."""
    inputs = [decor @ vector for vector in x.flatten(0, -2)]
    d = len(decor)
    weighted, loss = torch.zeros(d, d), 0.0
    for i in range(d):
        for j in range(d):
            moment = sum(float(z[i] * z[j]) for z in inputs) / len(inputs)
            apart, share = (moment - 1, kappa) if i == j else (moment, 1 - kappa)
            weighted[i, j] = share * apart
            loss += share * apart**2 / d**2
    return decor - lr * weighted @ decor, loss


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_takes_the_papers_step(kappa: float) -> None:
    linear = layer(lr=0.1, kappa=kappa)
    x = torch.randn(6, 3, 5)
    expected, loss = one_step(linear.decor, x, 0.1, kappa)
    linear(x)
    assert linear.update().item() == pytest.approx(loss, rel=1e-5)
    assert difference(linear.decor, expected) < TOLERANCE


def test_gradients_are_those_of_decorrelated_inputs() -> None:
    linear = layer()
    x = torch.randn(6, 3, 5, requires_grad=True)
    out = linear(x)
    (out * torch.arange(4.0)).sum().backward()
    z = (x.detach() @ linear.decor.T).requires_grad_()
    weight, bias = linear.weight.detach().requires_grad_(), linear.bias.detach()
    same = F.linear(z, weight, bias)
    (same * torch.arange(4.0)).sum().backward()
    assert torch.allclose(out, same, atol=1e-6)
    assert torch.allclose(linear.weight.grad, weight.grad, atol=1e-5)
    assert torch.allclose(x.grad, z.grad @ linear.decor, atol=1e-6)
    assert not linear.decor.requires_grad


@pytest.mark.parametrize(("share", "count"), [(0.5, 5), (0.25, 2), (0.01, 1)])
def test_learns_from_a_share_of_the_samples(share: float, count: int) -> None:
    """Whole samples are drawn, each at most once, by torch's generator."""
    linear = layer(lr=0.1, sample_frac=share)
    x = torch.randn(10, 17, 5)
    decor = linear.decor.clone()
    torch.manual_seed(4)
    linear(x)
    torch.manual_seed(4)
    drawn = torch.randperm(10)[:count]
    assert linear.seen.equal(x[drawn].flatten(0, 1))
    linear.update()
    assert difference(linear.decor, one_step(decor, x[drawn], 0.1, 0.5)[0]) < TOLERANCE
    assert (linear.decor - one_step(decor, x, 0.1, 0.5)[0]).abs().max() > 1e-3


def test_a_step_needs_a_pass() -> None:
    linear = layer()
    linear.eval()(torch.randn(2, 5))
    with pytest.raises(RuntimeError, match="forward pass in training mode"):
        linear.update()
    decorrelation = decorrelate(ViT(**SMALL))
    with pytest.raises(RuntimeError, match="in training mode since the last update"):
        decorrelation.update()


def test_changes_linear_layers_in_place() -> None:
    model = ViT(**SMALL)
    images = torch.randn(2, 1, 20, 20)
    before, parameters = model(images), dict(model.named_parameters())
    decorrelation = decorrelate(model, r"blocks\..*")
    assert list(decorrelation.layers) == [
        f"blocks.{block}.{part}"
        for block in range(2)
        for part in (
            "attention.to_qkv",
            "attention.to_out",
            "feedforward.to_hidden",
            "feedforward.to_out",
        )
    ]
    assert torch.allclose(model(images), before, atol=1e-6)
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in after)
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert again(images).equal(model(images))
    with pytest.raises(ValueError, match="matches 'decoder"):
        decorrelate(model, r"decoder\..*")


def test_reaches_every_linear_layer() -> None:
    model = CaiT(**{**SMALL, "depth": 1}, cls_depth=1)
    decorrelation = decorrelate(model)
    assert not any(type(part) is nn.Linear for part in model.modules())
    model(torch.randn(2, 1, 20, 20))
    assert all(part.seen is not None for part in decorrelation.layers.values())


def correlation(model: nn.Module, images: Tensor) -> float:
    """Measure the mean squared correlation between two channels of what enters the weights of a layer."""
    found: dict[str, float] = {}

    def measure(name: str, part: nn.Linear, x: Tensor) -> None:
        z = x.flatten(0, -2)
        z = z @ part.decor.T if isinstance(part, DecorLinear) else z
        moments = z.T @ z
        size = moments.diagonal().rsqrt()
        squares = (moments * size * size[:, None]).square()
        found[name] = (squares.sum() - len(size)).item() / (len(size) * (len(size) - 1))

    handles = [
        part.register_forward_pre_hook(lambda part, x, name=name: measure(name, part, x[0]))
        for name, part in model.blocks.named_modules()
        if isinstance(part, nn.Linear)
    ]
    with torch.inference_mode():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return sum(found.values()) / len(found)


def test_lowers_correlations_on_the_digits_and_folds_away() -> None:
    images, labels, test_images, _ = digits(20)
    torch.manual_seed(0)
    plain = ViT(**SMALL)
    model = copy.deepcopy(plain)
    assert correlation(plain, test_images) > 0.1
    plain.train()
    learn(plain, lambda x, y: F.cross_entropy(plain(x), y), images, labels, epochs=2)

    decorrelation = decorrelate(model, r"blocks\..*", lr=1e-2, sample_frac=0.25)

    def loss(batch: Tensor, targets: Tensor) -> Tensor:
        if model.head.weight.grad is not None:
            decorrelation.update()
        return F.cross_entropy(model(batch), targets)

    learn(model, loss, images, labels, epochs=2)
    assert correlation(model, test_images) < 0.75 * correlation(plain, test_images)
    with torch.inference_mode():
        logits = model.eval()(test_images)
    assert decorrelation.fold() is model
    assert type(model.blocks[0].attention.to_qkv) is nn.Linear
    assert model.state_dict().keys() == plain.state_dict().keys()
    with torch.inference_mode():
        assert difference(model(test_images), logits) < TOLERANCE


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"kappa": 1.1}, {"sample_frac": 0.0}, {"sample_frac": 2.0}])
def test_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a number in"):
        decorrelate(ViT(**SMALL), **wrong)
