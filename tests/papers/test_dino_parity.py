"""DINO: the authors' loss, centre and gradients; and where learning must not go wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, randomise
from vit_pytorch import Dino, ViT
from vit_pytorch.dino import DinoLoss, loss_fn
from vit_pytorch.extractor import Extractor
from vit_pytorch.layers.positions import interpolated_positions
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.ssl.schedules import CosineSchedule, LinearSchedule
from vit_pytorch.twins_svt import TwinsSVT

VIT = {"image_size": 32, "patch_size": 4, "num_classes": 5, "dim": 24, "depth": 2, "heads": 2, "dim_head": 12}
VIT = {**VIT, "mlp_dim": 48}
SMALL = {
    "projection_hidden_size": 32,
    "projection_layers": 3,
    "bottleneck_dim": 16,
    "num_classes_K": 40,
    "num_local_crops": 3,
}


def learner(net: nn.Module | None = None, **settings) -> Dino:
    net = randomise(ViT(**VIT)).train() if net is None else net
    return Dino(net, **{"image_size": 32, **SMALL, **settings})


def test_the_authors_loss():
    config, _, found = read_golden("dino_loss")
    loss = DinoLoss(config["out_dim"], student_temp=0.1, center_decay=config["center_momentum"])
    loss.centre.value.copy_(found["centre_before"][0])
    temperature = LinearSchedule(0.04, 0.07, config["warmup_teacher_temp_epochs"] - 1)
    for call, epoch in enumerate(config["epochs"]):
        assert temperature(epoch) == pytest.approx(found["teacher_temp"][call].item())
        student = [found[f"student.{v}"][call].requires_grad_() for v in range(config["ncrops"])]
        teacher = torch.stack([found[f"teacher.{v}"][call] for v in range(2)]).requires_grad_()
        value = loss(torch.stack(student), teacher, temperature(epoch))
        value.backward()
        torch.testing.assert_close(value, found["loss"][call], atol=TOLERANCE, rtol=TOLERANCE)
        for v, crop in enumerate(student):
            expected = found[f"student_grad.{v}"][call]
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(crop.grad, expected, atol=1e-6, rtol=TOLERANCE)
        assert teacher.grad is None
        loss.update_centre()
        expected = found["centre_after"][call, 0]
        torch.testing.assert_close(loss.centre.value, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_loss_of_two_views(dtype: torch.dtype):
    """As one pair of the loss of all views; finite where probabilities are not, in half precision."""
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student, teacher = logits.to(dtype).requires_grad_(), (2 * logits.flip(0)).to(dtype)
    whole = DinoLoss(7, student_temp=0.5).to(dtype)
    whole.centre.value.copy_(torch.linspace(-1, 1, 7))
    pair = loss_fn(teacher[0], student[1], 0.3, 0.5, whole.centre.value[None])
    other = loss_fn(teacher[1], student[0], 0.3, 0.5, whole.centre.value[None])
    torch.testing.assert_close((pair + other).float() / 2, whole(student, teacher, 0.3))
    apart = torch.tensor([[50.0, -50.0]], dtype=dtype)
    heard = (-apart).requires_grad_()
    loss = loss_fn(apart, heard, 1.0, 1.0, torch.zeros(1, 2, dtype=dtype))
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert heard.grad.isfinite().all()


def test_the_student_sees_all_crops_and_the_teacher_the_global_ones():
    dino = learner(num_local_crops=4)
    seen = {"student": [], "teacher": []}
    for name, part in (("student", dino.student), ("teacher", dino.teacher.model)):
        part.net.patch_embed.register_forward_hook(
            lambda _, inputs, __, found=seen[name]: found.append(tuple(inputs[0].shape))
        )
    dino(torch.randn(3, 3, 32, 32))
    assert seen == {"student": [(6, 3, 32, 32), (12, 3, 12, 12)], "teacher": [(6, 3, 32, 32)]}


def test_the_loss_is_that_of_all_pairs():
    dino = learner().eval()
    crops = [torch.randn(2, 3, *size) for size in ((32, 32), (32, 32), (16, 16), (16, 16))]
    teacher = dino.teacher.model
    pairs = []
    for q in range(2):
        said = (teacher([crops[q]])[0] / 0.04).softmax(dim=1)
        for v in range(4):
            if v != q:
                heard = (dino.student([crops[v]])[0] / 0.1).log_softmax(dim=1)
                pairs.append(-(said * heard).sum(dim=1).mean())
    torch.testing.assert_close(dino(crops), torch.stack(pairs).mean())


def test_the_class_is_the_papers():
    dino = Dino(ViT(**VIT), image_size=32)
    assert dino.student.head.last_layer.weight.shape == (65536, 256)
    assert [tuple(part.weight.shape) for part in dino.student.head.mlp[::2]] == [
        (2048, 24),
        (2048, 2048),
        (256, 2048),
    ]
    assert dino.criterion.student_temp == 0.1
    assert (dino.teacher_temp(0), dino.decay(0), dino.criterion.centre.decay) == (0.04, 0.996, 0.9)
    assert len(dino.views.views) == 10


def test_the_teacher_starts_as_the_student_and_follows():
    dino = learner(moving_average_decay=0.9)
    for ours, theirs in zip(dino.student.parameters(), dino.teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    before = copy.deepcopy(dino.teacher.state_dict())
    optimizer = torch.optim.AdamW(dino.parameters(), lr=1e-2)
    dino(torch.randn(4, 3, 32, 32)).backward()
    optimizer.step()
    assert all(map(torch.equal, before.values(), dino.teacher.state_dict().values()))
    dino.update_moving_average()
    students = dino.student.state_dict()
    for name, value in dino.teacher.model.state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[f"model.{name}"] + 0.1 * students[name])


def test_the_teacher_has_no_dropout():
    dino = learner(randomise(ViT(**VIT, dropout=0.5)).train())
    dino.train()
    crops = [torch.randn(2, 3, 32, 32)] * 2
    assert torch.equal(dino.teacher(crops), dino.teacher(crops))
    assert not torch.equal(dino.student(crops), dino.student(crops))


def test_the_model_is_the_one_passed_in_and_learns():
    net = randomise(ViT(**VIT)).train()
    dino = learner(net)
    assert dino.student.net is net
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.AdamW(dino.parameters(), lr=1e-2, weight_decay=0)
    dino(torch.randn(4, 3, 32, 32)).backward()
    optimizer.step()
    still = {name for name, value in net.state_dict().items() if torch.equal(value, before[name])}
    # the classifier takes no part; keys have no effect through their biases
    assert {name for name in still if not name.endswith("to_qkv.bias")} == {"head.weight", "head.bias"}


def test_construction_leaves_no_traces():
    net = randomise(TwinsSVT(**TWINS)).train()
    net.stages[0].eval()
    before = copy.deepcopy(net.state_dict())
    modes = [part.training for part in net.modules()]
    dino = learner(net, image_size=64)
    assert all(map(torch.equal, before.values(), net.state_dict().values()))
    assert [part.training for part in net.modules()] == modes
    assert dino.criterion.centre.value.abs().max() == 0
    assert int(dino.steps) == 0


def test_the_centre_moves_once_a_step():
    dino = learner()
    images = torch.randn(4, 3, 32, 32)
    dino(images)
    assert dino.criterion.centre.value.abs().max() == 0
    dino.update_moving_average()
    once = dino.criterion.centre.value.clone()
    assert once.abs().max() > 0
    dino.update_moving_average()
    assert torch.equal(dino.criterion.centre.value, once)


def test_positions_are_interpolated_for_small_crops():
    net = randomise(ViT(**VIT))
    seen = []
    net.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    dino = learner(net)
    crop = torch.randn(2, 3, 16, 16)
    seen.clear()
    with torch.no_grad():
        dino.student([crop])
        table = net.positions.table[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
        small = F.interpolate(table, size=(4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        patches = net.patch_embed(crop) + small
        cropped = net.embed(crop)
    torch.testing.assert_close(seen[0][:, 1:], patches)
    assert (seen[0] - cropped).abs().max() > 0.1
    assert not net.positions.interpolates


def test_positions_go_back_after_an_error():
    net = SimpleViT(**VIT)

    def fail():
        with interpolated_positions(net):
            assert net.positions.interpolates
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not net.positions.interpolates


def test_the_last_layer_is_frozen_for_the_first_steps():
    dino = learner(freeze_last_layer=1)
    weight = dino.student.head.last_layer.weight
    dino(torch.randn(2, 3, 32, 32)).backward()
    assert weight.grad is None
    dino.update_moving_average()
    dino(torch.randn(2, 3, 32, 32)).backward()
    assert weight.grad.abs().max() > 0


def test_schedules_follow_the_step():
    dino = learner(
        teacher_temp=LinearSchedule(0.04, 0.08, 2), moving_average_decay=CosineSchedule(0.5, 1.0, 2)
    ).eval()
    crops = [torch.randn(2, 3, 32, 32)] * 3
    told = []
    dino.criterion.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]))
    with torch.no_grad():
        for parameter in dino.student.parameters():
            parameter.add_(1)
    old = dino.teacher.model.net.norm.weight - dino.student.net.norm.weight
    left = []
    for _ in range(3):
        dino(crops)
        dino.update_moving_average()
        now = dino.teacher.model.net.norm.weight - dino.student.net.norm.weight
        left.append((now / old).mean().item())
        old = now
    assert told == pytest.approx([0.04, 0.06, 0.08])
    assert left == pytest.approx([0.5, 0.75, 1.0], abs=1e-4)


def test_everything_is_in_the_state():
    first, second = learner(randomise(ViT(**VIT), seed=0)), learner(randomise(ViT(**VIT), seed=5))
    for _ in range(2):
        first(torch.randn(2, 3, 32, 32))
        first.update_moving_average()
    second.load_state_dict(first.state_dict())
    crops = [torch.randn(2, 3, 32, 32)] * 3
    assert torch.equal(first.eval()(crops), second.eval()(crops))
    assert int(second.steps) == 2
    assert {name.split(".")[0] for name in first.state_dict()} == {"student", "teacher", "criterion", "steps"}
    assert "criterion.centre.value" in first.state_dict()


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_embedding_is_what_enters_the_classifier(pool):
    net = randomise(ViT(**VIT, pool=pool))
    images = torch.randn(2, 3, 32, 32)
    watched = Extractor(net, "to_latent", return_embeddings_only=True)(images)
    for layer in (None, "to_latent"):
        assert torch.equal(learner(net, hidden_layer=layer).student.embed(images), watched)


def test_any_layer_can_be_the_hidden_one():
    net = randomise(ViT(**VIT))
    images = torch.randn(2, 3, 32, 32)
    tokens = net.forward_intermediates(images, [0], True, output_fmt="NLC", intermediates_only=True)
    for layer in (0, "blocks.0", net.blocks[0]):
        dino = learner(net, hidden_layer=layer)
        torch.testing.assert_close(dino.student.embed(images), tokens[0][1][:, 0])
    dino(images).backward()
    assert net.blocks[0].attention.to_out.weight.grad.abs().max() > 0
    mean = SimpleViT(**VIT)
    dino = learner(mean, hidden_layer=-1)
    patches = mean.eval().forward_intermediates(images, 1, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(dino.student.embed(images), patches[0].mean(dim=1))
    with pytest.raises(ValueError, match="no layer 'to_latant'"):
        learner(net, hidden_layer="to_latant")
    with pytest.raises(ValueError, match="no vector"):
        learner(net, hidden_layer="patch_embed.proj")


def test_local_crops_fit_the_model():
    sizes = {224: 96, 256: 112}
    for size, local in sizes.items():
        net = ViT(**{**VIT, "image_size": size, "patch_size": 16})
        assert learner(net, image_size=size).views.views[2].size == (local, local)
    with pytest.raises(ValueError, match="must be a multiple of patch size"):
        learner(local_image_size=10)


TWINS = {
    "num_classes": 5,
    "image_size": 64,
    **{f"s{i}_emb_dim": 8 * i for i in range(1, 5)},
    **{f"s{i}_depth": 1 for i in range(1, 5)},
    **{f"s{i}_local_patch_size": 4 for i in range(1, 4)},
    **{f"s{i}_global_k": 2 for i in range(1, 4)},
    "s4_local_patch_size": 2,
    "s4_global_k": 2,
    "s1_patch_size": 2,
    "heads": (1, 2, 3, 4),
}


def test_a_model_in_stages_learns_so_too():
    net = TwinsSVT(**TWINS)
    dino = learner(net, image_size=64)
    dino(torch.randn(3, 3, 64, 64)).backward()
    grads = {name: p.grad for name, p in net.named_parameters() if not name.startswith("head.")}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())


def test_timms_model_learns_so_too():
    net = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3, dynamic_img_size=True
    )
    dino = learner(net, hidden_layer="to_latent")
    loss = dino(torch.randn(4, 3, 32, 32))
    loss.backward()
    assert net.pos_embed.grad.abs().max() > 0
    assert dino.student.net is net


def test_crops_and_randomness_can_be_passed_in():
    dino = learner()
    images = torch.randn(2, 3, 48, 40)
    same = [dino(images, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], dino(images, torch.Generator().manual_seed(2)))
    crops = dino.views(images, torch.Generator().manual_seed(1))
    assert torch.equal(dino(crops), same[0])
    mine = learner(views=lambda images, generator: [images, images.flip(3)])
    assert mine(torch.randn(2, 3, 32, 32)).isfinite()
    with pytest.raises(ValueError, match="two global crops"):
        dino(crops[:1])


def test_the_loss_is_computed_in_full_precision():
    dino = learner().to(torch.bfloat16)
    loss = dino(torch.randn(2, 3, 32, 32).bfloat16())
    assert loss.dtype == torch.float32
    loss.backward()
    dino.update_moving_average()
    assert dino.criterion.centre.value.dtype == torch.float32
    dino = learner()
    with torch.autocast("cpu", torch.bfloat16):
        assert dino(torch.randn(2, 3, 32, 32)).dtype == torch.float32
