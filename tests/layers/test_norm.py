"""LayerNorm with a gain that decays to 1."""

import torch
from torch import nn

from vit_pytorch import ViT
from vit_pytorch.layers.norm import ZeroCenteredLayerNorm
from vit_pytorch.layers.patches import LinearStem
from vit_pytorch.layers.tokens import Head
from vit_pytorch.training.optim import OptimizerConfig, make_optimizer, parameter_groups

SMALL = {
    "image_size": 40,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 40,
}


def test_is_layer_norm():
    theirs = nn.LayerNorm(24, eps=1e-3)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = ZeroCenteredLayerNorm(24, eps=1e-3)
    ours.load_state_dict({"excess": theirs.weight - 1, "bias": theirs.bias})
    x = torch.randn(2, 5, 24)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert ZeroCenteredLayerNorm(24)(x).equal(nn.LayerNorm(24, eps=1e-6)(x))


def test_starts_as_the_plain_vit():
    torch.manual_seed(0)
    options = {"head": Head(norm=True), "stem": LinearStem(pre_norm=True), "qk_norm": True}
    plain = ViT(**SMALL, **options)
    torch.manual_seed(0)
    model = ViT(
        **SMALL, head=Head(norm=True), stem=LinearStem(pre_norm=True), qk_norm=True, norm="zero_centered"
    )
    assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())
    x = torch.randn(2, 3, 40, 40)
    assert model(x).equal(plain(x))


def test_decay_pulls_gains_to_one():
    """Without a gradient, only decay moves the parameters."""
    model = ViT(**SMALL, norm="zero_centered")
    norms = [module for module in model.modules() if isinstance(module, ZeroCenteredLayerNorm)]
    assert len(norms) == 5
    for norm in norms:
        nn.init.uniform_(norm.excess, -0.9, 2.0)
        nn.init.constant_(norm.bias, 0.3)
    before = [norm.excess.detach().clone() for norm in norms]
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(200):
        optimizer.step()
    for norm, excess in zip(norms, before, strict=True):
        assert torch.allclose(norm.excess, excess * 0.95**200, atol=1e-6)
        assert norm.excess.abs().max() < 1e-4
        assert (norm.bias == 0.3).all()


def test_plain_gains_are_left_alone():
    model = ViT(**SMALL)
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(m.weight) in decayed for m in model.modules() if isinstance(m, nn.LayerNorm))
