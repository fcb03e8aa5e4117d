import copy

import pytest
import torch
from torch import nn

from vit_pytorch.ssl.teacher import MeanTeacher


def student() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))


def test_parameters_and_statistics_follow():
    model = student()
    teacher = MeanTeacher(model)
    before = copy.deepcopy(teacher.model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    for _ in range(3):
        model(torch.randn(8, 4) * 3 + 1)
    teacher.update(model, 0.75)
    moved = 0
    for name, value in teacher.model.state_dict().items():
        new = model.state_dict()[name]
        if name == "1.num_batches_tracked":
            assert value == new == 3
            continue
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * new)
        moved += not torch.equal(value, before[name])
    assert moved == 6


def test_a_teacher_is_a_copy():
    model = student()
    teacher = MeanTeacher(model)
    old = teacher.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(teacher.model[0].weight, old)
    teacher.update(model, 1.0)
    assert torch.equal(teacher.model[0].weight, old)
    teacher.update(model, 0.0)
    assert torch.equal(teacher.model[0].weight, model[0].weight)


def test_it_stays_in_eval_and_has_no_gradients():
    parent = nn.ModuleDict({"teacher": MeanTeacher(student())}).train()
    teacher = parent["teacher"]
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    x = torch.randn(3, 4, requires_grad=True)
    said = teacher(x)
    assert not said.requires_grad
    assert torch.equal(said, teacher(x))


def test_decay_is_a_part():
    model = student()
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        MeanTeacher(model).update(model, 1.5)
