"""Muon: its steps, and which parameters it takes."""

import copy

import pytest
import torch
from torch import nn

from vit_pytorch import ViT
from vit_pytorch.cct import CCT
from vit_pytorch.dino import Dino
from vit_pytorch.training.muon import Muon, hidden_matrices, orthogonalize
from vit_pytorch.training.optim import OptimizerConfig, make_optimizer


def with_gradients(parameters, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (24, 24)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(orthogonalize(matrix).float(), full_matrices=False)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    middle = u.mT @ orthogonalize(matrix).float() @ v.mT
    assert (middle - middle.diag().diag()).abs().max() < 0.03, "its singular vectors are the matrix's own"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_steps_are_those_of_pytorch(shape):
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizer = Muon([{"params": [ours], "matrices": True, **settings}], lr=0.02)
    oracle = torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        with_gradients([ours, theirs], step)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        oracle.step()
    assert (ours - theirs).abs().max() < 1e-3 * (ours - 1).abs().max()


@pytest.mark.parametrize("fused", [False, True])
def test_everything_else_is_stepped_by_adamw(fused):
    ours, theirs = (nn.Parameter(torch.ones(8)) for _ in range(2))
    group = {"params": [ours], "matrices": False, "lr": 0.02, "weight_decay": 0.1}
    optimizer = Muon([group], lr=0.02, fused=fused)
    oracle = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1, fused=fused)
    for step in range(4):
        with_gradients([ours], step)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        oracle.step()
    assert torch.equal(ours, theirs)


def test_kernels_are_matrices_of_their_output_channels():
    kernel, matrix = nn.Parameter(torch.ones(6, 4, 3, 3)), nn.Parameter(torch.ones(6, 36))
    for parameter in (kernel, matrix):
        parameter.grad = torch.randn(6, 36, generator=torch.Generator().manual_seed(0)).view_as(parameter)
        group = {"params": [parameter], "matrices": True, "weight_decay": 0.0}
        Muon([group], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


def small_vit():
    return ViT(image_size=16, patch_size=2, num_classes=3, dim=16, depth=1, heads=2, mlp_dim=16)


def test_which_weights_are_matrices():
    vit = small_vit()
    names = hidden_matrices(vit)
    assert not any(name.startswith("head") for name in names)
    assert {name for name, p in vit.named_parameters() if p.ndim == 2} - names == {"head.weight"}
    cct = CCT(img_size=16, embedding_dim=32, num_layers=1, num_heads=2, num_classes=3)
    assert {cct.get_parameter(name).ndim for name in hidden_matrices(cct)} == {2, 4}
    dino = Dino(small_vit(), image_size=16, hidden_layer=-1, num_classes_K=16)
    assert hidden_matrices(dino) < {name for name, _ in dino.named_parameters()}


def test_a_state_goes_on_where_it_was():
    model = small_vit()
    again = copy.deepcopy(model)
    config = OptimizerConfig(name="muon", lr=0.01, layer_decay=0.8)
    first, second = make_optimizer(model, config), make_optimizer(again, config)
    for step in range(2):
        with_gradients(model.parameters(), step)
        first.step()
    again.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, module in ((first, model), (second, again)):
        with_gradients(module.parameters(), 2)
        optimizer.step()
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


def test_momentum_is_given_or_its_own():
    for given, expected in ((None, 0.95), (0.8, 0.8)):
        optimizer = make_optimizer(small_vit(), OptimizerConfig(name="muon", momentum=given))
        assert {group["momentum"] for group in optimizer.param_groups if group["matrices"]} == {expected}
