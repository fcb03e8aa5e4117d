import copy
import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from tests.training.toy import ToyModel
from vit_pytorch.training.engine import load_optimizer
from vit_pytorch.training.optim import (
    OptimizerConfig,
    ScheduleConfig,
    WarmupCosine,
    layer_scales,
    make_optimizer,
    parameter_groups,
)
from vit_pytorch.vit import ViT


def by_name(model: nn.Module, groups: list[dict[str, object]], value: str) -> dict[str, object]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group[value] for group in groups for p in group["params"]}  # type: ignore[attr-defined]


def test_norms_biases_and_tokens_do_not_decay() -> None:
    model = ToyModel()
    decay = by_name(model, parameter_groups(model, lr=1.0, weight_decay=0.1), "weight_decay")
    assert {name for name, value in decay.items() if value} == {
        "blocks.0.weight",
        "blocks.1.weight",
        "head.weight",
    }
    assert set(decay) == {name for name, _ in model.named_parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model = ToyModel()
    model.blocks.requires_grad_(False)
    names = by_name(model, parameter_groups(model, lr=1.0, weight_decay=0.1), "lr")
    assert set(names) == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    with pytest.raises(ValueError, match="ToyModel has no trainable parameter"):
        parameter_groups(model.requires_grad_(False), lr=1.0, weight_decay=0.1)


def test_each_parameter_is_in_exactly_one_group() -> None:
    model = ToyModel()
    model.blocks[1].bias = model.blocks[0].bias
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5, matrices={"head.weight"})
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted({id(parameter) for parameter in model.parameters()})


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_layer_decay_is_that_of_timm(name: str) -> None:
    model = timm.create_model(name)
    theirs = by_name(model, param_groups_layer_decay(model, layer_decay=0.7), "lr_scale")
    ours = layer_scales(model, 0.7)
    assert ours.keys() == theirs.keys()
    assert all(math.isclose(ours[key], theirs[key]) for key in ours)  # type: ignore[call-overload]
    assert min(ours.values()) < 0.5


def test_layer_decay_of_our_vit_is_that_of_timm() -> None:
    model = ViT(image_size=32, patch_size=4, num_classes=5, dim=16, depth=3, heads=2, mlp_dim=32)
    theirs = by_name(model, param_groups_layer_decay(model, layer_decay=0.7), "lr_scale")
    ours = layer_scales(model, 0.7)
    assert all(math.isclose(ours[key], theirs[key]) for key in theirs)  # type: ignore[call-overload]
    assert min(ours.values()) == pytest.approx(0.7**4)
    assert ours["positions.table"] == min(ours.values())
    decay = by_name(model, parameter_groups(model, lr=1.0, weight_decay=0.1), "weight_decay")
    assert decay["positions.table"] == decay["prefix.class_token"] == 0.0


def test_layers_have_numbers() -> None:
    model = ToyModel()
    model.group_matcher = lambda coarse=False: {"all": r"^(blocks|head)\."}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"captures \['blocks'\] in 'blocks\.0\.weight'"):
        layer_scales(model, 0.5)


def test_layer_decay_needs_layers() -> None:
    with pytest.raises(ValueError, match=r"a model with group_matcher\(\), Linear has none"):
        parameter_groups(nn.Linear(2, 2), lr=1.0, weight_decay=0.1, layer_decay=0.9)


def test_layer_decay_scales_learning_rates() -> None:
    model = ToyModel()
    rates = by_name(model, parameter_groups(model, lr=2.0, weight_decay=0.1, layer_decay=0.5), "lr")
    assert rates["head.weight"] == 2.0
    assert rates["norm.weight"] == rates["blocks.1.weight"] == 1.0
    assert rates["blocks.0.bias"] == 0.5
    assert rates["cls_token"] == 0.25


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizers(name: str, kind: type) -> None:
    optimizer = make_optimizer(ToyModel(), OptimizerConfig(name=name, lr=0.5, weight_decay=0.2))  # type: ignore[arg-type]
    assert type(optimizer) is kind
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.5, 0.2),
        (0.5, 0.0),
    }
    with pytest.raises(ValueError, match="must be 'adamw', 'sgd' or 'muon', got 'lion'"):
        make_optimizer(ToyModel(), OptimizerConfig(name="lion"))  # type: ignore[arg-type]


