import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.distill import DistillableEfficientViT, DistillableT2TViT, DistillableViT, DistillWrapper
from vit_pytorch.efficient import ViT as EfficientViT
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.tokens import Head
from vit_pytorch.levit import LeViT
from vit_pytorch.pit import PiT
from vit_pytorch.pretrained import to_format
from vit_pytorch.t2t import T2TViT
from vit_pytorch.vit import ViT

SIZES = {"image_size": 32, "num_classes": 5, "dim": 24, "depth": 2, "heads": 2, "mlp_dim": 48, "dim_head": 12}
VIT = {**SIZES, "patch_size": 4}


def efficient(**options: object) -> DistillableEfficientViT:
    sizes = {"image_size": 32, "patch_size": 4, "num_classes": 5, "dim": 24}
    return DistillableEfficientViT(
        **{**sizes, "transformer": plain_blocks(24, depth=2, heads=2, dim_head=12, mlp_dim=48), **options}
    )


STUDENTS = {
    "vit": lambda **options: DistillableViT(**{**VIT, **options}),
    "vit, mean": lambda **options: DistillableViT(**{**VIT, "pool": "mean", **options}),
    "vit, registers": lambda **options: DistillableViT(**{**VIT, "num_registers": 2, **options}),
    "t2t": lambda **options: DistillableT2TViT(**{**SIZES, "token_dim": 8, **options}),
    "efficient": efficient,
}


@pytest.fixture(params=STUDENTS.values(), ids=STUDENTS)
def student(request):
    torch.manual_seed(0)
    return randomise(request.param()).eval()


def separate(model, batch):
    return model.head.separate(model.pool_features(model.forward_features(batch)))


def test_timm():
    torch.manual_seed(0)
    reference = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=32,
        patch_size=4,
        num_classes=5,
        embed_dim=24,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
    )
    reference = randomise(reference).eval()
    model = DistillableViT(**VIT).eval()
    state = reference.state_dict()
    report = load_pretrained(model, state)
    assert report.format == "timm"
    assert not report.dropped
    batch = images(32, 32, batch=2)
    assert difference(model(batch), reference(batch)) < TOLERANCE
    reference.set_distilled_training()
    for ours, theirs in zip(separate(model, batch), reference.train()(batch), strict=True):
        assert difference(ours, theirs) < TOLERANCE
    written = to_format(model, "timm")
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)


def test_transformers():
    torch.manual_seed(0)
    config = DeiTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=4,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    reference = randomise(DeiTForImageClassificationWithTeacher(config)).eval()
    model = DistillableViT(**VIT).eval()
    state = reference.state_dict()
    assert load_pretrained(model, state).format == "transformers DeiT"
    batch = images(32, 32, batch=2)
    theirs = reference(batch)
    assert difference(model(batch), theirs.logits) < TOLERANCE
    token, distilled = separate(model, batch)
    assert difference(token, theirs.cls_logits) < TOLERANCE
    assert difference(distilled, theirs.distillation_logits) < TOLERANCE
    again = DistillableViT(**VIT).eval()
    load_pretrained(again, to_format(model, "transformers DeiT"))
    assert again(batch).equal(model(batch))


@torch.no_grad()
def test_another_image_size():
    """The row of the distillation token stays its own when the others are resized."""
    small = randomise(DistillableViT(**VIT))
    large = DistillableViT(**{**VIT, "image_size": 48})
    report = load_pretrained(large, to_format(small, "timm"))
    assert report.resized == {"positions.table": ((8, 8), (12, 12))}
    assert large.positions.table[:, :2].equal(small.positions.table[:, :2])


@torch.no_grad()
def test_inference_averages(student):
    batch = images(32, 32, batch=2)
    token, distilled = separate(student, batch)
    assert not token.allclose(distilled, atol=1e-2)
    torch.testing.assert_close(student(batch), (token + distilled) / 2)


@torch.no_grad()
def test_to_vit_keeps_the_class_tokens_logits(student):
    plain = student.to_vit()
    assert type(plain) in (ViT, T2TViT, EfficientViT)
    batch = images(32, 32, batch=2)
    torch.testing.assert_close(plain(batch), separate(student, batch)[0])
    nn.init.zeros_(plain.head.weight)
    assert student.head.classifier.weight.any()


@torch.no_grad()
def test_without_classes(student):
    """The embedding is the mean of both tokens, as timm has it, and has the dimension of a token."""
    batch = images(32, 32, batch=2)
    features = student.forward_features(batch)
    token, distilled = student.pool_features(features).chunk(2, dim=1)
    assert student.forward_head(features, pre_logits=True).equal((token + distilled) / 2)
    student.reset_classifier(0)
    assert student.num_features == student.head_hidden_size == 24
    assert isinstance(student.get_classifier(), nn.Identity)
    torch.testing.assert_close(student(batch), (token + distilled) / 2)
    torch.testing.assert_close(student.to_vit()(batch), token)
    student.reset_classifier(3)
    assert student(batch).shape == (2, 3)