def stepped(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int = 3) -> list[torch.Tensor]:
    """The parameters after some steps with known gradients."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_fused_steps_are_the_plain_ones() -> None:
    models = ToyModel(), ToyModel()
    models[1].load_state_dict(models[0].state_dict())
    fused, plain = (
        make_optimizer(model, OptimizerConfig(layer_decay=0.9), scaled=scaled)
        for model, scaled in zip(models, (False, True), strict=True)
    )
    assert {group["fused"] for group in fused.param_groups} == {True}
    assert {group["fused"] for group in plain.param_groups} == {False}
    for left, right in zip(stepped(fused, models[0]), stepped(plain, models[1]), strict=True):
        assert torch.allclose(left, right, atol=1e-7)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_checkpoint_does_not_choose_the_kernels(scaled: bool) -> None:
    models = ToyModel(), ToyModel()
    written = make_optimizer(models[0], OptimizerConfig(), scaled=scaled)
    stepped(written, models[0])
    models[1].load_state_dict(models[0].state_dict())
    read = make_optimizer(models[1], OptimizerConfig(), scaled=not scaled)
    load_optimizer(read, copy.deepcopy(written.state_dict()))
    assert {group["fused"] for group in read.param_groups} == {scaled}
    assert {group["fused"] for group in written.param_groups} == {not scaled}
    for left, right in zip(stepped(written, models[0]), stepped(read, models[1]), strict=True):
        assert torch.allclose(left, right, atol=1e-7)


def test_schedule_is_the_closed_form() -> None:
    schedule = WarmupCosine(lr=0.1, min_lr=0.01, warmup=5, total=25)
    for step in range(30):
        if step < 5:
            expected = 0.1 * (step + 1) / 5
        else:
            expected = 0.01 + 0.09 * (1 + math.cos(math.pi * min(1, (step - 5) / 20))) / 2
        assert 0.1 * schedule(step) == pytest.approx(expected, rel=1e-12)
    assert 0.1 * schedule(29) == pytest.approx(0.01)


def test_schedules_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="warm-up of 9 steps is longer than the training of 8"):
        WarmupCosine(lr=1e-3, min_lr=0.0, warmup=9, total=8)
    with pytest.raises(ValueError, match=r"min_lr must not exceed lr = 0\.001, got 0\.1"):
        WarmupCosine(lr=1e-3, min_lr=0.1, warmup=1, total=8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", 0.0, r"lr must be in \(0, 100\], got 0.0"),
        ("lr", math.nan, r"lr must be in \(0, 100\], got nan"),
        ("weight_decay", -1.0, r"weight_decay must be at least 0 and less than 1 / lr = 1000, got -1.0"),
        ("layer_decay", 1.5, r"layer_decay must be in \(0, 1\], got 1.5"),
        ("momentum", 1.0, r"momentum must be in \[0, 1\), got 1.0"),
        ("betas", (0.9, 1.0), r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        ("eps", 0.0, r"eps must be in \(0, 1\], got 0.0"),
    ],
)
def test_impossible_optimizers(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**{field: value})  # type: ignore[arg-type]


def test_impossible_schedules() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs must not be negative, got -1"):
        ScheduleConfig(warmup_epochs=-1)
    with pytest.raises(ValueError, match=r"min_lr must not be negative, got -1"):
        ScheduleConfig(min_lr=-1)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_states_of_another_order_are_refused(name):
    """Fused kernels would read past the end of a smaller state."""
    config = OptimizerConfig(name=name, lr=1e-3)
    first, second = (nn.Sequential(*layers) for layers in (_two_layers(), _two_layers()[::-1]))
    optimizers = [make_optimizer(model, config) for model in (first, second)]
    first(torch.randn(5, 4)).sum().backward()
    optimizers[0].step()
    with pytest.raises(ValueError, match=r"must have shape .*, got .*: it belongs to another model"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())


def _two_layers():
    return [nn.Linear(4, 6), nn.Linear(6, 4)]