@torch.no_grad()
def test_embedding_equals_timms():
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    reference = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0, **sizes)
    reference = randomise(reference).eval()
    model = DistillableViT(**{**VIT, "num_classes": 0}).eval()
    load_pretrained(model, reference.state_dict())
    batch = images(32, 32, batch=2)
    assert difference(model(batch), reference(batch)) < TOLERANCE


def test_to_vit_can_be_saved(tmp_path):
    plain = DistillableViT(**VIT).to_vit().eval()
    plain.save_pretrained(tmp_path)
    loaded = ViT.from_pretrained(tmp_path)
    batch = images(32, 32, batch=1)
    assert loaded(batch).equal(plain(batch))


def test_distillation_token_has_a_position():
    model = DistillableViT(**VIT)
    assert model.positions.table.shape == (1, 2 + 64, 24)
    model(images(32, 32, batch=1)).sum().backward()
    assert model.positions.table.grad[:, 1].any()


class Teacher(nn.Module):
    """A small network with a layer that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch):
        return self.linear(self.dropout(batch.mean(dim=(2, 3))))


@pytest.mark.parametrize("hard", [False, True])
def test_loss_is_the_papers(student, hard):
    teacher = Teacher()
    wrapper = DistillWrapper(student=student, teacher=teacher, temperature=3.0, alpha=0.3, hard=hard)
    batch, labels = images(32, 32, batch=4), torch.tensor([0, 4, 2, 2])
    token, distilled = separate(student, batch)
    taught = teacher.eval()(batch)
    want = 0.7 * F.cross_entropy(token, labels)
    if hard:
        want = want + 0.3 * F.cross_entropy(distilled, taught.argmax(dim=1))
    else:
        soft = (taught / 3).softmax(dim=1)
        divergence = (soft * (soft.log() - (distilled / 3).log_softmax(dim=1))).sum(dim=1).mean()
        want = want + 0.3 * 9 * divergence
    torch.testing.assert_close(wrapper(batch, labels), want)
    one_hot = F.one_hot(labels, 5).float()
    torch.testing.assert_close(wrapper(batch, one_hot), want)
    other = wrapper(batch, labels, alpha=0.0)
    torch.testing.assert_close(other, F.cross_entropy(token, labels))
    assert not wrapper(batch, labels, temperature=1.0).isclose(want) or hard


def test_teacher_is_left_alone(student):
    teacher = Teacher()
    wrapper = DistillWrapper(student=student, teacher=teacher).train()
    assert student.training
    assert not teacher.training
    assert not teacher.dropout.training
    before = copy.deepcopy(teacher.state_dict())
    wrapper(images(32, 32, batch=2), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    wrapper.to(torch.float64)
    assert teacher.linear.weight.dtype == torch.float64


def test_teachers_of_transformers():
    class Output:
        logits = torch.randn(2, 5)

    class Wrapped(nn.Module):
        def forward(self, batch):
            return Output()

    class Nothing(nn.Module):
        def forward(self, batch):
            return (batch,)

    student, batch, labels = DistillableViT(**VIT), images(32, 32), torch.tensor([0, 1])
    assert DistillWrapper(student=student, teacher=Wrapped())(batch, labels).isfinite()
    with pytest.raises(ValueError, match="expected logits from the teacher, got tuple"):
        DistillWrapper(student=student, teacher=Nothing())(batch, labels)


OTHERS = {
    "pit": lambda: PiT(patch_size=8, dim=16, depth=(1, 1), heads=2, mlp_dim=32, **OTHER),
    "levit": lambda: LeViT(dim=(16, 24, 32), depth=1, heads=2, mlp_mult=2, dim_key=8, **OTHER),
}
OTHER = {"image_size": 32, "num_classes": 5, "distilled": True}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_students(make):
    student = make()
    wrapper = DistillWrapper(student=student, teacher=Teacher())
    assert wrapper(images(32, 32, batch=2), torch.tensor([0, 1])).isfinite()


def test_wrong_arguments():
    student, teacher = DistillableViT(**VIT), Teacher()
    for wrong, message in (
        ({"temperature": 0.0}, r"temperature must be .*, got 0\.0"),
        ({"alpha": 1.5}, r"alpha must be .*, got 1.5"),
        ({"student": ViT(**VIT)}, "got ViT with Linear"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillWrapper(**{"student": student, "teacher": teacher, **wrong})
    teacher.linear = nn.Linear(3, 6)
    wrapper = DistillWrapper(student=student, teacher=teacher)
    with pytest.raises(ValueError, match=r"\(2, 5\) from the teacher, got \(2, 6\)"):
        wrapper(images(32, 32, batch=2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"got head\.norm"):
        DistillableViT(**VIT, head=Head(norm=True))
